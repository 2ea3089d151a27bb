// Forgetting attention (FoX, 2503.02130): a gate per head and token says how much of everything before it is left.
//   s_ij = q_i . k_j / sqrt(K) + sum over l = j + 1 .. i of log f_l,   f_t = sigmoid(w . x_t + b)
// As biases of scores: with c_t the running sum of log f over the document, the sum is c_i - c_j. Running sums are f64.
// B batch, T tokens, D model width, H heads, K head width.
#include "weft/nn/mixers/compositions.h"
#include "weft/nn/mixers/projected.h"

namespace weft {

namespace {

class Forgetting final : public ProjectedMixer {
 public:
  Forgetting(const ForgettingOptions& o, const MixerArgs& args, Rng rng)
      : ProjectedMixer("forgetting", {o.heads, o.kv_heads, o.head_dim}, args, rng),
        has_rotation_(o.has_rotation),
        gate_(args.dim, s_.heads, rng["gate"], {.has_bias = true, .std = args.std}) {
    name_part({"gate", gate_});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    auto placed = [&](const Var& heads) { return has_rotation_ ? rotated(heads, args_, tokens) : heads; };
    Var sums_BTH = tokens.scan(log_gates(x_BTD));
    Var y_BTHK = tokens.attend(placed(queries(x_BTD)), placed(keys(x_BTD)), values(x_BTD), {}, {},
                               {.query = sums_BTH, .key = -sums_BTH})[0];
    return written(y_BTHK, tokens);
  }

  double flops_per_token(double keys) const override {
    return 12.0 * static_cast<double>(s_.heads * s_.head_dim) * keys;
  }

 private:
  // Errors of many gates add up in their sum: not rounded to bf16.
  Var log_gates(const Var& x_BTD) {
    const DType wide = x_BTD.dtype() == kF64 ? kF64 : kF32;
    Var z_BTH = matmul(x_BTD, gate_.weight(), {.transpose_b = true, .out = wide}) + gate_.bias_as(wide);
    return log_sigmoid(cast(z_BTH, kF64));
  }

  bool has_rotation_;
  Linear gate_;
};

}  // namespace

std::unique_ptr<Mixer> ForgettingOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<Forgetting>(*this, args, rng);
}

}  // namespace weft
