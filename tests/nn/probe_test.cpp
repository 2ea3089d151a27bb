// What a probe shows of attention: weights that are those of the mask, and that give the reports of the same step.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "tests/nn/model_support.h"
#include "weft/autograd/functions.h"

namespace weft {
namespace {

using test::tiny_ids;
using test::tiny_model_of;

std::vector<Tensor> weights_of(const SoftmaxOptions& mixer, const TokenData& data, bool* is_softmax = nullptr) {
  LanguageModel model(tiny_model_of(mixer), Rng(1));
  std::vector<Tensor> all;
  Probe probe;
  probe.weights = [&](std::string_view, const Tensor& weights, bool softmax) {
    all.push_back(weights);
    if (is_softmax) *is_softmax = softmax;
  };
  NoGrad no_grad;
  Tokens tokens(data, {.probe = &probe});
  model.hidden(tiny_ids(data.positions.size(0), data.positions.size(1)), tokens);
  return all;
}

// Rows of softmax sum to 1 over the keys that are seen and are 0 elsewhere; a sink leaves less; documents and grouped heads count.
TEST(Probe, ShowsWeightsOfEveryCall) {
  TokenData data = plain_tokens(2, 9);
  data.documents = Tensor::from<int32_t>({0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}, {2, 9});
  data.document_positions = Tensor::from<int32_t>({0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6, 7, 8}, {2, 9});
  SoftmaxOptions plain{.heads = 4, .kv_heads = 2, .window = 3}, sink = plain, relu = plain, sparse = plain;
  sink.sink.kind = SinkKind::off_by_one;
  relu.weights.kind = WeightKind::relu;
  sparse.head_mixture = {.active = 2, .shared = 1, .path = HeadPath::grouped};
  auto documents = data.documents.to_vector<int32_t>();
  for (const SoftmaxOptions& options : {plain, sink, relu, sparse}) {
    bool is_softmax = false;
    auto layers = weights_of(options, data, &is_softmax);
    ASSERT_EQ(layers.size(), 2u);
    EXPECT_EQ(is_softmax, options.weights.kind == WeightKind::softmax);
    ASSERT_EQ(layers[0].shape(), Shape({2, 9, 4, 9}));
    auto w = layers[1].to_vector<float>();
    for (size_t b = 0; b < 2; ++b)
      for (size_t i = 0; i < 9; ++i)
        for (size_t h = 0; h < 4; ++h) {
          double sum = 0;
          for (size_t j = 0; j < 9; ++j) {
            auto weight = static_cast<double>(w[((b * 9 + i) * 4 + h) * 9 + j]);
            bool is_seen = j <= i && i - j < 3 && documents[b * 9 + i] == documents[b * 9 + j];
            if (!is_seen) { EXPECT_EQ(weight, 0); }
            sum += weight;
          }
          if (options.weights.kind == WeightKind::relu) continue;
          if (options.sink.kind == SinkKind::none) {
            EXPECT_NEAR(sum, 1, 1e-6);
          } else {
            EXPECT_LT(sum, 0.999);
          }
        }
  }
}

// What a layer reports is what its shown weights say, with a sink in place too.
TEST(Probe, AgreesWithReports) {
  for (SinkKind kind : {SinkKind::none, SinkKind::logit, SinkKind::key_bias}) {
    SoftmaxOptions mixer{.heads = 2};
    mixer.sink.kind = kind;
    LanguageModel model(tiny_model_of(mixer, 1), Rng(4));
    double first = 0, left = 0;
    Probe probe;
    probe.weights = [&](std::string_view, const Tensor& weights, bool) {
      auto w = weights.to_vector<float>();
      for (size_t i = 0; i < 2 * 10; ++i) first += static_cast<double>(w[i * 20]) / 20, left += 1.0 / 20;  // head 0
      for (size_t i = 0; i < 2 * 10; ++i)
        for (size_t j = 0; j < 10; ++j) left -= static_cast<double>(w[i * 20 + j]) / 20;
    };
    NoGrad no_grad;
    Tokens tokens(plain_tokens(2, 10), {.takes_diagnostics = true, .probe = &probe});
    model.hidden(tiny_ids(2, 10), tokens);
    std::map<std::string, double> reports;
    for (const Tokens::Report& r : tokens.reports()) reports[r.name] = r.sum / r.count;
    EXPECT_NEAR(reports.at("model.layers.0.mixer.first_token_mass/0"), first, 1e-5);
    EXPECT_EQ(reports.contains("model.layers.0.mixer.sink_mass/0"), kind != SinkKind::none);
    EXPECT_NEAR(kind == SinkKind::none ? 0 : reports.at("model.layers.0.mixer.sink_mass/0"), left, 1e-5);
  }
}

// So do mixers that make their weights themselves, tile by tile: every figure from the shown weights, with documents and under recompute.
TEST(Probe, AgreesWithReportsOfPairs) {
  constexpr int64_t T = 140;  // two tiles
  TokenData data = plain_tokens(1, T);
  std::vector<int32_t> documents, positions;
  for (int32_t i = 0; i < T; ++i) documents.push_back(i < 60 ? 0 : 1), positions.push_back(i < 60 ? i : i - 60);
  data.documents = Tensor::from(std::span<const int32_t>(documents), {1, T});
  data.document_positions = Tensor::from(std::span<const int32_t>(positions), {1, T});
  const MixerMaker mixers[] = {TapaOptions{.heads = 2}, NeuralOptions{.heads = 2}, RcmhaOptions{.heads = 2},
                               RelativeBiasOptions{.heads = 2, .window = 40},
                               MultiTokenOptions{.heads = 2, .group = 1}};
  for (const MixerMaker& mixer : mixers) {
    LanguageModelOptions o = tiny_model_of(mixer, 1);
    o.context = T;
    LanguageModel model(o, Rng(4));
    double first = 0, entropy = 0;
    int calls = 0;
    Probe probe;
    probe.weights = [&](std::string_view, const Tensor& weights, bool is_softmax) {
      ++calls;
      EXPECT_TRUE(is_softmax);
      EXPECT_EQ(weights.shape(), Shape({1, T, 2, T}));
      auto w = weights.to_vector<float>();
      for (int64_t i = 0; i < T; ++i) {
        double sum = 0;
        for (int64_t j = 0; j < T; ++j) {  // head 0
          const auto x = static_cast<double>(w[static_cast<size_t>(i * 2 * T + j)]);
          const bool is_seen = j <= i && documents[static_cast<size_t>(i)] == documents[static_cast<size_t>(j)];
          if (!is_seen) { EXPECT_EQ(x, 0) << i << " " << j; }
          sum += x, entropy -= x > 0 ? x * std::log(x) / T : 0;
          first += positions[static_cast<size_t>(j)] == 0 ? x / T : 0;
        }
        EXPECT_NEAR(sum, 1, 1e-5);
      }
    };
    Tokens tokens(data, {.is_training = true, .takes_diagnostics = true, .probe = &probe});
    Tensor ids = tiny_ids(1, T);
    backward(model.loss(ids, ids, tokens, 1.0 / T).loss);
    EXPECT_EQ(calls, 1);
    std::map<std::string, double> reports;
    for (const Tokens::Report& r : tokens.reports()) {
      EXPECT_FALSE(reports.contains(r.name)) << r.name;
      reports[r.name] = r.is_max ? r.sum : r.sum / r.count;
    }
    EXPECT_NEAR(reports.at("model.layers.0.mixer.first_token_mass/0"), first, 1e-5);
    EXPECT_NEAR(reports.at("model.layers.0.mixer.entropy/0"), entropy, 1e-4);
    EXPECT_TRUE(std::isfinite(reports.at("model.layers.0.mixer.max_score/1")));
    EXPECT_GT(reports.at("model.layers.0.mixer.value_drain/0"), 0);
  }
}

}  // namespace
}  // namespace weft
