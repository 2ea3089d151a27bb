// Models whose layers are mixers alone, without feed-forward networks.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "tests/nn/model_support.h"
#include "tests/support/difference.h"
#include "tests/support/errors.h"
#include "weft/autograd/gradient_check.h"
#include "weft/autograd/recompute.h"
#include "weft/models/sample.h"

namespace weft {
namespace {

using test::error_of;
using test::max_difference;

LanguageModelOptions alone(ResidualMaker residual = StandardResidualOptions{}) {
  LanguageModelOptions o = test::tiny_model();
  o.mixers.push_back(DeltaOptions{.heads = 2});
  o.layers = 3;
  o.has_ffn = false;
  o.residual = std::move(residual);
  return o;
}

std::vector<std::pair<std::string, ResidualMaker>> streams() {
  std::vector<std::pair<std::string, ResidualMaker>> out = {{"standard", StandardResidualOptions{}}};
  for (const ResidualRow& row : residual_table()) out.emplace_back(row.name, row.make);
  return out;
}

TEST(MixersAlone, HaveNeitherANetworkNorItsNorm) {
  const LanguageModel model(alone(), Rng(1));
  int norms = 0;
  for (const NamedParam& p : model.params()) {
    EXPECT_EQ(p.name.find("ffn"), std::string::npos) << p.name;
    norms += p.name.ends_with("mixer_norm.weight");
  }
  EXPECT_EQ(norms, 3);
}

TEST(MixersAlone, AreTheModelWhoseNetworksGiveZero) {
  for (Recompute recompute : {Recompute::none, Recompute::mixers, Recompute::blocks})
    for (DType compute : {kF32, kBF16}) {
      SCOPED_TRACE(str("recompute ", static_cast<int>(recompute), ", ", compute));
      LanguageModelOptions o = alone();
      o.scales_init_by_depth = false;  // there are other numbers of sublayers
      o.recompute = recompute;
      auto run = [&](bool has_ffn) {
        o.has_ffn = has_ffn;
        LanguageModel model(o, Rng(5));
        model.set_compute(compute);
        for (const NamedParam& p : model.params())
          if (p.name.ends_with("ffn.down.weight")) p.param->set_value(Tensor::zeros(p.param->value().shape(), kF32));
        Tokens tokens(plain_tokens(2, 8), {.is_training = true, .rng = Rng(9)});
        LanguageModelLoss loss = model.loss(test::tiny_ids(2, 8), test::tiny_ids(2, 8, 4), tokens, 0.1);
        backward(loss.loss);
        std::map<std::string, std::vector<double>> all;
        all["losses"] = cast(Var(loss.losses), kF64).value().to_vector<double>();
        for (const NamedParam& p : model.params())
          if (p.name.find("ffn") == std::string::npos)
            all[p.name] = cast(Var(p.param->grad()), kF64).value().to_vector<double>();
        return all;
      };
      EXPECT_TRUE(run(false) == run(true));
    }
}

TEST(MixersAlone, HaveRightGradientsInEveryResidualStream) {
  for (const auto& [name, stream] : streams()) {
    SCOPED_TRACE(name);
    LanguageModelOptions o = alone(stream);
    o.mixers = {SoftmaxOptions{.heads = 2}};
    o.std = 0.3;
    LanguageModel model(o, Rng(3));
    model.set_compute(kF64);
    std::vector<Var*> variables;
    GradientCheckOptions options{.max_elements = 2};
    for (const NamedParam& p : model.params()) {
      variables.push_back(&p.param->var());
      options.names.push_back(p.name);
    }
    auto f = [&](std::span<const Var>) {
      Tokens tokens(plain_tokens(1, 4), {.is_training = true, .rng = Rng(2)});
      return model.loss(test::tiny_ids(1, 4), test::tiny_ids(1, 4, 2), tokens, 0.1).loss;
    };
    GradientCheck result = check_gradients(f, {}, variables, options);
    EXPECT_TRUE(result.passed) << result.report;
  }
}

TEST(MixersAlone, HaveTheSameGradientsWhereTheyAreRecomputed) {
  for (const auto& [name, stream] : streams()) {
    SCOPED_TRACE(name);
    std::map<std::string, std::vector<float>> expected;
    for (Recompute recompute : {Recompute::none, Recompute::mixers, Recompute::blocks}) {
      LanguageModelOptions o = alone(stream);
      o.recompute = recompute;
      o.residual_dropout = 0.1;
      LanguageModel model(o, Rng(3));
      Tokens tokens(plain_tokens(2, 5), {.is_training = true, .rng = Rng(2)});
      backward(model.loss(test::tiny_ids(2, 5), test::tiny_ids(2, 5, 2), tokens, 0.1).loss);
      for (const NamedParam& p : model.params()) {
        auto grad = p.param->grad().to_vector<float>();
        if (recompute == Recompute::none) expected[p.name] = grad;
        else EXPECT_EQ(grad, expected[p.name]) << p.name << ", recompute " << static_cast<int>(recompute);
      }
    }
  }
}

// One router for each sublayer but the first, and there are as many sublayers as layers.
TEST(MixersAlone, ResidualStreamsCountOneSublayerPerLayer) {
  const LanguageModel model(alone(RoutedResidualOptions{}), Rng(1));
  int first = 0, beyond = 0;
  for (const NamedParam& p : model.params()) {
    first += p.name.starts_with("residual.routers.2.");
    beyond += p.name.starts_with("residual.routers.3.");
  }
  EXPECT_GT(first, 0);
  EXPECT_EQ(beyond, 0);
  const LanguageModelOptions o = alone(RoutedResidualOptions{.sources = ResidualSources::block_sums, .blocks = 4});
  EXPECT_EQ(error_of([&] { LanguageModel(o, Rng(1)); }, {"4 blocks of 3 sublayers"}), "");
}

TEST(MixersAlone, DecodeAsInParallel) {
  for (const auto& [name, stream] : streams()) {
    SCOPED_TRACE(name);
    LanguageModel model(alone(stream), Rng(1));
    const Tensor all = test::tiny_ids(1, 10);
    Tokens parallel(plain_tokens(1, 10));
    const Tensor expected = model.logits(all, parallel);
    auto cache = make_cache(1, 10);
    for (int64_t begin = 0, count = 4; begin < 10; begin += count, count = 1) {
      Tokens tokens(plain_tokens(1, count, begin), {.cache = cache});
      auto ids = all.slice(1, begin, begin + count).to_vector<int32_t>();
      const Tensor part = Tensor::from(std::span<const int32_t>(ids), {1, count});
      EXPECT_LT(max_difference(model.logits(part, tokens), expected.slice(1, begin, begin + count)), 1e-5);
    }
    const int32_t prompt[] = {1, 2, 3};
    EXPECT_EQ(sample(model, prompt, {.tokens = 20}).size(), 20u);
  }
}

TEST(MixersAlone, CountTheirParametersAndFlops) {
  LanguageModelOptions o{
      .vocab = 100, .dim = 64, .layers = 3, .context = 32, .mixers = {SoftmaxOptions{.heads = 4}}, .has_ffn = false};
  const LanguageModel model(o, Rng(1));
  const int64_t expected = 3 * 4 * 64 * 64 + 100 * 64;
  EXPECT_EQ(model.num_matmul_params(), expected);
  EXPECT_EQ(model.num_params(), expected + 3 * 64 + 64);
  EXPECT_NEAR(model.flops_per_token(), 6.0 * static_cast<double>(expected) + 6.0 * 3 * 64 * 33, 1);
  o.mixers = {UmoeOptions{.experts = 6, .active = 1, .head_dim = 16, .hidden = 32, .query_rank = 4}};
  const LanguageModel without(o, Rng(1));
  o.ffn = {.kind = FfnKind::umoe, .active = 2};
  const LanguageModel ignored(o, Rng(1));
  EXPECT_EQ(ignored.num_active_params(), without.num_active_params()) << "a network that is not there uses no experts";
  EXPECT_EQ(ignored.flops_per_token(), without.flops_per_token());
}

// Of a routed stream it is the state that the mixer reads.
TEST(MixersAlone, ReportTheStateOfEveryLayer) {
  for (const auto& [name, stream] : streams()) {
    SCOPED_TRACE(name);
    LanguageModel model(alone(stream), Rng(1));
    Tokens tokens(plain_tokens(1, 8), {.is_training = true, .rng = Rng(3), .takes_diagnostics = true});
    model.loss(test::tiny_ids(1, 8), test::tiny_ids(1, 8, 2), tokens, 0.1);
    int count = 0;
    for (const Tokens::Report& r : tokens.reports()) count += r.name.ends_with(".max_activation");
    EXPECT_EQ(count, 3);
  }
}

TEST(MixersAlone, BesideANetworkOfOnesOwnAreAnError) {
  LanguageModelOptions o = alone();
  o.own_ffn = [](const FfnArgs&, Rng) { return std::unique_ptr<Ffn>(); };
  EXPECT_EQ(error_of([&] { LanguageModel(o, Rng(1)); }, {"feed-forward network of one's own", "has_ffn"}), "");
}

}  // namespace
}  // namespace weft
