// Whole models on several ranks against one, in float64: loss, every gradient, weights and running means after steps.
#include "trainers/run/parity.h"

#include <gtest/gtest.h>

#include <fstream>

#include "tests/io/temp_folder.h"
#include "tests/support/errors.h"
#include "tests/trainers/config_text.h"
#include "weft/nn/mixers/projected.h"
#include "weft/trainers/cli.h"

namespace weft::train {
namespace {

using dist::LayoutKind;
using dist::Scheme;

constexpr const char* kModel = R"(
model { dim: 16 layers: 2 context: 22 mixer { softmax { heads: 2 } } ffn { swiglu { hidden: 24 } } }
data { train { path: "none.txt" } val { fraction: 0.1 } }
optim { clip_norm: 1 group { match: "layers.*.weight" rank: 2 muon { lr: 0.01 } } group { match: "*" adamw { lr: 3e-3 } } }
train { tokens: 4400 tokens_per_step: 44 micro_batch: 2 }
)";

config::Loaded load(const std::vector<std::string>& overrides) {
  config::Loaded config = config::read_string(kModel, "model.txtpb", "/config", overrides);
  config::resolve(config);
  return config;
}

constexpr ParityCase kCases[] = {{LayoutKind::contiguous, Scheme::ring, 2},
                                 {LayoutKind::striped, Scheme::all_gather, 3},
                                 {LayoutKind::zigzag, Scheme::ring, 4},
                                 {LayoutKind::balanced, Scheme::ring, 3}};

void expect_parity(const std::vector<std::string>& overrides) {
  for (const ParityResult& r : check_parity(load(overrides), kCases, {.steps = 2, .block = 2}))
    EXPECT_TRUE(r.passed) << (overrides.empty() ? "" : overrides[0]) << ", " << to_string(r.of.layout) << ", "
                          << r.of.ranks << " ranks: loss " << r.loss << ", gradients " << r.gradient << ", weights "
                          << r.weight << ", first " << r.first;
}

TEST(Parity, OfMixersOfEveryKind) {
  for (const char* mixer :
       {"softmax{heads:4 kv_heads:2 window:9 soft_cap:5 dropout:0.2 gate{} affine{} sink{}}",
        "softmax{heads:4 head_mixture{active:2 shared:1 running_load:true}}", "forgetting{heads:2}",
        "differential{heads:2}", "mla{heads:2}", "nap{heads:2}", "tapa{heads:2}",
        "deconstructed{kind:random_embedding heads:2}", "deconstructed{kind:fixed_text heads:2}",
        "moa{experts:4 active:2 noise:true}", "gla{heads:2}", "delta{heads:4 decay:head}", "hgrn{heads:0}"})
    expect_parity({std::string("model.mixer=[{") + mixer + "}]"});
}

TEST(Parity, OfPatternsResidualsRecomputeAndExperts) {
  expect_parity({"model.mixer=[{softmax{heads:2}},{nexus{heads:2}}]"});
  expect_parity({"model.residual={attention{}}"});
  expect_parity({"model.residual={delta{blocks:2}}"});
  expect_parity({"train.recompute=blocks", "model.mixer=[{softmax{heads:4 head_mixture{active:2}}}]"});
  expect_parity({"train.recompute=mixers"});
  for (const char* recompute : {"blocks", "mixers"})
    expect_parity({str("train.recompute=", recompute), "model.mixer=[{gla{heads:2}},{delta{heads:4 decay:channel}}]"});
  // Layers that read what an earlier one left: schedules that begin anew, alone and beside each other.
  const std::string hysparse = "{hysparse{heads:4 kv_heads:2 sparse:2 block:4 blocks:2 window:5}}",
                    hymba = "{hymba{heads:2 window:6 sharing:2}}";
  expect_parity({"model.layers=4", "model.mixer=[" + hysparse + "]"});
  expect_parity({"model.layers=4", "model.mixer=[" + hymba + "]"});
  expect_parity({"model.layers=6", "model.mixer=[" + hysparse + "," + hymba + "]", "model.pattern=\"0 0 0 1 1 1\"",
                 "train.recompute=blocks"});
  // A fixed sequence passes layers whose choice ranks do not share, outside training.
  expect_parity(
      {"model.mixer=[{flux{heads:2 window:6 prompt:3 hidden:5}},{deconstructed{kind:random_embedding heads:2}}]",
       "model.layers=5", "model.pattern=\"0 0 0 0 1\""});
  expect_parity({"model.mixer=[{umoe{experts:4 active:2 query_rank:4}}]", "model.ffn={umoe{active:3}}"});
  expect_parity({"model.position={learned{}}"});
}

TEST(Parity, SaysWhichSchemeCannotRun) {
  const ParityCase cases[] = {{LayoutKind::zigzag, Scheme::ulysses, 2}, {LayoutKind::zigzag, Scheme::ulysses, 3}};
  const std::vector<ParityResult> results = check_parity(load({}), cases, {.steps = 1, .block = 2});
  ASSERT_EQ(results.size(), 2u);
  EXPECT_TRUE(results[0].passed && results[0].refused.empty());
  EXPECT_EQ(results[1].refused, "ulysses: 2 query heads for 3 ranks that divide heads");
}

// The command refuses it by the config; a program that does not ask is told what is wrong, whatever the layout.
TEST(Parity, OfAMixerThatNeedsItsNeighboursNamesTheRanks) {
  const config::Loaded config = load({"model.mixer=[{multi_token{heads:2}}]"});
  for (size_t i : {0, 1})
    EXPECT_EQ(test::error_of(
                  [&] {
                    check_parity(config, {kCases + i, 1}, {.steps = 0, .block = 2});
                  },
                  {str("multi_token: the tokens of a row stand on ", kCases[i].ranks, " ranks"),
                   "whole rows: parallel.context=1"}),
              "");
}

// A mixer that adds the mean of the tokens that are here.
class Averaging final : public ProjectedMixer {
 public:
  Averaging(const MixerArgs& args, Rng rng) : ProjectedMixer("averaging", {.heads = 2}, args, rng) {}
  Var forward(const Var& x, Tokens& tokens) override {
    Var y = tokens.attend(queries(x), keys(x), values(x))[0];
    return written(y, tokens) + mean(x, 1, true) * 1e-3;
  }
  double flops_per_token(double) const override { return 0; }
};

cli::Extensions averaging() {
  return {.mixers = {{.name = "averaging",
                      .make = [](const MixerArgs& args, Rng rng) { return std::make_unique<Averaging>(args, rng); }}}};
}

TEST(Parity, NamesTheFirstLayerOfAMixerThatMixesTokensHere) {
  config::Loaded config = load({R"(model.mixer=[{softmax{heads:2}},{custom{type:"averaging"}}])"});
  config.own = averaging();
  const std::vector<ParityResult> results = check_parity(config, {kCases, 1}, {.steps = 1, .block = 2});
  ASSERT_EQ(results.size(), 1u);
  EXPECT_FALSE(results[0].passed);
  EXPECT_GT(results[0].loss, 1e-10);
  EXPECT_FALSE(results[0].first.empty());
  double largest = 0;
  for (const ParityDifference& p : results[0].parameters) largest = std::max(largest, p.gradient);
  EXPECT_EQ(largest, results[0].gradient);
}

TEST(Parity, OfTheCommandEndsWithItsExitCodeWhereRanksDiffer) {
  const test::TempFolder folder;
  const std::string file = folder / "model.txtpb";
  std::ofstream(file) << kModel;
  auto exit_code = [&](std::string mixer) {
    std::vector<std::string> words{"weft",    "parity", file,        "model.mixer=[{" + mixer + "}]",
                                   "--ranks", "2",      "--layouts", "zigzag",
                                   "--steps", "1",      "--schemes", "ring"};
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    return cli::main(static_cast<int>(argv.size()), argv.data(), averaging());
  };
  EXPECT_EQ(exit_code("softmax{heads:2}"), cli::kSuccess);
  EXPECT_EQ(exit_code(R"(custom{type:"averaging"})"), cli::kCheckFailed);
}

// A mixer whose output no number holds, on one rank and on many: infinity is not taken for a difference of nothing.
class Overflowing final : public ProjectedMixer {
 public:
  Overflowing(const MixerArgs& args, Rng rng) : ProjectedMixer("overflowing", {.heads = 2}, args, rng) {}
  Var forward(const Var& x, Tokens& tokens) override {
    return written(tokens.attend(queries(x), keys(x), values(x))[0], tokens) * 1e308 * 1e308;
  }
  double flops_per_token(double) const override { return 0; }
};

TEST(Parity, OfNumbersThatAreNotFiniteFails) {
  config::Loaded config = load({R"(model.mixer=[{custom{type:"overflowing"}}])"});
  config.own.mixers = {{.name = "overflowing", .make = [](const MixerArgs& args, Rng rng) {
                          return std::make_unique<Overflowing>(args, rng);
                        }}};
  const std::vector<ParityResult> results = check_parity(config, {kCases, 1}, {.steps = 0, .block = 2});
  ASSERT_EQ(results.size(), 1u);
  EXPECT_FALSE(results[0].passed);
}

}  // namespace
}  // namespace weft::train
