// Rank-augmented linear attention (RALA, 2411.07635), causal. Of q, k = elu(x W) + 1, with n the number of tokens so far and sums over them:
//   s = k . (sum q / n) / sqrt(K),   k' = k n exp(s) / sum exp(s),   z = 1 / (q . sum k' / n + 1e-6)
//   o = z rot(q) sum rot(k')^T v / n + conv(v),   y = (o * x Wg) Wo
// Published for images: means and sums run over all positions, and conv over a square of them.
// B batch, T tokens, D model width, H heads, K head width.
#include "src/nn/mixers/recurrent/parts.h"
#include "weft/core/error.h"
#include "weft/nn/mixers/projected.h"
#include "weft/nn/mixers/recurrent.h"

namespace weft {

namespace {

using namespace recurrent;

class Rala final : public ProjectedMixer {
 public:
  Rala(const RalaOptions& o, const MixerArgs& args, Rng rng)
      : ProjectedMixer("rala", {o.heads, o.heads, 0}, args, rng),
        gate_(args.dim, args.dim, rng["gate"], {.std = args.std}),
        v_conv_(args.dim, o.kernel, rng["v_conv"], {.has_silu = false}) {
    name_parts({{"gate", gate_}, {"v_conv", v_conv_}});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    const DType dtype = x_BTD.dtype(), sums = wide(x_BTD);
    Var q = elu1(cast(queries(x_BTD), sums)), k = elu1(cast(keys(x_BTD), sums)), v = values(x_BTD);
    Var n_BT11 = cast(Var(tokens.visible_keys().unsqueeze(2).unsqueeze(3)), sums);
    Var scores_BTH1 = sum(k * (tokens.scan(q) / n_BT11), -1, true) * inverse_root(s_.head_dim);
    Var sizes = summed_exp("rala: a score k . mean(q) / sqrt(K)", scores_BTH1);
    k = k * (n_BT11 * cast(sizes / tokens.scan(sizes), sums));
    Var norm_BTH1 = sum(q * (tokens.scan(k) / n_BT11), -1, true) + 1e-6;
    Var o = tokens.recur({rotated(cast(q, dtype), args_, tokens), rotated(cast(k, dtype), args_, tokens), v});
    Var y = o * cast(1.0 / (norm_BTH1 * n_BT11), dtype) + v_conv_(v, tokens);
    return written(y * split_heads(gate_(x_BTD), s_.heads), tokens);
  }

  double flops_per_token(double) const override { return recurrence_flops(s_.heads, s_.head_dim, s_.head_dim); }

 private:
  Linear gate_;
  ShortConv v_conv_;
};

}  // namespace

std::unique_ptr<Mixer> RalaOptions::operator()(const MixerArgs& args, Rng rng) const {
  WEFT_CHECK(kernel >= 1, str("rala: kernel ", kernel), "use 1 or more");
  return std::make_unique<Rala>(*this, args, rng);
}

}  // namespace weft
