// Trained softmax models with other parts in them: what they begin as, and what is refused.
#include "trainers/run/conversion.h"

#include <gtest/gtest.h>

#include "tests/support/errors.h"
#include "tests/trainers/huggingface_support.h"
#include "trainers/huggingface/folder.h"
#include "trainers/huggingface/import.h"

namespace weft {
namespace {

using test::error_of;
using test::expect_same;
using test::HfFolder;
using test::kIds;
using test::logits_of;
using train::ConversionKind;
using train::ConversionOptions;
using train::Converted;

class Conversion : public test::HuggingFace {
 protected:
  std::string imported(const reference::HfModel& model, bool has_bias = false) {
    const std::string run = temp_ / (model.family + "-run");
    HfFolder(model, has_bias).write(temp_ / model.family);
    huggingface::import_folder({.folder = temp_ / model.family, .run = run});
    return run;
  }
  std::string adapted(const reference::HfModel& model, const std::string& match = "layers.*") {
    const std::string run = temp_ / (model.family + "-adapted");
    HfFolder(model, false).write(temp_ / model.family);
    huggingface::import_folder({.folder = temp_ / model.family,
                                .run = run,
                                .overrides = {"model.adapter=[{match:\"" + match + "\",rank:2}]"},
                                .is_partial = true});
    test::train_adapters(run);
    return run;
  }
  Converted convert(const ConversionOptions& options) {
    cli::Console quiet(cli::Verbosity::quiet, false);
    return train::convert_run(options, quiet);
  }
};

// Where a conversion is exact, training begins at the pretrained model's loss.
TEST_F(Conversion, OpenGatesAllHeadsAndEvenWeightsOverDepthLeaveTheLogits) {
  const std::vector<std::string> runs = {
      imported({}), imported({.family = "qwen2", .windows = {0, 3}}, true), imported({.family = "qwen3"}),
      imported({.family = "gpt2", .heads = 4, .kv_heads = 4, .head_dim = 4, .is_tied = true})};
  for (const std::string& run : runs) {
    const std::vector<float> wanted = logits_of(run, kIds);
    float largest = 1;
    for (float x : wanted) largest = std::max(largest, std::abs(x));
    auto expect_logits = [&](ConversionKind kind, const std::vector<std::string>& overrides, float slack) {
      const std::string name(train::kConversionNames[static_cast<size_t>(kind)]);
      const std::string out = run + "-" + name;
      const Converted done = convert({.run = run, .out = out, .kind = kind, .overrides = overrides});
      EXPECT_TRUE(done.left.empty()) << out;
      EXPECT_EQ(done.fresh.empty(), kind == ConversionKind::moh) << out;
      expect_same(logits_of(out, kIds), wanted, slack * largest, out);
    };
    expect_logits(ConversionKind::gates, {}, 1e-6f);
    const bool has_two = run.find("qwen2") != std::string::npos;
    std::vector<std::string> all{"model.mixer[0].softmax.head_mixture.active=2"};
    if (has_two) all.push_back("model.mixer[1].softmax.head_mixture.active=2");
    expect_logits(ConversionKind::moh, all, 1e-6f);
    // The eps of the norms acts on inputs that are larger.
    expect_logits(ConversionKind::delta_residual, {}, 2e-4f);
  }
}

// The projection behind the gates has a matrix, an adapter and with gpt2 a bias; a gate may also be the same for all tokens.
TEST_F(Conversion, OfTrainedAdaptersLeavesTheLogits) {
  const std::vector<reference::HfModel> models = {
      {}, {.family = "gpt2", .heads = 4, .kv_heads = 4, .head_dim = 4, .is_tied = true}};
  for (const reference::HfModel& model : models) {
    const std::string run = adapted(model);
    const std::vector<float> wanted = logits_of(run, kIds);
    float largest = 1;
    for (float x : wanted) largest = std::max(largest, std::abs(x));
    int count = 0;
    auto expect_logits = [&](ConversionKind kind, const std::vector<std::string>& overrides, float slack) {
      const std::string out = run + std::to_string(++count);
      const Converted done = convert({.run = run, .out = out, .kind = kind, .overrides = overrides});
      EXPECT_TRUE(done.left.empty()) << out;
      expect_same(logits_of(out, kIds), wanted, slack * largest, out);
    };
    expect_logits(ConversionKind::gates, {}, 1e-6f);
    expect_logits(ConversionKind::gates, {"model.mixer[0].softmax.gate[0].reads_input=false"}, 1e-6f);
    expect_logits(ConversionKind::moh, {"model.mixer[0].softmax.head_mixture.active=2"}, 1e-6f);
    expect_logits(ConversionKind::delta_residual, {}, 2e-4f);
  }
}

// Adapters of keys and values are repeated for the heads of each group, as their matrices are.
TEST_F(Conversion, ToSlotsTakesAdaptersAsIfTheyWereMerged) {
  const std::string run = adapted({.family = "qwen3", .head_dim = 4}, "layers.*.mixer.?");
  huggingface::export_run({.run = run, .folder = temp_ / "merged", .merges_adapters = true});
  huggingface::import_folder({.folder = temp_ / "merged", .run = temp_ / "merged-run"});
  for (const std::string& from : {run, temp_ / "merged-run"})
    convert({.run = from, .out = from + "-slots", .kind = ConversionKind::gated_slots, .slots = 8});
  const std::vector<float> wanted = logits_of(temp_ / "merged-run-slots", kIds);
  float largest = 1;
  for (float x : wanted) largest = std::max(largest, std::abs(x));
  expect_same(logits_of(run + "-slots", kIds), wanted, 1e-5f * largest, run);
}

TEST_F(Conversion, OfFewerHeadsOrSlotsAreOtherFunctionsOfTheSameWeights) {
  const std::string run = imported({.family = "qwen3", .head_dim = 4});
  const std::vector<float> before = logits_of(run, kIds);
  const Converted moh = convert({.run = run, .out = temp_ / "moh", .kind = ConversionKind::moh});
  EXPECT_TRUE(moh.fresh.empty() && moh.left.empty());
  EXPECT_NE(logits_of(temp_ / "moh", kIds), before);
  const Converted slots =
      convert({.run = run, .out = temp_ / "slots", .kind = ConversionKind::gated_slots, .slots = 8});
  EXPECT_EQ(slots.fresh.size(), 4u) << "gates of slots and a norm in each of two layers";
  EXPECT_EQ(slots.left.size(), 4u) << "the norms of queries and keys";
  EXPECT_EQ(slots.lost, (std::vector<std::string>{"layers.0.mixer: rotation of queries and keys",
                                                  "layers.1.mixer: rotation of queries and keys"}));
  const std::vector<float> after = logits_of(temp_ / "slots", kIds);
  ASSERT_EQ(after.size(), before.size());
  for (float x : after) ASSERT_TRUE(std::isfinite(x));
  const train::LoadedRun loaded = test::load_quietly(temp_ / "slots");
  EXPECT_EQ(loaded.config.experiment.model().mixer(0).gated_slots().slots(), 8);
  EXPECT_TRUE(loaded.config.experiment.data().weights_only());
}

TEST_F(Conversion, WhatCannotBeConvertedIsOneError) {
  const std::string run = imported({}), next = imported({.family = "qwen3_next", .is_linear = {true, true}});
  const std::string bad = temp_ / "bad";
  auto expect = [&](const ConversionOptions& options, std::initializer_list<std::string_view> parts) {
    EXPECT_EQ(error_of([&] { convert(options); }, parts), "");
    EXPECT_FALSE(io::file_exists(bad));
  };
  expect({.run = next, .out = bad, .kind = ConversionKind::gates}, {"no layer has softmax attention"});
  expect({.run = next, .out = bad, .kind = ConversionKind::moh}, {"no layer has softmax attention"});
  expect({.run = next, .out = bad, .kind = ConversionKind::gated_slots}, {"no layer has softmax attention"});
  expect({.run = run, .out = bad, .kind = ConversionKind::gated_slots},
         {"heads of 6 for dim 16", "leave the layer out"});
  expect({.run = temp_ / "nowhere", .out = bad}, {"nowhere"});
  expect({.run = run, .out = bad, .overrides = {"model.dims=3"}}, {"model.dims"});
  expect({.run = run,
          .out = bad,
          .kind = ConversionKind::moh,
          .overrides = {"model.mixer[0].softmax.head_mixture.active=9"}},
         {"model.mixer[0].softmax", "2 shared and 9 chosen of 4 heads"});
  const std::string few = imported({.family = "qwen2", .heads = 2, .kv_heads = 1, .head_dim = 8}, true);
  expect({.run = few, .out = bad, .kind = ConversionKind::moh}, {"a mixture of 2 heads", "4 heads or more"});
  for (ConversionKind kind : {ConversionKind::gates, ConversionKind::moh, ConversionKind::delta_residual}) {
    const std::string once = temp_ / (std::string("once-") + std::to_string(static_cast<int>(kind)));
    convert({.run = run, .out = once, .kind = kind});
    expect({.run = once, .out = bad, .kind = kind}, {"already", "Train the run as it is"});
    EXPECT_EQ(error_of([&] { convert({.run = run, .out = once, .kind = kind}); }, {"holds a run already"}), "");
  }
}

}  // namespace
}  // namespace weft
