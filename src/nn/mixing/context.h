// The tokens of a row are on several ranks. Keys that one attend() follows travel while it computes; keys for any number of queries are
// gathered, so that what a router chose changes no exchange.
#pragma once

#include <map>
#include <optional>
#include <utility>

#include "src/nn/mixing/context_tokens.h"
#include "src/nn/mixing/local.h"
#include "weft/autograd/ranks.h"
#include "weft/nn/context_group.h"

namespace weft {

class Context final : public Local {
 public:
  Context(const TokenTable& table, const ContextGroup& group, Watched watched)
      : Local(table), group_(group), watched_(watched) {}

  KeySet keys(const Var& k_BTGK, const Var& v_BTGV, const KeyOptions& options) override;
  State attend(const QuerySet& queries, const KeySet& keys, const Call& call) override;
  Var prefix(const Var& x, int64_t window) override;
  Var recur(const RecurrenceVars& input, const ops::RecurrenceOptions& options) override;
  Var decay_scan(const Var& x_BTD, const Var& log_decay) override;
  Neighbours neighbours(const Var& x, int64_t before, int64_t after) override;
  std::vector<Var> gather(std::span<const Var> values, int64_t window) override;
  const GatheredTokens& gathered(int64_t window) override;
  Var sum(const Var& x, Over over) override;
  ops::AttentionStatistics statistics(const QuerySet& queries, const KeySet& keys, const State& state,
                                      const Call& call) override;
  KeySet keys_here(const KeySet& keys) override;
  KeysOfRows keys_of_rows(const KeySet& keys) override;
  Tensor sum_of_ranks(const Tensor& x) override;
  Var settled(const Var& y) override;

 private:
  bool is_alone() const { return group_.tokens->size() == 1; }
  const ContextTokens& tokens();
  KeySet gathered_keys(const KeySet& mine);
  KeySet with_those_of_ranks(const KeySet& chosen);
  const ops::AttentionTokens& rank_by_rank();

  // What ContextTokens plans, on the device.
  struct CarryIndex {
    Tensor run_of, last, places, segments, mine;
  };
  struct HaloIndex {
    Tensor sent, order, chains;
    RowCounts counts;
  };
  struct SegmentIndex {
    int64_t count, longest, most;
    Tensor tokens, documents, is_reached, places, is_in_segment, order, chains, before, goes_on;
    bool are_tokens_in_order, have_all_tokens;
    std::shared_ptr<const dist::SegmentPlan> plan;
  };
  const CarryIndex& carry_index();
  const SegmentIndex& segment_index();
  const HaloIndex& halo_index(int64_t before, int64_t after);

  // Parts of a recurrence; J segments here of at most L tokens.
  Var in_segments(const Var& x);
  Var from_segments(const Var& y);
  Var of_all_segments(const Var& x);
  Var carried(const Var& ends, const Var& log_decay);
  dist::Carry carry_of(const RecurrenceVars& local, const ops::RecurrenceOptions& options);

  ContextGroup group_;
  Watched watched_;
  // When first asked for: all layers ask for the same.
  std::optional<GatheredTokens> all_;
  std::optional<ContextTokens> tokens_;
  std::optional<ops::AttentionTokens> rank_by_rank_;  // of gathered keys
  std::optional<CarryIndex> carry_index_;
  std::optional<SegmentIndex> segment_index_;
  std::map<std::pair<int64_t, int64_t>, HaloIndex> halo_indices_;
  std::vector<Var> unsettled_;  // gathered, and perhaps not used by this rank
};

}  // namespace weft
