// Flowformer (2202.06258), causal. Of q, k = sigmoid(x W), v = x W, with n the number of tokens so far and sums over them:
//   I = n / (q . sum k),   R = n / (k . sum q)                     what flows into queries and out of keys
//   I' = q . sum (k R) / n,   R' = clamp(k . sum (q I) / n, -1, 1)  the same, where what flows at the other side is conserved
//   w = n exp(R') / sum exp(R'),   o = sigmoid(I') (q I / n) sum k^T (w v)
// with 1e-6 added to q, k and the sums of the first four products. B batch, T tokens, D model width, H heads, K head width.
#include "src/nn/mixers/recurrent/parts.h"
#include "weft/nn/mixers/projected.h"
#include "weft/nn/mixers/recurrent.h"

namespace weft {

namespace {

using namespace recurrent;

class Flow final : public ProjectedMixer {
 public:
  Flow(const FlowOptions& o, const MixerArgs& args, Rng rng)
      : ProjectedMixer("flow", {o.heads, o.heads, 0}, unrotated(args), rng) {}

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    constexpr double kEps = 1e-6;
    const DType dtype = x_BTD.dtype(), sums = wide(x_BTD);
    Var q = sigmoid(cast(queries(x_BTD), sums)), k = sigmoid(cast(keys(x_BTD), sums));
    Var n_BT1 = cast(Var(tokens.visible_keys().unsqueeze(2)), sums);
    auto product = [&](const Var& a, const Var& b_sums) { return sum((a + kEps) * (b_sums + kEps), -1); };
    auto times = [&](const Var& x_BTHK, const Var& factor_BTH) { return x_BTHK * unsqueeze(factor_BTH, 3); };
    Var into = n_BT1 / product(q, tokens.scan(k)), out_of = n_BT1 / product(k, tokens.scan(q));
    Var conserved_into = product(q, tokens.scan(times(k, out_of))) / n_BT1;
    Var conserved_out = exp(clamp(product(k, tokens.scan(times(q, into))) / n_BT1, -1, 1));
    Var weights = n_BT1 * conserved_out / tokens.scan(conserved_out);
    Var written_values = cast(times(cast(values(x_BTD), sums), weights), dtype);
    Var o = tokens.recur({cast(times(q, into / n_BT1), dtype), cast(k, dtype), written_values});
    return written(o * cast(unsqueeze(sigmoid(conserved_into), 3), dtype), tokens);
  }

  double flops_per_token(double) const override { return recurrence_flops(s_.heads, s_.head_dim, s_.head_dim); }
};

}  // namespace

std::unique_ptr<Mixer> FlowOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<Flow>(*this, args, rng);
}

}  // namespace weft
