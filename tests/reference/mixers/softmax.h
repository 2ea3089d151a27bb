// Softmax attention with its options, materialised, one token after the other.
#pragma once

#include "tests/reference/mixers/parts.h"
#include "weft/nn/mixers/softmax.h"

namespace weft::reference {

inline Numbers softmax_mixer(SoftmaxOptions o, const MixerArgs& args, const Parameters& p, const Tensor& x_BTD,
                             const TokenData& data) {
  Sequence s(x_BTD, data);
  if (o.kv_heads == 0) o.kv_heads = o.heads;
  if (o.head_dim == 0) o.head_dim = args.dim / o.heads;
  const int64_t H = o.heads, G = o.kv_heads, K = o.head_dim;
  Numbers x = values(x_BTD), q = linear(x, s.D, p, "q"), k = linear(x, s.D, p, "k"), v = linear(x, s.D, p, "v");
  if (o.qk_norm) {
    rms_norm(q, K, parameter(p, "q_norm.weight"), args.norm_eps);
    rms_norm(k, K, parameter(p, "k_norm.weight"), args.norm_eps);
  }
  if (args.rotary) {
    rotate(q, s, H, K);
    rotate(k, s, G, K);
  }
  Numbers y = mix(s, H, G, K, v, [&](int64_t b, int64_t i, int64_t h) {
    Numbers row = scores(s, H, G, K, q, k, 1 / std::sqrt(static_cast<double>(K)), o.window, b, i, h);
    for (double& score : row)
      if (o.softcap > 0 && std::isfinite(score)) score = o.softcap * std::tanh(score / o.softcap);
    return softmax(row);
  });
  return linear(y, H * K, p, "out");
}

}  // namespace weft::reference
