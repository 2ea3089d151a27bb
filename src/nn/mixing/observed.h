// A seam that shows the attention that passes it to diagnostics and probes.
#pragma once

#include "src/nn/mixing/mixing.h"
#include "weft/nn/observation.h"

namespace weft {

class Observed final : public Mixing {
 public:
  Observed(std::unique_ptr<Mixing> inner, Observation& watcher, Sharing& reports)
      : inner_(std::move(inner)), watcher_(watcher), reports_(reports) {}

  State attend(const QuerySet& queries, const KeySet& keys, const Call& call) override {
    State state = inner_->attend(queries, keys, call);
    if (call.is_shown) show(queries, keys, state, call);
    return state;
  }
  void show(const QuerySet& queries, const KeySet& keys, const State& state, const Call& call) override;

  const Runs& runs() const override { return inner_->runs(); }
  KeySet keys(const Var& k, const Var& v, const KeyOptions& options) override { return inner_->keys(k, v, options); }
  Var prefix(const Var& x, int64_t window) override { return inner_->prefix(x, window); }
  Var recur(const RecurrenceVars& input, const ops::RecurrenceOptions& options) override {
    return inner_->recur(input, options);
  }
  Var decay_scan(const Var& x, const Var& log_decay) override { return inner_->decay_scan(x, log_decay); }
  Var recur_chunks(const RecurrenceVars& input, const ops::RecurrenceOptions& options, const Chunks& chunks) override {
    return inner_->recur_chunks(input, options, chunks);
  }
  Neighbours neighbours(const Var& x, int64_t before, int64_t after) override {
    return inner_->neighbours(x, before, after);
  }
  std::vector<Var> gather(std::span<const Var> values, int64_t window) override {
    return inner_->gather(values, window);
  }
  const GatheredTokens& gathered(int64_t window) override { return inner_->gathered(window); }
  Var sum(const Var& x, Over over) override { return inner_->sum(x, over); }
  ops::AttentionStatistics statistics(const QuerySet& queries, const KeySet& keys, const State& state,
                                      const Call& call) override {
    return inner_->statistics(queries, keys, state, call);
  }
  KeySet keys_here(const KeySet& keys) override { return inner_->keys_here(keys); }
  KeysOfRows keys_of_rows(const KeySet& keys) override { return inner_->keys_of_rows(keys); }
  Tensor sum_of_ranks(const Tensor& x) override { return inner_->sum_of_ranks(x); }
  Var settled(const Var& y) override { return inner_->settled(y); }
  void finish_step() override { inner_->finish_step(); }

 private:
  void report(const QuerySet& queries, const KeySet& keys, const State& state, const Call& call);
  Tensor weights(const QuerySet& queries, const KeysOfRows& of, const Var& lse, const Call& call);

  std::unique_ptr<Mixing> inner_;
  Observation& watcher_;
  Sharing& reports_;
};

}  // namespace weft
