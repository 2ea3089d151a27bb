#include "src/nn/mixing/observed.h"

#include <algorithm>

namespace weft {

namespace {

// lse of a row with its sink.
Var with_sink(const Var& lse_BTH, const Var& sink) {
  if (!sink.defined()) return lse_BTH;
  Var u = expand(cast(sink, lse_BTH.dtype()), lse_BTH.shape());
  return maximum(lse_BTH, u) + log(exp(-abs(lse_BTH - u)) + 1.0);
}

}  // namespace

void Observed::show(const QuerySet& queries, const KeySet& all, const State& state, const Call& call) {
  if (!reports_.takes_reports() && !watcher_.shows_weights()) return;
  NoGrad no_grad;
  const KeySet keys = inner_->keys_here(all);
  Call how{.options = call.options, .is_shown = false};
  how.options.dropout = 0, how.options.backend = ops::AttentionBackend::automatic;
  Var lse = log_sums(*inner_, queries, keys, state, how), merged = with_sink(lse, call.sink);
  if (reports_.takes_reports()) {
    watcher_.report_attention(inner_->statistics(queries, keys, {state.out, merged}, how), keys.v);
    if (call.sink.defined())
      reports_.report_means("sink_mass", exp(expand(cast(call.sink, merged.dtype()), merged.shape()) - merged));
  }
  if (watcher_.shows_weights())
    watcher_.show_weights(weights(queries, keys, call.sink.defined() ? exp(lse - merged) : Var(), how),
                          how.options.normaliser == ops::Normaliser::softmax);
}

// The core with columns of the identity as values gives columns of the weights; `share`: what a sink leaves of them, if there is one.
Tensor Observed::weights(const QuerySet& queries, const KeySet& keys, const Var& share, const Call& call) {
  constexpr int64_t kColumns = 64;
  const Var& k = keys.k;
  const int64_t B = k.size(0), S = k.size(1), G = k.size(2);
  std::vector<Var> parts;
  for (int64_t begin = 0; begin < S; begin += kColumns) {
    const int64_t width = std::min(kColumns, S - begin);
    Tensor columns = Tensor::zeros({S, width}, kF32, Device::cpu());
    for (int64_t j = 0; j < width; ++j) columns.mutable_data<float>()[(begin + j) * width + j] = 1;
    Var unit = cast(to(columns, k.device()), k.dtype()), v = expand(reshape(unit, {1, S, 1, width}), {B, S, G, width});
    KeySet of_columns = keys;
    of_columns.v = reshape(v * 1.0, {B, S, G, width});
    parts.push_back(cast(inner_->attend(queries, of_columns, call).out, kF32));
  }
  Var weights = concatenate(parts, -1);
  if (share.defined()) weights = weights * unsqueeze(cast(share, kF32), -1);
  return weights.value();
}

}  // namespace weft
