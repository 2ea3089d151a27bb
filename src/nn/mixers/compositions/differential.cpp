// Differential attention (2410.05258): a head subtracts one softmax from another, so that what both see alike cancels.
//   y = (softmax(q1 k1^T / sqrt(K / 2)) - lambda softmax(q2 k2^T / sqrt(K / 2))) v,   head = (1 - lambda_init) RMSNorm(y)
//   lambda = exp(a1 . b1) - exp(a2 . b2) + lambda_init,   lambda_init = 0.8 - 0.6 exp(-0.3 layer), layer = 0, 1, ...
// q1 and q2 are the halves of a head's query, k1 and k2 those of its key; all heads of a layer share lambda and the norm's gain.
// B batch, T tokens, H heads, G key/value heads, K head width.
#include <cmath>

#include "weft/core/error.h"
#include "weft/nn/mixers/compositions.h"
#include "weft/nn/mixers/projected.h"

namespace weft {

namespace {

class Differential final : public ProjectedMixer {
 public:
  Differential(const DifferentialOptions& o, const MixerArgs& args, Rng rng)
      : ProjectedMixer("differential", {o.heads, o.kv_heads, o.head_dim}, args, rng),
        lambda_init_(0.8 - 0.6 * std::exp(-0.3 * static_cast<double>(args.layer))),
        norm_(s_.head_dim, NormOptions{NormKind::rms, args.norm_eps}) {
    const int64_t half = s_.head_dim / 2;
    WEFT_CHECK(s_.head_dim % 2 == 0 && (!args.rotary || half % 2 == 0),
               str("differential: head_dim ", s_.head_dim, " has no halves", args.rotary ? " that can be rotated" : ""),
               str("choose heads or head_dim so that head_dim is a multiple of ", args.rotary ? 4 : 2));
    constexpr double kStd = 0.1;
    for (std::string_view name : {"q1", "k1", "q2", "k2"})
      lambda_.push_back(std::make_unique<Param>(normal_init({half}, rng["lambda"][name], kStd)));
    name_parts({{"lambda_q1", *lambda_[0]},
                {"lambda_k1", *lambda_[1]},
                {"lambda_q2", *lambda_[2]},
                {"lambda_k2", *lambda_[3]},
                {"head_norm", norm_}});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    const Var q_BTHK = queries(x_BTD), k_BTGK = keys(x_BTD), v_BTGK = values(x_BTD);
    auto half = [&](const Var& x, int64_t n) {
      const int64_t width = s_.head_dim / 2;
      return rotated(slice(x, -1, n * width, (n + 1) * width), args_, tokens);
    };
    Var first = tokens.attend(half(q_BTHK, 0), half(k_BTGK, 0), v_BTGK)[0];
    Var second = tokens.attend(half(q_BTHK, 1), half(k_BTGK, 1), v_BTGK)[0];
    Var y_BTHK = first - second * cast(lambda(x_BTD.dtype() == kF64 ? kF64 : kF32), second.dtype());
    return written(norm_(y_BTHK) * (1 - lambda_init_), tokens);
  }

  double flops_per_token(double keys) const override {
    return 18.0 * static_cast<double>(s_.heads * s_.head_dim) * keys;
  }

 private:
  Var lambda(DType wide) const {
    auto product = [&](size_t a, size_t b) { return exp(sum(cast(*lambda_[a], wide) * cast(*lambda_[b], wide), 0)); };
    return product(0, 1) - product(2, 3) + lambda_init_;
  }

  double lambda_init_;
  std::vector<std::unique_ptr<Param>> lambda_;  // a1, b1, a2, b2: [K / 2]
  Norm norm_;
};

}  // namespace

std::unique_ptr<Mixer> DifferentialOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<Differential>(*this, args, rng);
}

}  // namespace weft
