// Normalised attention (2005.09561) in linear sums. The standardised scores do not change when all scores of a query move by one number,
// and they sum to 0, so that all values may move by one vector. With k_0 and v_0 those of the document's first token, and m the mean of
// k - k_0 over the n keys that the query sees, all without gradient, nothing is a difference of large sums:
//   s_j = scale q . (k_j - k_0 - m),  u_j = v_j - v_0
// One call of the core with these scores as weights, with queries [q, -q . m] and keys [k - k_0, 1], on values [u, k - k_0, 1], gives
//   sum s u,  sum s [k - k_0, 1] (so that sum s^2 = scale [q, -q . m] . it),  sum s
// and with mu = sum s / n, which is 0 to rounding, var = sum s^2 / n - mu^2:
//   out = (g (sum s u - mu sum u) / sqrt(var + eps) + b sum v) / sqrt(n)
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
    Var n = unsqueeze(unsqueeze(cast(Var(tokens.visible_keys(o_.window)), wide), -1), -1);
    Var q = cast(rotated(queries(x_BTD), args_, tokens), wide);
    Var k = from_first(cast(rotated(keys(x_BTD), args_, tokens), wide), tokens);
    Var v = cast(values(x_BTD), wide);
    Var one = Tensor::full({v.size(0), v.size(1), v.size(2), 1}, 1, wide, v.device());
    Var mean_key = per_query_head(tokens.scan(k.detach(), o_.window) / n);
    const Var query_parts[] = {q, -sum(q.detach() * mean_key, -1, true)}, key_parts[] = {k, one};
    q = concatenate(query_parts, -1), k = concatenate(key_parts, -1);
    Var u = from_first(v, tokens);
    const Var parts[] = {u, k};
    const ops::AttentionOptions core{.scale = scale, .mask = {.window = o_.window}, .normaliser = ops::Normaliser::sum};
    const QuerySet all = tokens.queries(q);
    KeySet seen_keys = tokens.keys(k, concatenate(parts, -1), {.window = o_.window});
    Var sums = tokens.attend_part(all, seen_keys, core)[0];
    seen_keys.v = v;  // as whoever watches knows them
    tokens.observe(all, seen_keys, {}, core, {});
    Var mean = slice(sums, -1, 2 * K, 2 * K + 1) / n;
    Var squares = sum(q * slice(sums, -1, K, 2 * K + 1), -1, true) * scale / n;
    Var variance = maximum(squares - square(mean), Tensor::zeros({}, wide, v.device()));
    auto seen = [&](const Var& x_BTGK) { return per_query_head(tokens.scan(x_BTGK, o_.window)); };
    Var centred = (slice(sums, -1, 0, K) - mean * seen(u)) * rsqrt(variance + 1e-5);
    auto per_head = [&](const Param& p) { return unsqueeze(cast(p, wide), -1); };
    Var y = centred * per_head(gain_) + seen(v) * per_head(bias_);
    if (o_.divides_by_root) y = y * rsqrt(n);
    return written(cast(y, dtype), tokens);
  }

  double flops_per_token(double keys) const override {
    return 6.0 * static_cast<double>(s_.heads * 3 * s_.head_dim) * keys;
  }
  double keys_per_query(int64_t context) const override { return causal_keys(context, o_.window); }

 private:
  // Less what the first token of the document has, which gets no gradient.
  static Var from_first(const Var& x_BTGK, Tokens& tokens) {
    Var one_BT11 = Tensor::full({x_BTGK.size(0), x_BTGK.size(1), 1, 1}, 1, x_BTGK.dtype(), x_BTGK.device());
    Var is_first = one_BT11 - tokens.shift(one_BT11, 1);
    return x_BTGK - tokens.scan(x_BTGK.detach() * is_first);
  }

  NapOptions o_;
  Param gain_, bias_;  // [H]
};

}  // namespace

std::unique_ptr<Mixer> NapOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<Nap>(*this, args, rng);
}

}  // namespace weft
