// Linear attention (2006.16236) and FAST with p = 2 (2402.07901).
//   o_t = f(q_t) S_t / (f(q_t) . z_t),   S_t = sum f(k_j)^T v_j,   z_t = sum f(k_j),   j <= t
// The sum z is one channel more of the values, which holds ones. elu1: f(x) = elu(x) + 1, then an RMSNorm per head. taylor2: of x with mean 0
// and variance 1, f(x) = [1, x, x_a x_b / sqrt(2)], so that f(q) . f(k) = 1 + s + s^2 / 2 with s = q . k. q, k and v are x W, or silu(conv(x W)).
// B batch, T tokens, D model width, H heads, K head width.
#include <cmath>

#include "src/nn/mixers/recurrent/parts.h"
#include "weft/nn/mixers/projected.h"
#include "weft/nn/mixers/recurrent.h"

namespace weft {

namespace {

using namespace recurrent;

class LinearAttention final : public ProjectedMixer {
 public:
  LinearAttention(const LinearAttentionOptions& o, const MixerArgs& args, Rng rng)
      : ProjectedMixer("linear attention", {o.heads, o.heads, o.head_dim}, unrotated(args), rng),
        o_(o),
        q_conv_(s_.heads * s_.head_dim, o.kernel, rng["q_conv"]),
        k_conv_(s_.heads * s_.head_dim, o.kernel, rng["k_conv"]),
        v_conv_(s_.heads * s_.head_dim, o.kernel, rng["v_conv"]) {
    name_parts({{"q_conv", q_conv_}, {"k_conv", k_conv_}, {"v_conv", v_conv_}});
    if (o.feature_map != FeatureMap::elu1) return;
    head_norm_ = std::make_unique<Norm>(s_.head_dim, NormOptions{.eps = 1e-5});
    name_part({"head_norm", *head_norm_});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    Var q = q_conv_(queries(x_BTD), tokens), k = k_conv_(keys(x_BTD), tokens), v = v_conv_(values(x_BTD), tokens);
    const Var parts[] = {v, Tensor::full({v.size(0), v.size(1), v.size(2), 1}, 1, v.dtype(), v.device())};
    Var sums = tokens.recur({features(q), features(k), concatenate(parts, -1)});
    constexpr double kEps = 1e-6;
    Var y = slice(sums, -1, 0, s_.head_dim) / (slice(sums, -1, s_.head_dim, s_.head_dim + 1) + kEps);
    return written(head_norm_ ? (*head_norm_)(y) : y, tokens);
  }

  double flops_per_token(double) const override { return recurrence_flops(s_.heads, num_features(), s_.head_dim + 1); }

 private:
  int64_t num_features() const {
    const int64_t K = s_.head_dim;
    return o_.feature_map == FeatureMap::elu1 ? K : 1 + K + K * K;
  }

  Var features(const Var& x_BTHK) const {
    if (o_.feature_map == FeatureMap::elu1) return elu1(x_BTHK);
    const int64_t B = x_BTHK.size(0), T = x_BTHK.size(1), H = s_.heads, K = s_.head_dim;
    Var x = rms_normed(x_BTHK - mean(x_BTHK, -1, true), 1e-6);
    Var pairs = reshape(unsqueeze(x * std::sqrt(0.5), 4) * unsqueeze(x, 3), {B, T, H, K * K});
    const Var parts[] = {Tensor::full({B, T, H, 1}, 1, x.dtype(), x.device()), x, pairs};
    return concatenate(parts, -1);
  }

  LinearAttentionOptions o_;
  ShortConv q_conv_, k_conv_, v_conv_;
  std::unique_ptr<Norm> head_norm_;
};

}  // namespace

std::unique_ptr<Mixer> LinearAttentionOptions::operator()(const MixerArgs& args, Rng rng) const {
  check_kernel("linear_attention", kernel);
  return std::make_unique<LinearAttention>(*this, args, rng);
}

}  // namespace weft
