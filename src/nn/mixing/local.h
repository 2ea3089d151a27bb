// All tokens of the rows are here.
#pragma once

#include <optional>

#include "src/nn/mixing/mixing.h"

namespace weft {

class Local : public Mixing {
 public:
  explicit Local(const TokenTable& table) : table_(table) {}

  const Runs& runs() const override { return table_.runs(); }
  KeySet keys(const Var& k_BTGK, const Var& v_BTGV, const KeyOptions& options) override;
  State attend(const QuerySet& queries, const KeySet& keys, const Call& call) override;
  Var prefix(const Var& x, int64_t window) override;
  Var recur(const RecurrenceVars& input, const ops::RecurrenceOptions& options) override;
  Var decay_scan(const Var& x_BTD, const Var& log_decay) override;
  Var recur_chunks(const RecurrenceVars& input, const ops::RecurrenceOptions& options, const Chunks& chunks) override {
    return recur_chunks_gathered(*this, input, options, chunks);
  }
  Neighbours neighbours(const Var& x, int64_t before, int64_t after) override;
  std::vector<Var> gather(std::span<const Var> values, int64_t window) override;
  const GatheredTokens& gathered(int64_t window) override;
  Var sum(const Var& x, Over over) override { return table_.sum_here(x, over); }
  ops::AttentionStatistics statistics(const QuerySet& queries, const KeySet& keys, const State& state,
                                      const Call& call) override;

 protected:
  const TokenTable& table_;

 private:
  std::optional<GatheredTokens> gathered_;  // when first asked for
};

}  // namespace weft
