// Optimised, efficient and super attention (2403.01643): heads read slices of x where a projection is left out.
//   optimised q = x W_Q, k = x W_K, v = x;  efficient k = x too;  super v_i = sum_(j <= i) W_A[i, j] x_j, k = x
// Positions of W_A are those within the document. B batch, T tokens, S tokens so far, D model width, H heads, K head width.
#include "src/nn/mixers/pair_scores/pair_scores.h"
#include "weft/core/error.h"
#include "weft/nn/mixers/compositions.h"
#include "weft/nn/mixers/projected.h"

namespace weft {

namespace {

Tensor identity(int64_t n) {
  Tensor eye = Tensor::zeros({n, n}, kF32, Device::cpu());
  for (int64_t i = 0; i < n; ++i) eye.mutable_data<float>()[i * n + i] = 1;
  return to(eye, default_device()).value();
}

class Simplified final : public Mixer {
 public:
  Simplified(const SimplifiedOptions& o, const MixerArgs& args, Rng rng)
      : kind_(o.kind),
        heads_(o.heads),
        args_(args),
        q_(args.dim, args.dim, rng["q"], {.std = args.std}),
        out_(args.dim, args.dim, rng["out"], {.std = args.out_std}) {
    completed("simplified", {o.heads, o.heads, 0}, args);
    name_parts({{"q", q_}, {"out", out_}});
    if (kind_ == SimplifiedKind::optimised) {
      k_ = std::make_unique<Linear>(args.dim, args.dim, rng["k"], LinearOptions{.std = args.std});
      name_part({"k", *k_});
    }
    if (kind_ == SimplifiedKind::super) {
      WEFT_CHECK(args.context >= 1, str("simplified: super attention for a context of ", args.context),
                 "give the training context: it is the longest sequence");
      mix_ = std::make_unique<Param>(identity(args.context));
      name_part({"mix", *mix_});
    }
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    Var q = rotated(split_heads(q_(x_BTD), heads_), args_, tokens);
    Var k = rotated(split_heads(k_ ? (*k_)(x_BTD) : x_BTD, heads_), args_, tokens);
    Var v = split_heads(mix_ ? mixed(x_BTD, tokens) : x_BTD, heads_);
    return out_(merge_heads(tokens.heads(tokens.attend(q, k, v)[0])));
  }

  double flops_per_token(double keys) const override {
    return (12.0 + (mix_ ? 6.0 : 0.0)) * static_cast<double>(args_.dim) * keys;
  }

 private:
  Var mixed(const Var& x_BTD, Tokens& tokens) {
    const Var mine[] = {x_BTD};
    Var all_BSD = tokens.gather(mine)[0];
    const int64_t B = x_BTD.size(0), T = x_BTD.size(1), S = all_BSD.size(1);
    for (int32_t position : tokens.cpu_document_positions())
      WEFT_CHECK(position < args_.context,
                 str("super attention: a token at position ", position, ", its triangle has ", args_.context),
                 "use positions and documents up to the model's context");
    check_materialised("super attention", x_BTD, 3, static_cast<double>(B * T) * static_cast<double>(S));
    Var rows_BTC = embedding(*mix_, tokens.document_positions());
    Tensor columns_BTS = tokens.gathered_positions().unsqueeze(1).expand({B, T, S});
    Var weights_BTS = gather(rows_BTC, 2, columns_BTS);
    Var seen = where(tokens.seen(0, T, S), weights_BTS, Tensor::zeros({}, weights_BTS.dtype(), weights_BTS.device()));
    return matmul(cast(seen, all_BSD.dtype()), all_BSD);
  }

  SimplifiedKind kind_;
  int64_t heads_;
  MixerArgs args_;
  Linear q_, out_;
  std::unique_ptr<Linear> k_;
  std::unique_ptr<Param> mix_;  // [context, context]
};

}  // namespace

std::unique_ptr<Mixer> SimplifiedOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<Simplified>(*this, args, rng);
}

}  // namespace weft
