// Routers and mixtures of heads: weights, losses, and the two ways to compute them.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/errors.h"
#include "tests/support/random.h"
#include "weft/models/language_model.h"
#include "weft/nn/experts/router.h"

namespace weft {
namespace {

using test::error_of;
using test::random_normal;

std::vector<double> numbers(const Tensor& x) { return cast(Var(x), kF64).value().to_vector<double>(); }

void expect_near(const Tensor& a, const Tensor& b, double bound) {
  auto x = numbers(a), y = numbers(b);
  ASSERT_EQ(x.size(), y.size());
  for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(x[i], y[i], bound) << i;
}

// dL/dp of L = sum dw w, from head_mixtures' formulas; then through the softmax.
TEST(Router, WeightsHaveTheGradientOfTheirKind) {
  const int64_t E = 5, K = 3, T = 4;
  for (RouterWeights kind : {RouterWeights::raw, RouterWeights::renorm, RouterWeights::renorm_detached,
                             RouterWeights::renorm_scaled, RouterWeights::hard}) {
    Router router({.experts = E, .active = K, .weights = kind, .balance_loss = 0}, 0, 1, 0.02, Rng(1));
    Var logits = variable(random_normal({1, T, E}, "logits", kF64));
    Tensor dw = random_normal({1, T, K}, "dw", kF64);
    Tokens tokens(plain_tokens(1, T), {.is_training = true});
    Routing r = router.choose(logits, tokens);
    backward(sum_all(r.weights_BTK * Var(dw)));
    auto p = numbers(r.probabilities_BTE.value()), w = numbers(r.weights_BTK.value()), d = numbers(dw),
         grad = numbers(logits.grad());
    auto chosen = r.chosen_BTK.to_vector<int64_t>();
    for (int64_t t = 0; t < T; ++t) {
      double total = 0, weighted = 0, sum = 0;
      std::vector<double> dp(E, 0.0);
      for (int64_t k = 0; k < K; ++k) {
        total += p[static_cast<size_t>(t * E + chosen[static_cast<size_t>(t * K + k)])];
        weighted += d[static_cast<size_t>(t * K + k)] * w[static_cast<size_t>(t * K + k)];
      }
      for (int64_t k = 0; k < K; ++k) {
        auto slot = static_cast<size_t>(t * K + k);
        double& out = dp[static_cast<size_t>(chosen[slot])];
        switch (kind) {
          case RouterWeights::raw:
          case RouterWeights::hard: out = d[slot]; break;
          case RouterWeights::renorm: out = (d[slot] - weighted) / total; break;
          case RouterWeights::renorm_detached: out = d[slot] / total; break;
          case RouterWeights::renorm_scaled: out = (static_cast<double>(K) * d[slot] - weighted) / total; break;
        }
        EXPECT_TRUE(kind != RouterWeights::hard || w[slot] == 1.0);
      }
      for (int64_t e = 0; e < E; ++e) sum += dp[static_cast<size_t>(e)] * p[static_cast<size_t>(t * E + e)];
      for (int64_t e = 0; e < E; ++e)
        EXPECT_NEAR(grad[static_cast<size_t>(t * E + e)],
                    p[static_cast<size_t>(t * E + e)] * (dp[static_cast<size_t>(e)] - sum), 1e-12);
    }
  }
}

double loss_of(const Tokens& tokens, std::string_view name) {
  double sum = 0;
  for (const Tokens::Loss& loss : tokens.losses())
    if (loss.name == name) sum += loss.value.value().item() * loss.weight;
  return sum;
}

// Two tokens choose expert 0, one expert 1; the fourth is padding and counts nowhere.
TEST(Router, BalanceLossOfAKnownChoice) {
  const double big = std::log(3.0);  // p = 3/5, 1/5, 1/5
  Tensor logits = Tensor::from({big, 0.0, 0.0, big, 0.0, 0.0, 0.0, big, 0.0, 9.0, 0.0, 0.0}, {1, 4, 3});
  TokenData data = plain_tokens(1, 4);
  data.documents = Tensor::from({0, 0, 0, -1}, {1, 4});
  data.document_positions = data.positions;
  const double p[] = {(0.6 + 0.6 + 0.2) / 3, (0.2 + 0.2 + 0.6) / 3, 0.2}, f[] = {2.0 / 3, 1.0 / 3, 0};
  double balance = 3 * (p[0] * f[0] + p[1] * f[1] + p[2] * f[2]), z = std::pow(std::log(5.0), 2);
  for (RouterBalance kind : {RouterBalance::load, RouterBalance::normalised, RouterBalance::per_row}) {
    Router router({.experts = 3, .active = 1, .balance = kind, .balance_loss = 0.5, .z_loss = 0.25}, 0, 2, 0.02,
                  Rng(1));
    Tokens tokens(data, {.is_training = true});
    router.choose(Var(logits), tokens);
    EXPECT_NEAR(loss_of(tokens, "balance_loss"), balance * 0.5 / 2, 1e-12);  // two layers
    EXPECT_NEAR(loss_of(tokens, "z_loss"), z * 0.25 / 2, 1e-12);
  }
}

TEST(Router, TiesGoToTheLowestIndex) {
  Router router({.experts = 4, .active = 2}, 0, 1, 0.02, Rng(1));
  Tokens tokens(plain_tokens(1, 3), {});
  Routing r = router.choose(Var(Tensor::zeros({1, 3, 4}, kF32)), tokens);
  EXPECT_EQ(r.chosen_BTK.to_vector<int64_t>(), (std::vector<int64_t>{0, 1, 0, 1, 0, 1}));
}

// Noise belongs to the token, not to the place in a micro-batch.
TEST(Router, NoiseIsKeyedByTheTokenOfTheStep) {
  Router router({.experts = 6, .active = 2, .balance_loss = 0, .has_noise = true}, 4, 1, 0.02, Rng(1));
  Tensor x = random_normal({2, 5, 4}, "x");
  auto chosen = [&](const Tensor& rows, int64_t first_row) {
    TokenData data = plain_tokens(rows.size(0), 5);
    data.first_row = first_row;
    Tokens tokens(data, {.is_training = true, .rng = Rng(3)});
    return router(Var(rows), tokens).chosen_BTK.to_vector<int64_t>();
  };
  auto all = chosen(x, 0), second = chosen(x.slice(0, 1, 2), 1);
  EXPECT_EQ(std::vector<int64_t>(all.begin() + 10, all.end()), second);
  EXPECT_NE(std::vector<int64_t>(all.begin(), all.begin() + 10), second);
}

MixerArgs args_of(int64_t dim) {
  return {.dim = dim, .context = 16, .layer = 1, .layers = 2, .std = 0.4, .out_std = 0.4};
}

std::map<std::string, Param*> params_of(const Module& module) {
  std::map<std::string, Param*> all;
  for (const NamedParam& p : module.params()) all[p.name] = p.param;
  return all;
}

// With scores all equal and every head active, code scaling gives every head weight 1.
TEST(HeadMixture, StartsAsPlainAttention) {
  SoftmaxOptions plain{.heads = 4}, mixed = plain;
  mixed.head_mixture = {.active = 2, .shared = 2, .path = HeadPath::dense};
  auto a = plain(args_of(16), Rng(1)), b = mixed(args_of(16), Rng(2));
  auto from = params_of(*a);
  for (auto& [name, param] : params_of(*b)) {
    if (from.contains(name)) param->set_value(from[name]->value());
    else param->set_value(Tensor::zeros(param->value().shape(), kF32));
  }
  Tensor x = random_normal({2, 7, 16}, "x");
  Tokens one(plain_tokens(2, 7)), two(plain_tokens(2, 7));
  expect_near(a->forward(x, one).value(), b->forward(x, two).value(), 1e-6);
}

struct Result {
  Tensor y, dx;
  std::map<std::string, Tensor> grads;
};
Result run_of(const MixerMaker& make, const Tensor& x, const std::function<void(Mixer&)>& change = {}) {
  auto mixer = make(args_of(x.size(2)), Rng(4));
  if (change) change(*mixer);
  mixer->set_compute(kF64);
  Var in = variable(x);
  Tokens tokens(plain_tokens(x.size(0), x.size(1)), {.is_training = true});
  Result run;
  Var y = mixer->forward(in, tokens);
  backward(sum_all(y * Var(random_normal(y.shape(), "dy", kF64))));
  run.y = y.value(), run.dx = in.grad();
  for (const NamedParam& p : mixer->params())
    if (p.param->grad().defined()) run.grads[p.name] = p.param->grad();
  return run;
}

// One way equals the other in values and all gradients: also with fewer tokens than experts, experts that nobody chooses, and one
// that everybody does.
TEST(HeadMixture, ChosenHeadsOnlyIsTheSameAsAllHeads) {
  auto moh = [](HeadPath path, SinkKind sink, bool is_relu) {
    SoftmaxOptions o{.heads = 6, .kv_heads = 3, .window = 5, .sink = {sink}};
    o.head_mixture = {.active = 2, .shared = 1, .path = path};
    if (is_relu) o.weights.kind = WeightKind::relu;
    return MixerMaker(o);
  };
  auto everybody = [](Mixer& mixer) {
    for (const NamedParam& p : mixer.params())
      if (p.name.ends_with("router.weight")) p.param->set_value(Tensor::zeros(p.param->value().shape(), kF32));
  };
  auto expect_same = [&](const MixerMaker& dense, const MixerMaker& grouped, int64_t T, bool is_tied) {
    Tensor x = random_normal({2, T, 24}, "x", kF64);
    Result a = run_of(dense, x, is_tied ? everybody : std::function<void(Mixer&)>()),
           b = run_of(grouped, x, is_tied ? everybody : std::function<void(Mixer&)>());
    expect_near(a.y, b.y, 1e-11);
    expect_near(a.dx, b.dx, 1e-11);
    ASSERT_EQ(a.grads.size(), b.grads.size());
    for (auto& [name, grad] : a.grads) expect_near(grad, b.grads[name], 1e-10);
  };
  for (int64_t T : {1, 3, 11})
    for (bool is_tied : {false, true}) {
      for (SinkKind sink : {SinkKind::none, SinkKind::logit})
        expect_same(moh(HeadPath::dense, sink, false), moh(HeadPath::grouped, sink, false), T, is_tied);
      expect_same(moh(HeadPath::dense, SinkKind::none, true), moh(HeadPath::grouped, SinkKind::none, true), T, is_tied);
      expect_same(MoaOptions{.experts = 5, .active = 2, .head_dim = 8, .is_dense = true},
                  MoaOptions{.experts = 5, .active = 2, .head_dim = 8}, T, is_tied);
      expect_same(UmoeOptions{.experts = 5, .active = 2, .query_rank = 3, .is_dense = true},
                  UmoeOptions{.experts = 5, .active = 2, .query_rank = 3}, T, is_tied);
    }
}

// All experts with even weights 1/H, cut out of a multi-query layer, are that layer over H.
TEST(MixtureOfAttentionHeads, OfAllExpertsIsMultiQueryAttention) {
  const int64_t H = 4, D = 16, K = 4;
  auto mqa = SoftmaxOptions{.heads = H, .kv_heads = 1}(args_of(D), Rng(1));
  auto moa = MoaOptions{.experts = H, .active = H, .head_dim = K}(args_of(D), Rng(2));
  auto from = params_of(*mqa), to = params_of(*moa);
  to["router.weight"]->set_value(Tensor::zeros({H, D}, kF32));
  to["k"]->set_value(from["k.weight"]->value());
  to["v"]->set_value(from["v.weight"]->value());
  to["q"]->set_value(from["q.weight"]->value().reshape({H, K, D}));
  Var out = reshape(Var(from["out.weight"]->value()), {D, H, K});
  to["out"]->set_value(reshape(permute(out, {1, 0, 2}), {H, D, K}).value());
  Tensor x = random_normal({2, 6, D}, "x");
  Tokens one(plain_tokens(2, 6)), two(plain_tokens(2, 6));
  expect_near((mqa->forward(x, one) * (1.0 / H)).value(), moa->forward(x, two).value(), 1e-6);
}

LanguageModelOptions umoe_model() {
  return {.vocab = 11,
          .dim = 16,
          .layers = 2,
          .context = 12,
          .mixers = {UmoeOptions{.experts = 4, .active = 2, .query_rank = 3}},
          .ffn = {.kind = FfnKind::umoe, .hidden = 4, .experts = 4, .active = 3}};
}

Tensor ids(int64_t batch, int64_t tokens) {
  Tensor t = Tensor::empty({batch, tokens}, kI32);
  for (int64_t i = 0; i < batch * tokens; ++i)
    t.mutable_data<int32_t>()[i] = static_cast<int32_t>(Rng(1).below(11, static_cast<uint64_t>(i)));
  return t;
}

// Experts get gradients from both sublayers, also when either is computed again.
TEST(Umoe, SharesExpertsBetweenSublayersUnderRecompute) {
  std::map<std::string, std::vector<float>> expected;
  for (Recompute recompute : {Recompute::none, Recompute::mixers, Recompute::blocks}) {
    LanguageModelOptions o = umoe_model();
    o.recompute = recompute;
    LanguageModel model(o, Rng(3));
    Tokens tokens(plain_tokens(2, 8), {.is_training = true, .rng = Rng(9)});
    backward(model.loss(ids(2, 8), ids(2, 8), tokens, 1.0 / 16).loss);
    EXPECT_EQ(tokens.losses().size(), 4u);  // one per router
    for (const NamedParam& p : model.params()) {
      ASSERT_TRUE(p.param->grad().defined()) << p.name;
      auto grad = p.param->grad().to_vector<float>();
      if (recompute == Recompute::none) expected[p.name] = grad;
      else EXPECT_EQ(grad, expected[p.name]) << p.name;
    }
  }
}

TEST(Umoe, FeedForwardTakesTheNumberOfExpertsOfItsMixer) {
  LanguageModelOptions o = umoe_model();
  o.ffn.experts = 0;
  LanguageModel given(umoe_model(), Rng(3)), taken(o, Rng(3));
  Tokens one(plain_tokens(1, 8)), two(plain_tokens(1, 8));
  expect_near(given.hidden(ids(1, 8), one).value(), taken.hidden(ids(1, 8), two).value(), 0);
  o.mixers = {SoftmaxOptions{.heads = 2}};
  EXPECT_EQ(error_of([&] { LanguageModel(o, Rng(3)); },
                     {"umoe feed-forward network beside a mixer without experts", "use UmoeOptions for every mixer"}),
            "");
}

// As released: uniform over +-1 / sqrt(dim) on both sides, whatever the model's std is.
TEST(Umoe, RoutersStartUniformOverTheirFanIn) {
  LanguageModelOptions o = umoe_model();
  o.dim = 64;
  o.std = 0.001;
  o.mixers = {UmoeOptions{.experts = 32, .active = 2}};
  o.ffn = {.kind = FfnKind::umoe, .experts = 32, .active = 3};
  LanguageModel model(o, Rng(3));
  int count = 0;
  for (const NamedParam& p : model.params()) {
    if (!p.name.ends_with("router.weight")) continue;
    ++count;
    double largest = 0, square = 0;
    auto values = numbers(p.param->value());
    for (double w : values) largest = std::max(largest, std::abs(w)), square += w * w;
    EXPECT_LE(largest, 1.0 / 8) << p.name;
    EXPECT_GT(largest, 0.99 / 8) << p.name;
    EXPECT_NEAR(square / static_cast<double>(values.size()), 1.0 / (3 * 64), 0.03 / 64) << p.name;
  }
  EXPECT_EQ(count, 4);
  EXPECT_EQ(error_of([] { Router({.experts = 2, .has_noise = true, .has_fan_in_init = true}, 4, 1, 0.02, Rng(1)); },
                     {"router: noise beside weights that do not start at 0", "use one of"}),
            "");
}

// Losses that are means over tokens, and the running load, do not depend on how a step is cut; nor does a buffer.
TEST(Router, LossesAndLoadsAreThoseOfTheStep) {
  auto model_of = [] {
    LanguageModelOptions o = umoe_model();
    SoftmaxOptions softmax{.heads = 4, .affine = {.is_on = true}};
    softmax.head_mixture = {.active = 2, .shared = 1, .path = HeadPath::dense, .has_running_load = true};
    o.mixers = {softmax, MoaOptions{.experts = 4, .active = 2, .balance_loss = 0}};
    o.ffn = {.hidden = 16};
    return std::make_unique<LanguageModel>(o, Rng(3));
  };
  Tensor all = ids(4, 8);
  auto step = [&](LanguageModel& model, int64_t rows, Recompute recompute) {
    model.set_recompute(recompute);
    std::map<std::string, std::vector<double>> state;
    for (int64_t row = 0; row < 4; row += rows) {
      TokenData data = plain_tokens(rows, 8);
      data.first_row = row;
      Tokens tokens(data, {.is_training = true, .rng = Rng(9), .loss_share = static_cast<double>(rows) / 4});
      Tensor part = all.slice(0, row, row + rows);
      backward(model.loss(part, part, tokens, 1.0 / 32).loss);
    }
    model.update_buffers();
    for (const NamedParam& p : model.params()) state[p.name] = numbers(p.param->grad());
    for (const NamedBuffer& b : model.buffers()) state[b.name] = numbers(b.buffer->value());
    return state;
  };
  auto whole = model_of();
  auto expected = step(*whole, 4, Recompute::none);
  EXPECT_TRUE(expected.contains("layers.0.mixer.head_mixture.router.load"));
  EXPECT_TRUE(expected.contains("layers.0.mixer.affine.mean"));
  for (int64_t rows : {2, 1})
    for (Recompute recompute : {Recompute::none, Recompute::blocks}) {
      auto model = model_of();
      for (auto& [name, values] : step(*model, rows, recompute)) {
        ASSERT_EQ(values.size(), expected[name].size());
        for (size_t i = 0; i < values.size(); ++i) EXPECT_NEAR(values[i], expected[name][i], 2e-6) << name;
      }
    }
}

}  // namespace
}  // namespace weft
