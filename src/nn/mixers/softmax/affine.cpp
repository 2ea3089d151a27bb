#include "src/nn/mixers/softmax/affine.h"

namespace weft {

namespace {

// 0 below -5, 1 above 5, 0.1 x + 0.5 between.
Var clipped(const Var& x) {
  Var zero = Tensor::zeros({}, x.dtype(), x.device()), one = Tensor::full({}, 1, x.dtype(), x.device());
  return minimum(maximum(x * 0.1 + 0.5, zero), one);
}

}  // namespace

Affine::Affine(const AffineOptions& options, int64_t dim, int64_t heads, int64_t context, int64_t window, double std,
               Rng rng)
    : o_(options),
      heads_(heads),
      context_(context),
      window_(window),
      alpha_(dim, heads, rng["alpha"], {.std = std}),
      mean_(Tensor::full({heads}, options.initial_mean), options.decay) {
  name_parts({{"alpha", alpha_}, {"mean", mean_}});
}

Var Affine::operator()(const Var& out_BTHV, const Var& v_BTGV, const Var& x_BTD, Tokens& tokens) {
  Scope scope(name());
  const int64_t B = v_BTGV.size(0), T = v_BTGV.size(1), G = v_BTGV.size(2), V = v_BTGV.size(3);
  const DType dtype = out_BTHV.dtype(), wide = dtype == kF64 ? kF64 : kF32;  // sums over thousands of tokens
  Var pre_BTH = cast(alpha_(x_BTD), wide);
  Var a_BTH = o_.has_sigmoid ? sigmoid(pre_BTH) : clipped(pre_BTH);
  tokens.report_means("scale", a_BTH);
  if (tokens.is_training()) tokens.accumulate(mean_, tokens.sum(a_BTH.detach()), tokens.num_counted());

  Var sums_BTGV = tokens.scan(cast(v_BTGV, wide), window_);
  Var bias_BTH = cast(Var(mean_.value()), wide) - a_BTH;
  if (o_.divides_by_context) bias_BTH = bias_BTH * (1 / static_cast<double>(context_));
  else bias_BTH = bias_BTH / unsqueeze(cast(Var(tokens.visible_keys(window_)), wide), -1);
  auto grouped = [&](const Var& per_head) { return reshape(per_head, {B, T, G, heads_ / G, -1}); };
  Var out = grouped(out_BTHV) * cast(grouped(a_BTH), dtype) + cast(grouped(bias_BTH) * unsqueeze(sums_BTGV, 3), dtype);
  return reshape(out, {B, T, heads_, V});
}

}  // namespace weft
