// Normalised attention (2005.09561) in linear sums. One call of the core with the scores themselves as weights, on values [v, k, 1], gives
//   sum s v,  sum s k (so that sum s^2 = scale q . sum s k),  sum s
// and with y = sum v over the n keys that the query sees, mu = sum s / n, var = sum s^2 / n - mu^2:
//   out = (g (sum s v - mu y) / sqrt(var + eps) + b y) / sqrt(n)
// B batch, T tokens, D model width, H heads, G key/value heads, K head width. Sums are f32 or wider.
#include <cmath>

#include "weft/nn/mixers/compositions.h"
#include "weft/nn/mixers/projected.h"

namespace weft {

namespace {

class Nap final : public ProjectedMixer {
 public:
  Nap(const NapOptions& o, const MixerArgs& args, Rng rng)
      : ProjectedMixer("nap", {o.heads, o.kv_heads, o.head_dim}, args, rng),
        o_(o),
        gain_(Tensor::full({s_.heads}, 1)),
        bias_(Tensor::zeros({s_.heads})) {
    name_parts({{"gain", gain_}, {"bias", bias_}});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    const DType dtype = x_BTD.dtype(), wide = dtype == kF64 ? kF64 : kF32;
    const int64_t K = s_.head_dim;
    const double scale = 1 / std::sqrt(static_cast<double>(K));
    Var q = cast(rotated(queries(x_BTD), args_, tokens), wide);
    Var k = cast(rotated(keys(x_BTD), args_, tokens), wide);
    Var v = cast(values(x_BTD), wide);
    Var one = Tensor::full({v.size(0), v.size(1), v.size(2), 1}, 1, wide, v.device());
    const Var values[] = {v, k, one};
    Var sums = tokens.attend(q, k, concatenate(values, -1),
                             {.scale = scale, .mask = {.window = o_.window}, .normaliser = ops::Normaliser::sum})[0];
    Var n = unsqueeze(unsqueeze(cast(Var(tokens.visible_keys(o_.window)), wide), -1), -1);
    Var mean = slice(sums, -1, 2 * K, 2 * K + 1) / n;
    Var squares = sum(q * slice(sums, -1, K, 2 * K), -1, true) * scale / n;
    Var variance = maximum(squares - square(mean), Tensor::zeros({}, wide, v.device()));
    Var seen = per_query_head(sum_of_seen(v, tokens));
    Var centred = (slice(sums, -1, 0, K) - mean * seen) * rsqrt(variance + 1e-5);
    auto per_head = [&](const Param& p) { return unsqueeze(cast(p, wide), -1); };
    Var y = centred * per_head(gain_) + seen * per_head(bias_);
    if (o_.divides_by_root) y = y * rsqrt(n);
    return written(cast(y, dtype), tokens);
  }

  double flops_per_token(double keys) const override {
    return 6.0 * static_cast<double>(s_.heads * 3 * s_.head_dim) * keys;
  }
  double keys_per_query(int64_t context) const override { return causal_keys(context, o_.window); }

 private:
  Var sum_of_seen(const Var& v_BTGK, Tokens& tokens) const {
    Var sums = tokens.scan(v_BTGK);
    return o_.window > 0 ? sums - tokens.shift(sums, o_.window) : sums;
  }

  NapOptions o_;
  Param gain_, bias_;  // [H]
};

}  // namespace

std::unique_ptr<Mixer> NapOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<Nap>(*this, args, rng);
}

}  // namespace weft
