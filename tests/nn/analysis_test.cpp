// Analyses against what they must be: closed forms, planted sinks, brute force over cuts, heads switched off by hand.
#include "weft/models/analysis.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "tests/nn/model_support.h"
#include "tests/support/errors.h"
#include "weft/autograd/functions.h"
#include "weft/core/parallel.h"

namespace weft {
namespace {

using test::error_of;
using test::tiny_ids;
using test::tiny_model_of;

AnalysisRows rows_of(int64_t batch, int64_t tokens) {
  return {tiny_ids(batch, tokens), tiny_ids(batch, tokens, 2), plain_tokens(batch, tokens)};
}

TEST(RankCollapse, OfKnownStates) {
  Tensor one = Tensor::full({5, 3}, 2.0, kF64);
  RankCollapse r = rank_collapse(one);
  EXPECT_NEAR(r.residual, 0, 1e-15);
  EXPECT_NEAR(r.frobenius_residual, 0, 1e-15);
  EXPECT_NEAR(r.first_residual, 0, 1e-15);
  EXPECT_NEAR(r.last_cosine, 1, 1e-12);
  // Two opposite tokens (3, 0), (-3, 0): mean 0, so nothing goes; from the first: |(-6, 0)| / |(3, -3)|.
  r = rank_collapse(Tensor::from<double>({3, 0, -3, 0}, {2, 2}));
  EXPECT_NEAR(r.residual, 1, 1e-15);
  EXPECT_NEAR(r.frobenius_residual, 1, 1e-15);
  EXPECT_NEAR(r.first_residual, 6 / std::sqrt(18.0), 1e-12);
  EXPECT_NEAR(r.last_cosine, -1, 1e-12);
  // Columns sum to 4 and 2 in size, rows to 4 and 2: sqrt(4 * 4); without the mean (2, 1): (1, 0), (-1, 0): sqrt(2 * 1).
  r = rank_collapse(Tensor::from<double>({3, 1, 1, 1}, {2, 2}));
  EXPECT_NEAR(r.residual, std::sqrt(2.0 * 1.0) / std::sqrt(4.0 * 4.0), 1e-12);
}

// Attention alone loses rank with depth, faster than with skips.
TEST(RankCollapse, OfAttentionWithoutSkips) {
  MixerArgs args{.dim = 16, .context = 32, .rotary = std::nullopt, .std = 0.25, .out_std = 0.25};
  Var x = normal_init({1, 32, 16}, Rng(3)["x"], 1.0), skipped = x;
  NoGrad no_grad;
  for (uint64_t layer = 0; layer < 6; ++layer) {
    auto mixer = SoftmaxOptions{.heads = 1}(args, Rng(layer));
    Tokens tokens(plain_tokens(1, 32));
    x = mixer->forward(x, tokens);
    Tokens again(plain_tokens(1, 32));
    skipped = skipped + mixer->forward(skipped, again);
  }
  double alone = rank_collapse(select(x, 0, 0).value()).first_residual,
         with_skips = rank_collapse(select(skipped, 0, 0).value()).first_residual;
  EXPECT_LT(alone, 0.2);
  EXPECT_GT(with_skips, 0.5);
}

// Ten layers; the first token is large behind layers 2 to 7, token 4 takes its direction behind layers 4 to 6.
TEST(SecondarySinks, FindsThePlantedOne) {
  const int64_t T = 6, D = 8;
  std::vector<Tensor> states;
  for (int64_t l = 0; l <= 10; ++l) {
    Tensor x = normal_init({T, D}, Rng(7)[static_cast<uint64_t>(l)], 1.0).cpu();
    auto* p = x.mutable_data<float>();
    if (l >= 2 && l < 8) p[0] += 40;
    if (l >= 4 && l < 7)
      for (int64_t c = 0; c < D; ++c) p[4 * D + c] = p[c] * 0.3F;
    states.push_back(x);
  }
  auto sinks = secondary_sinks(states);
  ASSERT_EQ(sinks.size(), 1u);
  EXPECT_EQ(sinks[0].token, 4);
  EXPECT_EQ(sinks[0].first_layer, 4);
  EXPECT_EQ(sinks[0].lifetime, 3);
}

// All attention on the first token: rollout of L layers gives it 1 - 2^-L; one layer is its own matrix; rows sum to 1.
TEST(Rollout, OfOneHotAndRandomAttention) {
  Tensor first = Tensor::zeros({4, 4}, kF64);
  for (int64_t i = 0; i < 4; ++i) first.mutable_data<double>()[i * 4] = 1;
  std::vector<Tensor> layers(3, first);
  auto rollout = attention_rollout(layers).to_vector<double>();
  EXPECT_NEAR(rollout[3 * 4], 1 - 0.125, 1e-15);
  EXPECT_NEAR(rollout[3 * 4 + 3], 0.125, 1e-15);
  // All that leaves the last token, by its own edge and by that to the first one, reaches the first; half stays on its own edges.
  auto flow = attention_flow(layers, 3).to_vector<double>();
  EXPECT_NEAR(flow[0], 1, 1e-12);
  EXPECT_NEAR(flow[3], 0.5, 1e-12);
  EXPECT_EQ(flow[1], 0);
}

Tensor random_shares(int64_t T, Rng rng) {
  Tensor a = Tensor::zeros({T, T}, kF64, Device::cpu());
  for (int64_t i = 0; i < T; ++i) {
    double sum = 0;
    auto* row = a.mutable_data<double>() + i * T;
    for (int64_t j = 0; j <= i; ++j)
      sum += row[j] = static_cast<double>(rng.uniform(static_cast<uint64_t>(i * T + j))) + 0.01;
    for (int64_t j = 0; j <= i; ++j) row[j] /= sum;
  }
  return a;
}

// The largest flow is the smallest cut: all 2^6 of them in three layers of three tokens.
TEST(Flow, EqualsTheSmallestCut) {
  const int64_t T = 3;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    std::vector<Tensor> layers;
    for (uint64_t l = 0; l < 3; ++l) layers.push_back(random_shares(T, Rng(seed)[l]));
    std::vector<std::vector<double>> m;
    for (const Tensor& layer : layers) {
      m.push_back(layer.to_vector<double>());
      for (size_t i = 0; i < 9; ++i) m.back()[i] = 0.5 * m.back()[i] + (i % 4 == 0 ? 0.5 : 0);
    }
    for (int64_t query = 0; query < T; ++query) {
      auto flow = attention_flow(layers, query).to_vector<double>();
      for (int64_t input = 0; input < T; ++input) {
        double smallest = 1e9;
        for (int cut = 0; cut < 64; ++cut) {  // bit set: on the side of the query
          auto side = [&](size_t level, size_t t) {
            if (level == 3) return static_cast<int64_t>(t) == query;
            if (level == 0) return false;
            return (cut >> ((level - 1) * 3 + t) & 1) == 1;
          };
          double capacity = 0;
          for (size_t level = 3; level >= 1; --level)
            for (size_t i = 0; i < 3; ++i)
              for (size_t j = 0; j < 3; ++j) {
                if (level == 1 && static_cast<int64_t>(j) != input) continue;  // other inputs lead nowhere
                if (side(level, i) && !side(level - 1, j)) capacity += m[level - 1][i * 3 + j];
              }
          smallest = std::min(smallest, capacity);
        }
        EXPECT_NEAR(flow[static_cast<size_t>(input)], smallest, 1e-10) << seed << " " << query << " " << input;
      }
    }
  }
  EXPECT_EQ(error_of(
                [] {
                  attention_flow(std::vector<Tensor>{Tensor::zeros({65, 65}, kF64)}, 0);
                },
                {"65 tokens", "at most 64"}),
            "");
}

// The gradient of a head's mask predicts what a small change of the mask does to each row's loss.
TEST(HeadImportance, IsTheDerivativeOfTheMask) {
  LanguageModel model(tiny_model_of(SoftmaxOptions{.heads = 4}), Rng(5));
  model.set_compute(kF64);
  AnalysisRows rows = rows_of(3, 10);
  auto importance = head_importance(model, rows);
  ASSERT_EQ(importance.size(), 2u);
  EXPECT_EQ(importance[1].mixer, "model.layers.1.mixer");
  NoGrad no_grad;
  auto losses_with = [&](double value, size_t head) {
    Probe probe;
    probe.heads = [&](std::string_view path, const Var& y) {
      if (path != "model.layers.1.mixer") return y;
      Tensor mask = Tensor::full({4, 1}, 1, kF32, Device::cpu());
      mask.mutable_data<float>()[head] = static_cast<float>(value);
      return y * cast(Var(mask), y.dtype());
    };
    Tokens tokens(rows.tokens, {.probe = &probe});
    auto nats = model.loss(rows.ids, rows.targets, tokens, 1).losses.to_vector<double>();
    std::vector<double> sums(3, 0.0);
    for (size_t i = 0; i < nats.size(); ++i) sums[i / 10] += nats[i];
    return sums;
  };
  std::vector<double> expected;
  double square = 0;
  for (size_t h = 0; h < 4; ++h) {
    auto up = losses_with(1.0625, h), down = losses_with(0.9375, h);
    double sum = 0;
    for (size_t b = 0; b < 3; ++b) sum += std::abs(up[b] - down[b]);
    expected.push_back(sum);
    square += sum * sum;
  }
  for (size_t h = 0; h < 4; ++h)
    EXPECT_NEAR(importance[1].heads[h], expected[h] / std::sqrt(square), 0.01) << "head " << h;
}

// Nothing gone is the model's loss; everything gone is that of a model whose mixers write nothing. Every mixer with heads takes part.
TEST(PruningCurve, BeginsAtTheLossAndEndsWithoutHeads) {
  for (const MixerRow& row : mixer_table()) {
    const std::string& name = row.name;
    LanguageModelOptions options = tiny_model_of(row.make);
    for (int32_t i = 0; i < 12; ++i) options.fixed_text.push_back(i % 11);
    LanguageModel model(options, Rng(5));
    AnalysisRows rows = rows_of(2, 10);
    auto importance = head_importance(model, rows);
    if (!row.lacks.heads.empty()) {
      EXPECT_TRUE(importance.empty()) << name;
      continue;
    }
    ASSERT_EQ(importance.size(), name == "tlinformer" ? 6u : 2u) << name;  // it is three layers in one
    auto curve = pruning_curve(model, rows, importance);
    ASSERT_EQ(curve.size(), 11u);
    NoGrad no_grad;
    Tokens tokens(rows.tokens);
    auto nats = model.loss(rows.ids, rows.targets, tokens, 1).losses.to_vector<float>();
    double whole = 0;
    for (float x : nats) whole += static_cast<double>(x) / 20;
    EXPECT_NEAR(curve.front().second, whole, 1e-6) << name;
    for (const NamedParam& p : model.params())
      if (p.name.find("mixer") != std::string::npos && p.name.find("out.weight") != std::string::npos)
        p.param->set_value(Tensor::zeros(p.param->value().shape(), kF32));
    Tokens again(rows.tokens);
    nats = model.loss(rows.ids, rows.targets, again, 1).losses.to_vector<float>();
    double none = 0;
    for (float x : nats) none += static_cast<double>(x) / 20;
    EXPECT_NEAR(curve.back().second, none, 1e-5) << name;
    EXPECT_EQ(curve.back().first, 1);
  }
}

// The heads of a layer are silent where its output projection is zero.
TEST(LayerSensitivity, IsTheLossThatALayerSaves) {
  LanguageModelOptions options = tiny_model_of(SoftmaxOptions{.heads = 2});
  options.mixers.push_back(SoftmaxOptions{.heads = 4, .window = 3});
  options.std = 0.4;
  AnalysisRows rows = rows_of(2, 10);
  LanguageModel model(options, Rng(5));
  const auto sensitivity = layer_sensitivity(model, rows);
  auto loss = [&](LanguageModel& of) {
    NoGrad no_grad;
    Tokens tokens(rows.tokens);
    double sum = 0;
    for (float x : of.loss(rows.ids, rows.targets, tokens, 1).losses.to_vector<float>())
      sum += static_cast<double>(x) / 20;
    return sum;
  };
  ASSERT_EQ(sensitivity.size(), 2u);
  for (size_t layer = 0; layer < 2; ++layer) {
    LanguageModel silenced(options, Rng(5));
    for (const NamedParam& p : silenced.params())
      if (p.name == str("layers.", layer, ".mixer.out.weight"))
        p.param->set_value(Tensor::zeros(p.param->value().shape(), kF32));
    EXPECT_EQ(sensitivity[layer].first, str("model.layers.", layer, ".mixer"));
    EXPECT_NEAR(sensitivity[layer].second, loss(silenced) - loss(model), 1e-5);
    EXPECT_GT(std::abs(sensitivity[layer].second), 1e-4);
  }
}

// A change of the first token reaches the last one through attention only: not through a window of one token.
TEST(PerturbationSpread, GoesThroughAttention) {
  AnalysisRows rows = rows_of(2, 10);
  LanguageModel wide(tiny_model_of(SoftmaxOptions{.heads = 2}), Rng(5)),
      narrow(tiny_model_of(SoftmaxOptions{.heads = 2, .window = 1}), Rng(5));
  for (double x : perturbation_spread(wide, rows)) EXPECT_GT(x, 1e-3);
  for (double x : perturbation_spread(narrow, rows)) EXPECT_EQ(x, 0);
  EXPECT_GT(perturbation_spread(narrow, rows, 9)[1], 0.5) << "its own state changes";
}

// Every kind of residual stream, recompute, and mixers that show nothing.
TEST(Analyse, GivesEveryFigureOnce) {
  LanguageModelOptions o = tiny_model_of(SoftmaxOptions{.heads = 2}, 3);
  o.recompute = Recompute::blocks;
  for (bool is_routed : {false, true}) {
    if (is_routed) o.residual = RoutedResidualOptions{};
    LanguageModel model(o, Rng(5));
    std::map<std::string, double> values;
    for (const auto& [name, value] : analyse(model, rows_of(3, 12))) {
      EXPECT_FALSE(values.contains(name)) << name;
      EXPECT_TRUE(std::isfinite(value)) << name;
      values[name] = value;
    }
    for (const char* name : {"model.layers.2.mixer.head_importance/1", "pruned_loss/0", "pruned_loss/100",
                             "model.layers.1.perturbation_spread", "model.layers.2.state.rank_residual",
                             "model.embedding.last_cosine", "secondary_sinks", "rollout/11", "flow/0"})
      EXPECT_TRUE(values.contains(name)) << name;
    double rollout = 0;
    for (int j = 0; j < 12; ++j) rollout += values[str("rollout/", j)];
    EXPECT_NEAR(rollout, 1, 1e-5);
    for (const NamedParam& p : model.params()) EXPECT_FALSE(p.param->grad().defined()) << p.name;
  }
  LanguageModel other(tiny_model_of(MultiTokenOptions{.heads = 2}), Rng(5));
  EXPECT_FALSE(analyse(other, rows_of(2, 12)).empty());
}

// A layer of two calls is one layer, whose matrix is their mean; one without weights is left out, and named.
TEST(Analyse, RolloutGoesThroughLayersAndNamesThoseLeftOut) {
  LanguageModelOptions o = tiny_model_of(DifferentialOptions{.heads = 2}, 4);
  o.mixers.push_back(GlaOptions{.heads = 2});
  o.mixers.push_back(SoftmaxOptions{.heads = 2});
  o.pattern = {0, 1, 2, 1};
  LanguageModel model(o, Rng(5));
  const AnalysisRows rows = rows_of(1, 12);
  std::map<std::string, double> values;
  for (const auto& [name, value] : analyse(model, rows)) values[name] = value;
  std::map<std::string, std::vector<Tensor>> calls;
  const Probe probe{.weights = [&](std::string_view path, const Tensor& weights, bool is_softmax) {
    calls[std::string(path)].push_back(weight_shares(weights, is_softmax).reshape({12, 12}));
  }};
  NoGrad no_grad;
  Tokens tokens(rows.tokens, {.probe = &probe});
  model.hidden(rows.ids, tokens);
  ASSERT_EQ(calls.size(), 2u);
  const auto &first = calls["model.layers.0.mixer"], &third = calls["model.layers.2.mixer"];
  ASSERT_EQ(first.size(), 2u);
  ASSERT_EQ(third.size(), 1u);
  const Tensor layers[] = {((Var(first[0]) + Var(first[1])) * 0.5).value(), third[0]};
  const auto rollout = attention_rollout(layers).slice(0, 11, 12).to_vector<double>(),
             flow = attention_flow(layers, 11).to_vector<double>();
  for (size_t t = 0; t < 12; ++t) {
    EXPECT_NEAR(values.at(str("rollout/", t)), rollout[t], 1e-12);
    EXPECT_NEAR(values.at(str("flow/", t)), flow[t], 1e-12);
  }
  for (int layer = 0; layer < 4; ++layer)
    EXPECT_EQ(values.contains(str("model.layers.", layer, ".left_out_of_rollout")), layer % 2 == 1) << layer;
}

// Each forward is one rank's, so the bits are those of one rank.
TEST(Analyse, RanksShareItsForwards) {
  const int threads = num_threads();
  set_num_threads(1);
  const LanguageModelOptions o = tiny_model_of(SoftmaxOptions{.heads = 2}, 3);
  LanguageModel alone(o, Rng(5));
  const auto expected = analyse(alone, rows_of(3, 12));
  for (int ranks : {1, 2, 5})
    dist::run_thread_ranks(ranks, [&](dist::Communicator& comm) {
      LanguageModel model(o, Rng(5));
      EXPECT_EQ(analyse(model, rows_of(3, 12), &comm), expected) << ranks << " ranks";
    });
  set_num_threads(threads);
}

}  // namespace
}  // namespace weft
