#include "src/nn/mixing/observed.h"

#include <algorithm>

#include "weft/core/error.h"

namespace weft {

namespace {

// lse of a row with its sink.
Var with_sink(const Var& lse_BTH, const Var& sink) {
  if (!sink.defined()) return lse_BTH;
  Var u = expand(cast(sink, lse_BTH.dtype()), lse_BTH.shape());
  return maximum(lse_BTH, u) + log(exp(-abs(lse_BTH - u)) + 1.0);
}

}  // namespace

void Observed::show(const QuerySet& queries, const KeySet& keys, const State& state, const Call& call) {
  if (!reports_.takes_reports() && !watcher_.shows_weights()) return;
  NoGrad no_grad;
  const int64_t num_tokens = keys.is_of_this_rank ? queries.q.size(1) : inner_->gathered(0).positions.size(1);
  WEFT_CHECK(keys.k.size(1) == num_tokens,
             str("observe: keys are ", keys.k.value(), ", the tokens ", num_tokens, " of each row"),
             "show the keys of all tokens, and hide those that are not chosen by a bias of -infinity");
  Call how{.options = call.options, .sink = call.sink, .is_shown = false};
  how.options.dropout = 0, how.options.backend = ops::AttentionBackend::automatic;
  if (reports_.takes_reports()) report(queries, inner_->keys_here(keys), state, how);
  if (watcher_.shows_weights())
    watcher_.show_weights(weights(queries, inner_->keys_of_rows(keys), state.lse, how),
                          how.options.normaliser == ops::Normaliser::softmax);
}

void Observed::report(const QuerySet& queries, const KeySet& keys, const State& state, const Call& call) {
  const Var merged = with_sink(log_sums(*inner_, queries, keys, state, call), call.sink);
  watcher_.report_attention(inner_->statistics(queries, keys, {state.out, merged}, call), keys.v);
  if (call.sink.defined())
    reports_.report_means("sink_mass", exp(expand(cast(call.sink, merged.dtype()), merged.shape()) - merged));
}

// Column `place` of the identity for each key that stands there, columns begin .. begin + width - 1: [B, S, G, width].
static Var unit_columns(const KeySet& keys, std::span<const int32_t> places, int64_t begin, int64_t width) {
  const Var& k = keys.k;
  const int64_t B = k.size(0), S = k.size(1), G = k.size(2);
  Tensor columns = Tensor::zeros({B, S, 1, width}, kF32, Device::cpu());
  for (int64_t i = 0; i < B * S; ++i) {
    const int64_t column = (places.empty() ? i % S : places[static_cast<size_t>(i)]) - begin;
    if (column >= 0 && column < width) columns.mutable_data<float>()[i * width + column] = 1;
  }
  const Var unit = cast(to(columns, k.device()), k.dtype());
  return reshape(expand(unit, {B, S, G, width}) * 1.0, {B, S, G, width});
}

// The core with columns of the identity as values gives columns of the weights. A sink leaves a share of them.
Tensor Observed::weights(const QuerySet& queries, const KeysOfRows& of, const Var& lse, const Call& call) {
  constexpr int64_t kColumns = 64;
  const DType dtype = queries.q.dtype() == kF64 ? kF64 : kF32;
  const int64_t S = of.keys.k.size(1);
  std::vector<Var> parts;
  for (int64_t begin = 0; begin < S; begin += kColumns) {
    KeySet of_columns = of.keys;
    of_columns.v = unit_columns(of.keys, of.places, begin, std::min(kColumns, S - begin));
    parts.push_back(cast(inner_->attend(queries, of_columns, call).out, dtype));
  }
  Var weights = concatenate(parts, -1);
  parts.clear();
  if (!call.sink.defined()) return weights.value();
  const Var sums = log_sums(*inner_, queries, of.keys, {{}, lse}, call);
  return (weights * unsqueeze(cast(exp(sums - with_sink(sums, call.sink)), dtype), -1)).value();
}

}  // namespace weft
