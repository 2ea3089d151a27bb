// A model that learns from another one, and layers that are replaced.
#include "weft/training/distillation.h"

#include <gtest/gtest.h>

#include "weft/autograd/gradient_check.h"
#include "weft/core/parallel.h"
#include "weft/io/safetensors.h"
#include "weft/nn/mixers.h"
#include "weft/training/training.h"

namespace weft {
namespace {

LanguageModelOptions options_of(std::vector<MixerMaker> mixers, std::vector<int> pattern) {
  return {.vocab = 11,
          .dim = 16,
          .layers = 3,
          .context = 16,
          .mixers = std::move(mixers),
          .pattern = std::move(pattern),
          .ffn = {.hidden = 24},
          .std = 0.3};
}

Tensor ids(uint64_t seed) {
  Tensor out = Tensor::empty({2, 9}, kI32, Device::cpu());
  for (int64_t i = 0; i < 18; ++i)
    out.mutable_data<int32_t>()[i] = static_cast<int32_t>(Rng(seed).below(11, static_cast<uint64_t>(i)));
  return out;
}

// Targets with one that is ignored.
Tensor targets() {
  Tensor out = ids(4);
  out.mutable_data<int32_t>()[3] = -1;
  return out;
}

double loss_of(const TokenLoss& loss) {
  Tokens tokens(plain_tokens(2, 9));
  return loss(ids(3), targets(), tokens, 1.0 / 17).loss.value().item();
}

const SoftmaxOptions kSoftmax{.heads = 2};

TEST(Distillation, AModelIsNoDistanceFromItself) {
  LanguageModel model(options_of({kSoftmax}, {}), Rng(1)), other(options_of({kSoftmax}, {}), Rng(2));
  EXPECT_NEAR(loss_of(distillation_loss(model, model, {})), 0, 1e-6);
  EXPECT_GT(loss_of(distillation_loss(model, other, {})), 0.01);
  // With a weight the rest is the loss of the text.
  EXPECT_NEAR(loss_of(distillation_loss(model, model, {.weight = 0.25})), 0.75 * loss_of(token_loss(model)), 1e-5);
  Tokens tokens(plain_tokens(2, 9)), others(plain_tokens(2, 9));
  const Tensor losses = distillation_loss(model, other, {})(ids(3), targets(), tokens, 1).losses;
  const Tensor expected = token_loss(model)(ids(3), targets(), others, 1).losses;
  for (int64_t i = 0; i < 18; ++i)
    EXPECT_NEAR(losses.data<float>()[i], expected.data<float>()[i], 1e-5) << "losses are those of the text";
}

TEST(Distillation, GradientsEqualDifferences) {
  LanguageModel model(options_of({kSoftmax}, {}), Rng(1)), other(options_of({kSoftmax}, {}), Rng(2));
  model.set_compute(kF64), other.set_compute(kF64);
  const TokenLoss loss = distillation_loss(model, other, {.weight = 0.6, .temperature = 2});
  std::vector<Var*> variables;
  GradientCheckOptions check{.max_elements = 3};
  for (const NamedParam& p : model.params()) {
    variables.push_back(&p.param->var());
    check.names.push_back(p.name);
  }
  auto f = [&](std::span<const Var>) {
    Tokens tokens(plain_tokens(2, 9));
    return loss(ids(3), targets(), tokens, 0.1).loss;
  };
  const GradientCheck result = check_gradients(f, {}, variables, check);
  EXPECT_TRUE(result.passed) << result.report;
  for (const NamedParam& p : other.params()) EXPECT_FALSE(p.param->grad().defined()) << p.name;
}

TEST(Distillation, RefusesOtherVocabulariesAndWeights) {
  LanguageModelOptions larger = options_of({kSoftmax}, {});
  larger.vocab = 12;
  LanguageModel model(options_of({kSoftmax}, {}), Rng(1)), other(larger, Rng(2));
  EXPECT_THROW(distillation_loss(model, other, {}), Error);
  EXPECT_THROW(distillation_loss(model, model, {.weight = 0}), Error);
  EXPECT_THROW(distillation_loss(model, model, {.temperature = -1}), Error);
}

// Softmax, linear window and identity with the weights of a softmax model: they are taken by name, and the distance falls.
TEST(Distillation, ReplacedLayersTakeTheWeightsAndHeal) {
  set_num_threads(1);
  LanguageModel teacher(options_of({kSoftmax}, {}), Rng(1));
  const ReplacementOptions linear{.heads = 2, .window = 4}, identity{.kind = ReplacementKind::identity, .heads = 2};
  LanguageModel model(options_of({kSoftmax, linear, identity}, {0, 1, 2}), Rng(7));
  const std::string path = ::testing::TempDir() + "/weft_replaced.safetensors";
  save_model(teacher, path);
  const io::LoadReport report =
      io::load_into(io::SafetensorsFile::open(path), model_tensors(model), io::LoadRule::partial);
  EXPECT_TRUE(report.missing.empty() && report.mismatched.empty()) << io::to_string(report);
  EXPECT_EQ(report.unexpected.size(), 2u) << io::to_string(report);  // queries and keys of the identity
  const TokenLoss loss = distillation_loss(model, teacher, {});
  Training training(model, loss, {.groups = {{.algorithm = AdamWOptions{.lr = 3e-3, .weight_decay = 0}}}});
  std::vector<double> values;
  for (int step = 0; step < 60; ++step)
    values.push_back(training
                         .step(1,
                               [&](const MicroBatch& batch) {
                                 Tokens tokens(plain_tokens(2, 9), batch.tokens);
                                 return loss(ids(static_cast<uint64_t>(step % 4)), targets(), tokens, 1.0 / 17).loss;
                               })
                         .loss);
  EXPECT_GT(values.front(), 0.01);
  EXPECT_LT(values.back(), 0.3 * values.front());
}

// Only what is not frozen changes: a router on a frozen model.
TEST(Distillation, RoutersLearnOnAFrozenModel) {
  set_num_threads(1);
  LanguageModel model(
      options_of({FluxOptions{.heads = 2, .window = 6, .prompt = 3, .hidden = 5, .full_target = 0}}, {}), Rng(7));
  model.set_frozen("*");
  model.set_frozen("*.router.*", false);
  std::vector<std::vector<float>> before;
  for (const NamedParam& p : model.params()) before.push_back(p.param->value().to_vector<float>());
  Training training(model, {.groups = {{.algorithm = AdamWOptions{.lr = 1e-2, .weight_decay = 0}}}});
  for (int step = 0; step < 80; ++step)
    training.step(1, [&](const MicroBatch& batch) {
      Tokens tokens(plain_tokens(2, 9), batch.tokens);
      return model.loss(ids(static_cast<uint64_t>(step % 4)), targets(), tokens, 1.0 / 17).loss;
    });
  const std::vector<NamedParam> params = model.params();
  for (size_t i = 0; i < params.size(); ++i)
    EXPECT_EQ(params[i].param->value().to_vector<float>() == before[i],
              params[i].name.find(".router.") == std::string::npos)
        << params[i].name;
  // The target is that no document sees all.
  Tokens tokens(plain_tokens(2, 9), {.takes_diagnostics = true});
  model.hidden(ids(1), tokens);
  for (const Tokens::Report& r : tokens.reports())
    EXPECT_TRUE(r.name.find("full_share") == std::string::npos || r.sum < 0.5 * r.count) << r.name;
}

}  // namespace
}  // namespace weft
