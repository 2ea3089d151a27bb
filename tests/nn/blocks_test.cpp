// The layers of a language model and the residual state between them.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/nn/model_support.h"
#include "tests/support/errors.h"
#include "weft/autograd/recompute.h"
#include "weft/models/language_model.h"

namespace weft {
namespace {

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
          LanguageModelOptions options = test::tiny_model();
          options.norm.kind = kind;
          options.layers = 3;
          options.recompute = recompute;
          if (is_own)
            options.own_norm = [kind](const NormArgs& args, Rng) { return std::make_unique<OwnOfKind>(args, kind); };
          LanguageModel model(options, Rng(5));
          model.set_compute(compute);
          Tokens tokens(plain_tokens(2, 8), {.is_training = true, .rng = Rng(9)});
          LanguageModelLoss loss = model.loss(test::tiny_ids(2, 8), test::tiny_ids(2, 8, 4), tokens, 0.1);
          backward(loss.loss);
          std::vector<std::vector<double>> all{cast(Var(loss.losses), kF64).value().to_vector<double>()};
          for (const NamedParam& p : model.params())
            all.push_back(cast(Var(p.param->grad()), kF64).value().to_vector<double>());
          return all;
        };
        EXPECT_TRUE(run(false) == run(true));
      }
}

enum class Wrong { width, dtype, nothing };

Var spoilt(const Var& x, Wrong wrong) {
  if (wrong == Wrong::nothing) return {};
  return wrong == Wrong::width ? slice(x, -1, 0, x.size(-1) / 2) : cast(x, kF64);
}

class WrongMixer final : public Mixer {
 public:
  explicit WrongMixer(Wrong wrong) : wrong_(wrong) {}
  Var forward(const Var& x, Tokens&) override { return spoilt(x, wrong_); }
  double flops_per_token(double) const override { return 0; }

 private:
  Wrong wrong_;
};

class WrongFfn final : public Ffn {
 public:
  WrongFfn(Wrong wrong, bool is_wrong) : wrong_(wrong), is_wrong_(is_wrong) {}
  Var forward(const Var& x, Tokens&) override { return is_wrong_ ? spoilt(x, wrong_) : x; }

 private:
  Wrong wrong_;
  bool is_wrong_;
};

class WrongNorm final : public OwnNorm {
 public:
  WrongNorm(Wrong wrong, bool is_wrong) : wrong_(wrong), is_wrong_(is_wrong) {}
  Var forward(const Var& x) const override { return is_wrong_ ? spoilt(x, wrong_) : x; }

 private:
  Wrong wrong_;
  bool is_wrong_;
};

// Also in the last layer, behind which only the model's norm comes, and in a stream that keeps what the sublayers wrote.
TEST(Blocks, APartThatGivesAnotherShapeIsNamed) {
  const std::pair<Wrong, const char*> gave[] = {{Wrong::width, "gave [1, 5, 8] f32 cpu for [1, 5, 16] f32 cpu"},
                                                {Wrong::dtype, "gave [1, 5, 16] f64 cpu for [1, 5, 16] f32 cpu"},
                                                {Wrong::nothing, "gave undefined for [1, 5, 16] f32 cpu"}};
  const ResidualMaker streams[] = {StandardResidualOptions{}, RoutedResidualOptions{}};
  for (const auto& [wrong, text] : gave)
    for (const ResidualMaker& stream : streams)
      for (Recompute recompute : {Recompute::none, Recompute::mixers, Recompute::blocks})
        for (int64_t layer : {0, 1, 3}) {
          SCOPED_TRACE(str(text, ", layer ", layer, ", recompute ", static_cast<int>(recompute)));
          auto error = [&](auto change, const std::string& part, const std::string& where) {
            LanguageModelOptions options = test::tiny_model();
            options.layers = 4;
            options.residual = stream;
            options.recompute = recompute;
            change(options);
            LanguageModel model(options, Rng(1));
            Tokens tokens(plain_tokens(1, 5), {.is_training = true, .rng = Rng(2)});
            return test::error_of([&] { model.loss(test::tiny_ids(1, 5), test::tiny_ids(1, 5), tokens, 1); },
                                  {part + ": " + text, where + " (", "the input's shape and dtype"});
          };
          const std::string here = str("where: model.layers.", layer);
          EXPECT_EQ(
              error(
                  [&](auto& o) {
                    o.mixers.push_back([wrong](const MixerArgs&, Rng) { return std::make_unique<WrongMixer>(wrong); });
                    o.pattern.assign(4, 0);
                    o.pattern[static_cast<size_t>(layer)] = 1;
                  },
                  "mixer", here + ".mixer"),
              "");
          int64_t made = 0;
          EXPECT_EQ(error(
                        [&](auto& o) {
                          o.own_ffn = [&](const FfnArgs&, Rng) {
                            return std::make_unique<WrongFfn>(wrong, made++ == layer);
                          };
                        },
                        "feed-forward network", here + ".ffn"),
                    "");
          made = 0;  // of the model, then two of each layer
          EXPECT_EQ(error(
                        [&](auto& o) {
                          o.own_norm = [&](const NormArgs&, Rng) {
                            return std::make_unique<WrongNorm>(wrong, made++ == 1 + 2 * layer);
                          };
                        },
                        "norm", here + ".mixer_norm"),
                    "");
        }
}

}  // namespace
}  // namespace weft
