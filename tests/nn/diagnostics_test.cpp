// Reports of layers against what they must be.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "weft/models/language_model.h"

namespace weft {
namespace {

std::map<std::string, double> values_of(const std::vector<Tokens::Report>& reports) {
  std::map<std::string, double> values;
  for (const Tokens::Report& r : reports) {
    EXPECT_FALSE(values.contains(r.name)) << r.name << " twice";
    values[r.name] = r.is_max ? r.sum : r.sum / r.count;
  }
  return values;
}

Tensor ids(int64_t batch, int64_t tokens) {
  Tensor t = Tensor::empty({batch, tokens}, kI32);
  for (int64_t i = 0; i < batch * tokens; ++i)
    t.mutable_data<int32_t>()[i] = static_cast<int32_t>(Rng(1).below(11, static_cast<uint64_t>(i)));
  return t;
}

std::map<std::string, double> run(LanguageModel& model, const TokenData& data, bool backs = false) {
  Tokens tokens(data, {.is_training = true, .rng = Rng(3), .takes_diagnostics = true});
  Tensor all = ids(data.positions.size(0), data.positions.size(1));
  Var loss = model.loss(all, all, tokens, 0.1).loss;
  if (backs) backward(loss);
  return values_of(tokens.reports());
}

LanguageModelOptions options_of(MixerMaker mixer) {
  return {.vocab = 11, .dim = 16, .layers = 2, .context = 12, .mixers = {std::move(mixer)}, .ffn = {.hidden = 24}};
}

// With queries of 0 attention is uniform: entropy log i, mass 1 / i on the first token, and alpha = mean of that; documents apart.
TEST(Diagnostics, OfUniformAttention) {
  for (WeightKind kind : {WeightKind::softmax, WeightKind::sigmoid}) {
    LanguageModel model(options_of(SoftmaxOptions{.heads = 2, .weights = {.kind = kind}}), Rng(1));
    for (const NamedParam& p : model.params())
      if (p.name.ends_with("mixer.q.weight")) p.param->set_value(Tensor::zeros({16, 16}, kF32));
    TokenData data = plain_tokens(1, 9);
    data.documents = Tensor::from<int32_t>({0, 0, 0, 0, 1, 1, 1, 1, 1}, {1, 9});
    data.document_positions = Tensor::from<int32_t>({0, 1, 2, 3, 0, 1, 2, 3, 4}, {1, 9});
    auto values = run(model, data);
    double entropy = 0, first = 0, sinks = 0;
    for (int64_t length : {4, 5}) {
      double mass = 0;
      for (int64_t i = 1; i <= length; ++i)
        entropy += std::log(static_cast<double>(i)) / 9, mass += 1 / static_cast<double>(i);
      first += mass / 9;
      sinks += mass / static_cast<double>(length) > 0.3 ? 0.5 : 0;
    }
    for (const char* at : {"model.layers.0.mixer.", "model.layers.1.mixer."})
      for (const char* head : {"/0", "/1"}) {
        EXPECT_NEAR(values.at(std::string(at) + "entropy" + head), entropy, 1e-5);
        EXPECT_NEAR(values.at(std::string(at) + "first_token_mass" + head), first, 1e-5);
        EXPECT_NEAR(values.at(std::string(at) + "sink_rate" + head), sinks, 1e-12);
        EXPECT_GT(values.at(std::string(at) + "value_drain" + head), 0.0);
        EXPECT_NEAR(values.at(std::string(at) + "max_score" + head), kind == WeightKind::softmax ? 0 : 1.0 / 13, 1e-6);
      }
  }
}

// Meta tokens stand before the first token, through every window, and take their share: with scores of 0 that of their number.
TEST(Diagnostics, OfMetaTokensAreThoseOfASink) {
  constexpr int64_t T = 12, kMeta = 16;
  for (int64_t window : {0, 5}) {
    LanguageModel model(options_of(HymbaOptions{.heads = 2, .window = window, .meta = kMeta}), Rng(1));
    for (const NamedParam& p : model.params())
      if (p.name.ends_with("mixer.q.weight")) p.param->set_value(Tensor::zeros({16, 16}, kF32));
    double entropy = 0, first = 0, sink = 0;
    for (int64_t t = 0; t < T; ++t) {
      const int64_t keys = window > 0 ? std::min(t + 1, window) : t + 1;
      const double each = 1 / static_cast<double>(keys + kMeta);
      entropy -= static_cast<double>(keys) * each * std::log(each) / T;
      first += t < keys ? each / T : 0;
      sink += kMeta * each / T;
    }
    const auto values = run(model, plain_tokens(1, T));
    for (const char* at : {"model.layers.0.mixer.", "model.layers.1.mixer."}) {
      EXPECT_NEAR(values.at(std::string(at) + "entropy/1"), entropy, 1e-5);
      EXPECT_NEAR(values.at(std::string(at) + "first_token_mass/1"), first, 1e-6);
      EXPECT_NEAR(values.at(std::string(at) + "sink_mass/1"), sink, 1e-6);
      EXPECT_EQ(values.at(std::string(at) + "sink_rate/1"), 0);
    }
  }
}

// Weights of both signs count by their size: reports are those of the weights that a probe is shown.
TEST(Diagnostics, OfWeightsWithSignsAreThoseOfTheirSizes) {
  for (int64_t window : {0, 3}) {
    LanguageModel model(options_of(NapOptions{.heads = 2, .window = window}), Rng(1));
    const int64_t T = 9;
    TokenData data = plain_tokens(1, T);
    auto values = run(model, data);
    std::map<std::string, double> entropies;
    Probe probe;
    probe.weights = [&](std::string_view path, const Tensor& weights_BTHT, bool is_softmax) {
      EXPECT_FALSE(is_softmax);
      auto w = weights_BTHT.to_vector<float>();
      for (int64_t t = 0; t < T; ++t)
        for (int64_t h = 0; h < 2; ++h) {
          double sum = 0, entropy = 0;
          auto size = [&](int64_t j) {
            return std::abs(static_cast<double>(w[static_cast<size_t>((t * 2 + h) * T + j)]));
          };
          for (int64_t j = 0; j < T; ++j) sum += size(j);
          for (int64_t j = 0; j < T && sum > 0; ++j)
            if (size(j) > 0) entropy -= size(j) / sum * std::log(size(j) / sum);
          entropies[str(path, ".entropy/", h)] += entropy / static_cast<double>(T);
        }
    };
    Tokens tokens(data, {.probe = &probe});
    model.hidden(ids(1, T), tokens);
    EXPECT_EQ(entropies.size(), 4u);
    for (const auto& [name, entropy] : entropies) EXPECT_NEAR(values.at(name), entropy, 1e-4) << name;
    EXPECT_GT(values.at("model.layers.0.mixer.value_drain/0"), 0.0);
  }
}

// Taken once per call, the same with and without recompute, and silent when not asked for.
TEST(Diagnostics, OfEveryPartOnceUnderRecompute) {
  SoftmaxOptions softmax{.heads = 4, .gates = {{.is_per_head = true}}, .affine = {.is_on = true}};
  softmax.head_mixture = {.active = 2, .shared = 1};
  std::map<std::string, double> expected;
  for (Recompute recompute : {Recompute::none, Recompute::mixers, Recompute::blocks}) {
    LanguageModelOptions o = options_of(softmax);
    o.residual = RoutedResidualOptions{.combine = ResidualCombine::add};
    o.recompute = recompute;
    LanguageModel model(o, Rng(1));
    auto values = run(model, plain_tokens(2, 8), true);
    if (recompute == Recompute::none) expected = values;
    EXPECT_EQ(values, expected);
    Tokens silent(plain_tokens(2, 8), {.is_training = true});
    model.hidden(ids(2, 8), silent);
    EXPECT_TRUE(silent.reports().empty());
  }
  for (const char* name : {"model.layers.0.mixer.entropy/3", "model.layers.1.mixer.gate_out.mean/0",
                           "model.layers.1.mixer.gate_out.saturated/0", "model.layers.0.mixer.affine.scale/1",
                           "model.layers.0.mixer.head_mixture.router.load/2", "model.layers.0.max_activation",
                           "model.layers.1.max_over_median"})
    EXPECT_TRUE(expected.contains(name)) << name;
  double load = 0, weights = 0;
  for (const auto& [name, value] : expected) {
    if (name.starts_with("model.layers.0.mixer.head_mixture.router.load")) load += value;
    if (name.starts_with("model.routers.3.weight/")) weights += value;
  }
  EXPECT_NEAR(load, 2, 1e-6);     // two heads of three
  EXPECT_NEAR(weights, 1, 1e-6);  // of the depth softmax
}

}  // namespace
}  // namespace weft
