// What the parameters of recurrent mixers start as: rates of decays, steps, gates, short convolutions, bounds, skips.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "weft/nn/mixers.h"

namespace weft {
namespace {

constexpr int64_t kDim = 256, kHeads = 64;

struct Start {
  const char* what;
  MixerMaker make;
  const char* parameter;
  double (*of)(double);  // the number that is uniform, or always the same
  double low, high;
};

double same(double x) { return x; }
double rate(double log_rate) { return std::exp(log_rate); }
double log_step(double bias) { return std::log(std::log1p(std::exp(bias))); }  // of softplus(bias)

std::vector<double> values_of(Mixer& mixer, const std::string& name) {
  for (const NamedParam& p : mixer.params())
    if (p.name == name) return cast(*p.param, kF64).value().to_vector<double>();
  ADD_FAILURE() << name;
  return {0};
}

std::vector<Start> starts() {
  const MixerMaker gla = GlaOptions{.heads = kHeads, .kernel = 4}, delta = DeltaOptions{.heads = kHeads},
                   gated = DeltaOptions{.decay = DeltaDecay::head, .heads = kHeads, .head_dim = 2},
                   kda = DeltaOptions{.decay = DeltaDecay::channel, .heads = kHeads},
                   safe = DeltaOptions{.decay = DeltaDecay::channel, .heads = kHeads, .has_safe_gate = true},
                   mamba2 = Mamba2Options{.heads = kHeads, .state_dim = 16},
                   hgrn2 = HgrnOptions{.heads = kHeads, .kernel = 9}, hgrn = HgrnOptions{.heads = 0},
                   slots = GatedSlotsOptions{.heads = kHeads, .slots = 4, .kernel = 4},
                   lightnet = AdditiveSlotsOptions{.heads = kHeads, .kernel = 4},
                   retnet = RetnetOptions{.heads = kHeads, .kernel = 4},
                   linear = LinearAttentionOptions{.heads = kHeads, .kernel = 16},
                   lightning = LightningOptions{.heads = kHeads, .kernel = 4};
  const double shortest = std::log(1e-3), longest = std::log(1e-1);
  return {
      {"gated_delta_net", gated, "log_rate", rate, 1e-4, 16},
      {"gated_delta_net", gated, "step_bias", log_step, shortest, longest},
      {"kda", kda, "log_rate", rate, 1, 16},
      {"kda", kda, "step_bias", log_step, shortest, longest},
      {"kda, safe", safe, "log_rate", same, 0, 0},
      {"kda, safe", safe, "step_bias", log_step, shortest, longest},
      {"kda", kda, "gate.bias", same, 0, 0},
      {"mamba2", mamba2, "log_rate", rate, 1, 16},
      {"mamba2", mamba2, "step_bias", log_step, shortest, longest},
      {"mamba2", mamba2, "skip", same, 1, 1},
      {"mamba2", mamba2, "norm_gain", same, 1, 1},
      {"mamba2", mamba2, "x_conv.bias", same, 0, 0},
      {"mamba2", mamba2, "x_conv.weight", same, -0.5, 0.5},
      {"mamba2", mamba2, "b_conv.weight", same, -0.5, 0.5},
      {"delta_net", delta, "q_conv.weight", same, -0.5, 0.5},
      {"delta_net", delta, "v_conv.weight", same, -0.5, 0.5},
      {"delta_net", delta, "head_norm.weight", same, 1, 1},
      {"gla", gla, "decay_up.bias", same, 0, 0},  // decays of sigmoid(0)^(1/16) = 0.958
      {"gla", gla, "k_conv.weight", same, -0.5, 0.5},
      {"retnet", retnet, "v_conv.weight", same, -0.5, 0.5},
      {"lightning", lightning, "q_conv.weight", same, -0.5, 0.5},
      {"linear_attention", linear, "k_conv.weight", same, -0.25, 0.25},
      {"gsa", slots, "v_conv.weight", same, -0.5, 0.5},
      {"lightnet", lightnet, "k_conv.weight", same, -0.5, 0.5},
      {"hgrn2", hgrn2, "decay_conv.weight", same, -1.0 / 3, 1.0 / 3},
      {"hgrn2", hgrn2, "bounds", same, 0, 0},  // equal shares: the bound of layer l of L is l / L
      {"hgrn", hgrn, "bounds", same, 0, 0},
  };
}

TEST(RecurrentInitial, ValuesAreThePapers) {
  for (const Start& start : starts()) {
    SCOPED_TRACE(testing::Message() << start.what << ", " << start.parameter);
    auto mixer = start.make({.dim = kDim, .context = 16, .layer = 1, .layers = 4}, Rng(5));
    std::vector<double> values = values_of(*mixer, start.parameter);
    for (double& v : values) v = start.of(v);
    const auto [least, most] = std::minmax_element(values.begin(), values.end());
    const double range = start.high - start.low, slack = 1e-3 * range;
    EXPECT_GE(*least, start.low - slack);
    EXPECT_LE(*most, start.high + slack);
    if (range == 0) continue;
    // They fill the range evenly.
    EXPECT_LT(*least, start.low + 0.1 * range);
    EXPECT_GT(*most, start.high - 0.1 * range);
    double sum = 0, square = 0;
    for (double v : values) sum += v;
    const double count = static_cast<double>(values.size()), mean = sum / count;
    for (double v : values) square += (v - mean) * (v - mean);
    EXPECT_NEAR(mean, (start.low + start.high) / 2, 4 * range / std::sqrt(12 * count));
    EXPECT_NEAR(std::sqrt(square / count), range / std::sqrt(12.0), 2 * range / std::sqrt(12 * count));
  }
}

// A parameter that the table leaves out is a matrix of normal numbers, a bias of 0 or a gain of 1.
TEST(RecurrentInitial, AllElseIsNormalZeroOrOne) {
  for (const Start& start : starts()) {
    auto mixer = start.make({.dim = kDim, .context = 16, .layer = 1, .layers = 4}, Rng(5));
    for (const NamedParam& p : mixer->params()) {
      SCOPED_TRACE(testing::Message() << start.what << ", " << p.name);
      const bool is_own = p.name.find("_conv.") != std::string::npos || p.name == "log_rate" || p.name == "step_bias" ||
                          p.name == "skip" || p.name == "norm_gain" || p.name == "bounds";
      if (is_own) continue;
      const bool is_gain = p.name.ends_with("norm.weight"), is_bias = p.name.ends_with(".bias");
      double square = 0;
      const std::vector<double> values = values_of(*mixer, p.name);
      for (double v : values) {
        square += v * v;
        if (is_gain || is_bias) { ASSERT_EQ(v, is_gain ? 1 : 0); }
      }
      if (is_gain || is_bias) continue;
      const double count = static_cast<double>(values.size()), std = std::sqrt(square / count);
      EXPECT_NEAR(std / 0.02, 1, 4 / std::sqrt(2 * count));
    }
  }
}

}  // namespace
}  // namespace weft
