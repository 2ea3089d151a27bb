// Weights of hybrid mixers, as they show and report them, against what the weights do, or must be.
// B batch rows, T tokens, H heads, G value heads, V value width.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/nn/observed_support.h"
#include "weft/nn/mixers.h"

namespace weft {
namespace {

using namespace observed_test;

// What a mixer alone shows and gives in f64. x [1, T, D].
struct Alone {
  std::vector<Tensor> weights;
  Tensor heads;  // [1, T, H, V], before the output projection
  Values values;
};

std::unique_ptr<Mixer> mixer_of(const MixerMaker& make, int64_t layer = 0) {
  auto mixer = make({.dim = 8, .context = 32, .layer = layer, .layers = 2, .std = 0.6, .out_std = 0.6}, Rng(3));
  mixer->set_compute(kF64);
  return mixer;
}

Var input(uint64_t seed, int64_t num_tokens = kTokens) {
  return cast(normal_init({1, num_tokens, 8}, Rng(seed), 1.0), kF64);
}

Alone run(Mixer& mixer, const Var& x, const TokenData& data, const std::function<void(Tokens&)>& before = {}) {
  Alone out;
  const Probe probe{.weights = [&](std::string_view, const Tensor& w, bool) { out.weights.push_back(w); },
                    .heads =
                        [&](std::string_view, const Var& y) {
                          out.heads = y.value();
                          return y;
                        }};
  NoGrad no_grad;
  Tokens tokens(data, {.takes_diagnostics = true, .probe = &probe});
  if (before) before(tokens);
  out.weights.clear();
  const size_t earlier = tokens.reports().size();
  mixer.forward(x, tokens);
  out.values = values_of({tokens.reports().begin() + static_cast<std::ptrdiff_t>(earlier), tokens.reports().end()});
  return out;
}

double value_of(const Alone& seen, const std::string& what) {
  for (const auto& [name, value] : seen.values)
    if (name.ends_with("." + what)) return value;
  ADD_FAILURE() << "no " << what;
  return std::nan("");
}

Param& param(Mixer& mixer, std::string_view name) {
  for (const NamedParam& p : mixer.params())
    if (p.name == name) return *p.param;
  ADD_FAILURE() << "no parameter " << name;
  return *mixer.params()[0].param;
}

void zero(Mixer& mixer, std::string_view name) {
  Param& p = param(mixer, name);
  p.set_value(Tensor::zeros(p.value().shape(), kF64));
}

Var heads_of(Mixer& mixer, std::string_view weight, const Var& x, int64_t heads) {
  const Var y = linear(x, cast(Var(param(mixer, weight)), kF64));
  return reshape(y, {1, x.size(1), heads, y.size(-1) / heads});
}

// sum_j w_ij v_j of weights [1, T, H, T] and values [1, T, G, V], as [T, H, V].
std::vector<double> mixed(const Tensor& weights, const Var& v) {
  const int64_t T = weights.size(1), H = weights.size(2), G = v.size(2), V = v.size(3);
  const auto w = weights.to_vector<double>(), values = v.value().to_vector<double>();
  std::vector<double> y(static_cast<size_t>(T * H * V), 0);
  for (int64_t i = 0; i < T * H; ++i)
    for (int64_t j = 0; j < T; ++j)
      for (int64_t c = 0; c < V; ++c)
        y[static_cast<size_t>(i * V + c)] +=
            w[static_cast<size_t>(i * T + j)] * values[static_cast<size_t>((j * G + i % H * G / H) * V + c)];
  return y;
}

void expect_near(const std::vector<double>& got, const std::vector<double>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-10) << "number " << i;
}

// A query's keys are the last tokens of earlier chunks and itself. With scores of 0 each has the same weight.
TEST(HybridWeights, OfRatAreEndsOfChunksAndTheQueryItself) {
  for (int64_t chunk : {1, 4, 16, 64})
    for (bool has_documents : {false, true}) {
      constexpr int64_t T = 16;
      SCOPED_TRACE(str("chunks of ", chunk, has_documents ? ", documents" : ""));
      auto mixer = mixer_of(RatOptions{.heads = 2, .chunk = chunk});
      zero(*mixer, "q.weight");
      const Alone seen = run(*mixer, input(1, T), data_of(has_documents, T));
      ASSERT_EQ(seen.weights.size(), 1u);
      const auto w = seen.weights[0].to_vector<double>();
      double entropy = 0, first = 0;
      std::map<int64_t, double> of_first;
      for (int64_t t = 0; t < T; ++t) {
        const int64_t start = start_of(has_documents, t);
        const double each = 1 / (1 + std::floor(static_cast<double>((t - start) / chunk)));
        for (int64_t j = 0; j < T; ++j) {
          const bool is_key = j == t || (j >= start && j < t && (j - start) % chunk == chunk - 1);
          EXPECT_NEAR(w[static_cast<size_t>(t * 2 * T + j)], is_key ? each : 0, 1e-12) << t << " " << j;
          if (is_key && j == start) first += each / T, of_first[start] += each;
        }
        entropy -= std::log(each) / T;
      }
      double sinks = 0;
      for (const auto& [start, mass] : of_first)
        sinks += mass / static_cast<double>(!has_documents ? T : start == 0 ? kFirst : T - kFirst) > 0.3 ? 1 : 0;
      EXPECT_NEAR(value_of(seen, "entropy/0"), entropy, 1e-6);
      EXPECT_NEAR(value_of(seen, "first_token_mass/0"), first, 1e-6);
      EXPECT_NEAR(value_of(seen, "sink_rate/0"), sinks / (has_documents ? 2 : 1), 1e-6);
      EXPECT_NEAR(value_of(seen, "max_score/0"), 0, 1e-6);
    }
}

// Keys that remember nothing are those of their tokens: the shown weights times the values are what the heads give, before their gate.
TEST(HybridWeights, OfRatGiveItsOutput) {
  for (bool has_documents : {false, true}) {
    auto mixer = mixer_of(RatOptions{.heads = 2, .chunk = 3});
    zero(*mixer, "gate.weight");
    param(*mixer, "gate_bias").set_value(Tensor::full({8}, -60, kF64));
    const Var x = input(1);
    const Alone seen = run(*mixer, x, data_of(has_documents));
    auto want = mixed(seen.weights.at(0), heads_of(*mixer, "v.weight", x, 2));
    const auto z = sigmoid(heads_of(*mixer, "z.weight", x, 2)).value().to_vector<double>();
    for (size_t i = 0; i < want.size(); ++i) want[i] *= z[i];
    expect_near(seen.heads.to_vector<double>(), want);
  }
}

// Queries 0 and 1 of 4 see no key: they have no weights, so that they are no part of any mean.
TEST(HybridWeights, QueriesWithoutKeysHaveNoSay) {
  const Var q = Tensor::zeros({1, 4, 1, 2}, kF64, Device::cpu()),
            v = Tensor::full({1, 4, 1, 2}, 1, kF64, Device::cpu());
  auto reports = [&](const std::vector<double>& hidden) {
    Tokens tokens(plain_tokens(1, 4), {.takes_diagnostics = true});
    const Var bias = Tensor::from(std::span<const double>(hidden), {1, 4, 1});
    tokens.observe(tokens.queries(q), tokens.keys(v, v, {.bias = bias, .serves_one_call = true}), {}, {}, {});
    return values_of(tokens.reports());
  };
  const Values some = reports({-HUGE_VAL, -HUGE_VAL, 0, 0});
  EXPECT_NEAR(some.at(".entropy/0"), std::log(2.0) / 2, 1e-6);
  EXPECT_EQ(some.at(".first_token_mass/0"), 0);
  EXPECT_EQ(some.at(".sink_rate/0"), 0);
  EXPECT_EQ(some.at(".max_score/0"), 0);
  const Values none = reports({-HUGE_VAL, -HUGE_VAL, -HUGE_VAL, -HUGE_VAL});
  for (const char* name : {".entropy/0", ".first_token_mass/0", ".sink_rate/0", ".max_score/0"})
    EXPECT_FALSE(none.contains(name)) << name;
}

}  // namespace
}  // namespace weft
