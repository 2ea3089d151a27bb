#include "weft/models/mixing_calls.h"

#include <algorithm>

#include "src/nn/mixing/mixing.h"
#include "weft/core/dry_run.h"
#include "weft/core/scope.h"
#include "weft/nn/tokens.h"

namespace weft {

namespace {

// Notes what passes the seam.
class Noted final : public Mixing {
 public:
  Noted(std::unique_ptr<Mixing> inner, MixingCalls& calls) : inner_(std::move(inner)), calls_(calls) {}

  KeySet keys(const Var& k, const Var& v, const KeyOptions& options) override {
    serves_one_call_ = options.serves_one_call;
    are_values_in_keys_ = !v.defined();
    return inner_->keys(k, v, options);
  }
  State attend(const QuerySet& queries, const KeySet& keys, const Call& call) override {
    const ops::AttentionMask& mask = call.options.mask;
    AttentionCall of{.heads = queries.q.size(2),
                     .kv_heads = keys.k.size(2),
                     .key_width = keys.k.size(3),
                     .value_width = keys.v.size(3),
                     .window = mask.window,
                     .has_plan = mask.is_causal && mask.prefix == 0,
                     .are_values_in_keys = are_values_in_keys_,
                     .is_gathered = !serves_one_call_ || keys.is_of_this_rank,  // chosen ones
                     .where = Scope::path()};
    std::vector<AttentionCall>& all = calls_.attention;
    if (std::ranges::none_of(all, [&](const AttentionCall& known) { return known.is_like(of); }))
      all.push_back(std::move(of));
    return inner_->attend(queries, keys, call);
  }
  Var prefix(const Var& x, int64_t window) override {
    calls_.has_running_sums = true;
    return inner_->prefix(x, window);
  }
  Var recur(const RecurrenceVars& input, const ops::RecurrenceOptions& options) override {
    calls_.has_running_sums = true;
    note({.key_heads = input.q_BTGK.size(2),
          .heads = input.v_BTHV.size(2),
          .key_width = input.q_BTGK.size(3),
          .value_width = input.v_BTHV.size(3),
          .is_delta = input.beta.defined(),
          .are_of_values = options.side == ops::DecaySide::value});
    return inner_->recur(input, options);
  }
  Var decay_scan(const Var& x, const Var& log_decay) override {
    calls_.has_running_sums = true;
    note({.key_heads = x.size(2), .heads = x.size(2), .is_elementwise = true});
    return inner_->decay_scan(x, log_decay);
  }
  Var recur_chunks(const RecurrenceVars& input, const ops::RecurrenceOptions& options, const Chunks& chunks) override {
    calls_.gathers_tokens = true;
    return inner_->recur_chunks(input, options, chunks);
  }
  Neighbours neighbours(const Var& x, int64_t before, int64_t after) override {
    calls_.has_neighbours = true;
    note({.tokens = before + after, .numbers = x.value().num_elements() / (x.size(0) * x.size(1)), .dtype = x.dtype()});
    return inner_->neighbours(x, before, after);
  }
  std::vector<Var> gather(std::span<const Var> values, int64_t window) override {
    calls_.gathers_tokens = true;
    return inner_->gather(values, window);
  }

  const Runs& runs() const override { return inner_->runs(); }
  const GatheredTokens& gathered(int64_t window) override { return inner_->gathered(window); }
  Var sum(const Var& x, Over over) override { return inner_->sum(x, over); }
  ops::AttentionStatistics statistics(const QuerySet& queries, const KeySet& keys, const State& state,
                                      const Call& call) override {
    return inner_->statistics(queries, keys, state, call);
  }
  Var settled(const Var& y) override { return inner_->settled(y); }

 private:
  void note(RecurrenceCall of) {
    for (RecurrenceCall& known : calls_.recurrences)
      if (known.is_like(of)) {
        ++known.count;
        return;
      }
    calls_.recurrences.push_back(of);
  }

  void note(NeighbourCall of) {
    for (NeighbourCall& known : calls_.neighbours)
      if (known.tokens == of.tokens && known.numbers == of.numbers && known.dtype == of.dtype) {
        ++known.count;
        return;
      }
    calls_.neighbours.push_back(of);
  }

  std::unique_ptr<Mixing> inner_;
  MixingCalls& calls_;
  bool serves_one_call_ = false, are_values_in_keys_ = false;  // of the keys handed out last
};

}  // namespace

bool AttentionCall::is_like(const AttentionCall& o) const {
  return heads == o.heads && kv_heads == o.kv_heads && key_width == o.key_width && value_width == o.value_width &&
         window == o.window && has_plan == o.has_plan && are_values_in_keys == o.are_values_in_keys &&
         is_gathered == o.is_gathered;
}

bool RecurrenceCall::is_like(const RecurrenceCall& o) const {
  return key_heads == o.key_heads && heads == o.heads && key_width == o.key_width && value_width == o.value_width &&
         is_delta == o.is_delta && are_of_values == o.are_of_values && is_elementwise == o.is_elementwise;
}

dist::CarryShape RecurrenceCall::shape(const dist::SegmentCounts& segments, int ranks, DType dtype) const {
  return {.ranks = ranks,
          .segments = segments,
          .key_heads = key_heads,
          .heads = heads,
          .key_width = key_width,
          .value_width = value_width,
          .is_delta = is_delta,
          .are_of_values = are_of_values,
          .is_elementwise = is_elementwise,
          .dtype = dtype};
}

int64_t MixingCalls::window() const {
  int64_t widest = 0;
  for (const AttentionCall& call : attention) {
    if (call.window == 0 || !call.has_plan) return 0;
    widest = std::max(widest, call.window);
  }
  return widest;
}

std::string MixingCalls::where_not(dist::Scheme scheme, int ranks, int ranks_per_node) const {
  for (const AttentionCall& call : attention) {
    if (call.is_gathered) continue;
    const dist::SchemeOptions fitting = dist::default_options(scheme, ranks, call.heads, ranks_per_node);
    const std::string problem = dist::scheme_problem(scheme, ranks, call.heads, fitting);
    if (!problem.empty()) return str(call.where, ": ", problem);
  }
  return "";
}

MixingCalls mixing_calls(const LanguageModelOptions& options, DType compute, int64_t tokens) {
  MixingCalls calls;
  DryRun dry;
  LanguageModelOptions of = options;
  of.recompute = Recompute::none;
  of.fixed_text.resize(static_cast<size_t>(of.context));  // for mixers that read one
  LanguageModel model(of, Rng(0));
  model.set_compute(compute);
  Tokens here(plain_tokens(1, tokens), {.is_training = true, .mixing = [&](std::unique_ptr<Mixing> inner) {
                                          return std::make_unique<Noted>(std::move(inner), calls);
                                        }});
  NoGrad no_grad;
  model.hidden(Tensor::zeros({1, tokens}, kI32), here);
  return calls;
}

}  // namespace weft
