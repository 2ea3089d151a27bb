// The layers of a language model and the residual state between them.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "weft/autograd/recompute.h"
#include "weft/models/language_model.h"

namespace weft {
namespace {

LanguageModelOptions tiny() {
  return {.vocab = 11,
          .dim = 16,
          .layers = 2,
          .context = 12,
          .norm = {},
          .mixers = {SoftmaxOptions{.heads = 4, .kv_heads = 2, .qk_norm = QkNorm::rms}},
          .ffn = {.hidden = 24}};
}

Tensor ids(int64_t batch, int64_t tokens, uint64_t seed = 1) {
  Tensor t = Tensor::empty({batch, tokens}, kI32);
  for (int64_t i = 0; i < batch * tokens; ++i)
    t.mutable_data<int32_t>()[i] = static_cast<int32_t>(Rng(seed).below(11, static_cast<uint64_t>(i)));
  return t;
}

// The model's norms as norms of one's own, which see the finished sum.
class OwnOfKind final : public OwnNorm {
 public:
  OwnOfKind(const NormArgs& args, NormKind kind) : eps_(args.eps), weight_(Tensor::full({args.dim}, 1)) {
    name_part({"weight", weight_});
    if (kind == NormKind::rms) return;
    bias_ = std::make_unique<Param>(Tensor::zeros({args.dim}));
    name_part({"bias", *bias_});
  }
  Var forward(const Var& x) const override {
    return bias_ ? layer_norm(x, weight_, *bias_, eps_) : rms_norm(x, weight_, eps_);
  }

 private:
  double eps_;
  Param weight_;
  std::unique_ptr<Param> bias_;
};

TEST(Blocks, NormsThatAddTheLastTermGiveTheBitsOfThoseThatDoNot) {
  for (NormKind kind : {NormKind::rms, NormKind::layer})
    for (DType compute : {kF32, kBF16, kF64})
      for (Recompute recompute : {Recompute::none, Recompute::mixers, Recompute::blocks}) {
        SCOPED_TRACE(
            str(compute, kind == NormKind::rms ? " rms" : " layer", ", recompute ", static_cast<int>(recompute)));
        auto run = [&](bool is_own) {
          LanguageModelOptions options = tiny();
          options.norm.kind = kind;
          options.layers = 3;
          options.recompute = recompute;
          if (is_own)
            options.own_norm = [kind](const NormArgs& args, Rng) { return std::make_unique<OwnOfKind>(args, kind); };
          LanguageModel model(options, Rng(5));
          model.set_compute(compute);
          Tokens tokens(plain_tokens(2, 8), {.is_training = true, .rng = Rng(9)});
          LanguageModelLoss loss = model.loss(ids(2, 8), ids(2, 8, 4), tokens, 0.1);
          backward(loss.loss);
          std::vector<std::vector<double>> all{cast(Var(loss.losses), kF64).value().to_vector<double>()};
          for (const NamedParam& p : model.params())
            all.push_back(cast(Var(p.param->grad()), kF64).value().to_vector<double>());
          return all;
        };
        EXPECT_TRUE(run(false) == run(true));
      }
}

}  // namespace
}  // namespace weft
