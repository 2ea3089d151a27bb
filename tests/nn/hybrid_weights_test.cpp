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

// The weights that are shown, times the values, are what the heads give.
TEST(HybridWeights, GiveTheirShownWeightsTimesTheirValues) {
  const NatsOptions nats{.heads = 4, .kv_heads = 2, .window = 2, .global_bias = 0};
  const FluxOptions flux{.heads = 4, .kv_heads = 2, .window = 3, .prompt = 2, .hidden = 5};
  for (const MixerMaker& make : {MixerMaker(nats), MixerMaker(flux)})
    for (bool has_documents : {false, true})
      for (uint64_t seed = 0; seed < 6; ++seed) {
        auto mixer = mixer_of(make);
        const Var x = input(seed);
        const Alone seen = run(*mixer, x, data_of(has_documents));
        ASSERT_EQ(seen.weights.size(), 1u);
        expect_near(mixed(seen.weights[0], heads_of(*mixer, "v.weight", x, 2)), seen.heads.to_vector<double>());
      }
}

// Value drain is of the values alone, whatever else a mixer hands to the core beside them.
TEST(HybridWeights, ReportTheDrainOfTheirOwnValues) {
  for (const char* name : {"mha", "nap", "nats", "flux", "linear_window"}) {
    SCOPED_TRACE(name);
    auto mixer = mixer_of(mixer_row(name).make);
    const Var x = input(1);
    const Alone seen = run(*mixer, x, data_of(false));
    const Var v = linear(x, cast(Var(param(*mixer, "v.weight")), kF64));
    const int64_t heads = v.size(-1) / 2;  // of width 2
    const auto norms = sqrt(sum(square(reshape(v, {kTokens, heads, 2})), -1)).value().to_vector<double>();
    for (int64_t g = 0; g < heads; ++g) {
      double others = 0;
      for (int64_t t = 1; t < kTokens; ++t) others += norms[static_cast<size_t>(t * heads + g)] / (kTokens - 1);
      EXPECT_NEAR(value_of(seen, str("value_drain/", g)), norms[static_cast<size_t>(g)] / others, 1e-5);
    }
  }
}

// Flux's documents choose both branches, or the test above is of one.
TEST(HybridWeights, OfFluxHaveBothBranches) {
  auto mixer = mixer_of(FluxOptions{.heads = 4, .kv_heads = 2, .window = 3, .prompt = 2, .hidden = 5});
  double full = 0;
  for (uint64_t seed = 0; seed < 6; ++seed) full += value_of(run(*mixer, input(seed), data_of(false)), "full_share/0");
  EXPECT_GT(full, 0);
  EXPECT_LT(full, 6);
}

// Both attentions of a sparse layer are shown, and the full layer whose keys it reads.
TEST(HybridWeights, OfHySparseAreItsBlocksAndItsWindow) {
  for (bool has_documents : {false, true}) {
    HySparseOptions options{.heads = 4, .kv_heads = 2, .sparse = 1, .block = 2, .blocks = 2, .window = 3};
    auto full = mixer_of(options, 0), sparse = mixer_of(options, 1);
    const Var x = input(1), z = input(2);
    const TokenData data = data_of(has_documents);
    Alone seen = run(*full, x, data);
    ASSERT_EQ(seen.weights.size(), 1u);
    expect_near(mixed(seen.weights[0], heads_of(*full, "v.weight", x, 2)), seen.heads.to_vector<double>());

    auto expect_gated = [&](Mixer& mixer, const Alone& of, const Var& block_values) {
      ASSERT_EQ(of.weights.size(), 2u);
      const auto far = mixed(of.weights[0], block_values),
                 near = mixed(of.weights[1], heads_of(mixer, "v.weight", z, 2));
      const auto gates = sigmoid(linear(z, cast(Var(param(mixer, "gates.weight")), kF64))).value().to_vector<double>();
      std::vector<double> want;
      for (size_t i = 0; i < far.size(); ++i) {
        const size_t token = i / 8, head = i / 2 % 4;  // heads of width 2
        want.push_back(far[i] * gates[token * 8 + head] + near[i] * gates[token * 8 + 4 + head]);
      }
      expect_near(of.heads.to_vector<double>(), want);
    };
    seen = run(*sparse, z, data, [&](Tokens& tokens) { full->forward(x, tokens); });
    expect_gated(*sparse, seen, heads_of(*full, "v.weight", x, 2));

    options.sparse = 0;
    auto alone = mixer_of(options);
    seen = run(*alone, z, data);
    expect_gated(*alone, seen, heads_of(*alone, "block_v.weight", z, 2));
  }
}

// With scores of 0 weights are uniform over the chunk so far and over the earlier chunks that were kept as keys.
TEST(HybridWeights, OfNatsLinearAreOfItsChunkAndOfSoftmaxChunks) {
  constexpr int64_t kChunk = 3;
  for (bool has_documents : {false, true}) {
    auto mixer = mixer_of(
        NatsLinearOptions{.heads = 1, .head_dim = 4, .value_dim = 4, .softmax_heads = 2, .chunk = kChunk, .kernel = 2});
    zero(*mixer, "q.weight");
    Tensor type = Tensor::zeros({2, 8}, kF64, Device::cpu());
    type.mutable_data<double>()[0] = 1;  // softmax where channel 0 is positive
    param(*mixer, "type.weight").set_value(type);
    Tensor x = input(1).value().cpu();
    auto chunk_of = [&](int64_t t) { return (t - start_of(has_documents, t)) / kChunk; };
    for (int64_t t = 0; t < kTokens; ++t) x.mutable_data<double>()[t * 8] = chunk_of(t) % 2 == 0 ? 1 : -1;
    const Alone seen = run(*mixer, x, data_of(has_documents));
    ASSERT_EQ(seen.weights.size(), 1u);
    ASSERT_EQ(seen.weights[0].shape(), Shape({1, kTokens, 2, kTokens}));
    const auto w = seen.weights[0].to_vector<double>();
    for (int64_t t = 0; t < kTokens; ++t) {
      auto attends = [&](int64_t j) {
        return j <= t && j >= start_of(has_documents, t) && (chunk_of(j) == chunk_of(t) || chunk_of(j) % 2 == 0);
      };
      double count = 0;
      for (int64_t j = 0; j < kTokens; ++j) count += attends(j) ? 1 : 0;
      for (int64_t j = 0; j < kTokens; ++j)
        for (int64_t h = 0; h < 2; ++h)
          EXPECT_NEAR(w[static_cast<size_t>((t * 2 + h) * kTokens + j)], attends(j) ? 1 / count : 0, 1e-12)
              << t << " " << j;
    }
  }
}

}  // namespace
}  // namespace weft
