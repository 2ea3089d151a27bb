// Plans of a config's training on many ranks.
#include "trainers/run/mesh_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "tests/trainers/config_text.h"
#include "tests/trainers/mesh_plan_support.h"
#include "trainers/config/translate.h"
#include "trainers/run/num_ids.h"
#include "weft/core/parallel.h"
#include "weft/io/files.h"

namespace weft::train {
namespace {

using config::test::kTiny;
using config::test::load_string;

TEST(MeshPlan, ReadsTheModelsSizes) {
  const MeshPlan plan = plan_of({"model.mixer=[{softmax{heads:4 kv_heads:2}}]", "model.layers=3"});
  const dist::TrainingShape& t = plan.training();
  EXPECT_EQ(t.tokens, 256);
  EXPECT_EQ(t.rows_per_step, 16);
  ASSERT_EQ(t.attention.size(), 1u);
  EXPECT_EQ(t.attention[0].layers, 3);
  EXPECT_EQ(t.attention[0].heads, 4);
  EXPECT_EQ(t.attention[0].kv_heads, 2);
  EXPECT_DOUBLE_EQ(t.attention[0].share, 1);
  EXPECT_EQ(plan.num_other_layers(), 0);
  // What the products leave of training's work is attention's: 12 heads width per key, two of three parts of it backward.
  const dist::AttentionLayers& a = t.attention[0];
  EXPECT_NEAR(plan.flops_per_token(),
              6 * t.matmul_params + 3 * 12.0 * static_cast<double>(a.heads * a.key_width) * 257 / 2, 1);
}

TEST(MeshPlan, ALimitOfTheConfigIsTheMemoryOfARank) {
  const double limit = 0.001 * 1073741824;
  EXPECT_NEAR(plan_of({"train.memory_gib=0.001"}).hardware().memory_bytes, limit, 1);
  EXPECT_EQ(plan_of({"train.memory_gib=100000"}).hardware().memory_bytes, dist::hardware_profile("h200").memory_bytes);
}

TEST(MeshPlan, AWindowIsAShareOfTheWork) {
  const MeshPlan plan = plan_of({"model.mixer=[{softmax{heads:4 window:32}}]"});
  const double pairs = 32.0 * 33 / 2 + (256 - 32) * 32.0;
  EXPECT_EQ(plan.training().attention.at(0).window, 32);
  EXPECT_DOUBLE_EQ(plan.training().attention.at(0).share, 1);
  MeshPlan whole = plan_of({"model.mixer=[{softmax{heads:4}}]"}), windowed = plan;
  const dist::MeshChoice choice{.layout = dist::LayoutKind::contiguous};
  EXPECT_NEAR(windowed.step(choice).cost.attention_s, whole.step(choice).cost.attention_s * pairs / (256.0 * 257 / 2),
              1e-12);
}

TEST(MeshPlan, OfOneRankTakesTheMemoryOfItsDryRun) {
  const config::Loaded config =
      load_string(kTiny, {"model.vocab=512", "train.tokens=1M", "train.tokens_per_step=4096", "model.context=256"});
  MeshPlan plan(config, 512, dist::hardware_profile("h200"));
  const PlannedStep step = plan.step({.micro_batch = 2, .layout = dist::LayoutKind::contiguous});
  MemorySubject subject = memory_subject(config, 512, false);
  subject.model.recompute = Recompute::none;
  EXPECT_EQ(step.bytes, MemoryEstimator(subject).of(2).reserved_bytes);
  EXPECT_TRUE(step.fits);
}

const std::vector<dist::MeshChoice>& some_choices() {
  using enum dist::Scheme;
  using enum dist::LayoutKind;
  static const std::vector<dist::MeshChoice> kChoices = {
      {.data = 2},
      {.data = 4, .zero = 1},
      {.data = 2, .zero = 2},
      {.context = 2, .scheme = ring, .layout = zigzag},
      {.context = 4, .scheme = ring, .layout = striped},
      {.context = 2, .scheme = ulysses, .layout = contiguous},
      {.context = 4, .scheme = all_gather, .layout = zigzag},
      {.data = 2, .context = 2, .scheme = ring, .layout = zigzag, .zero = 1}};
  return kChoices;
}

// The dry run of a run that is spread so says what ranks have within 3 % (RankMemory.*), and so do the choices that a plan looks at closely. It
// has hundreds of others, for which it adds what a call of the scheme keeps to the peak of one rank's tokens, which it need not meet: that is safe,
// and up to a seventh too large.
TEST(MeshPlan, PeakOfARankIsAtLeastThatOfItsDryRun) {
  for (const char* mixer : {"model.mixer=[{softmax{heads:4 kv_heads:2}}]", "model.mixer=[{softmax{heads:4}}]",
                            "model.mixer=[{mla{heads:4 head_dim:16 rope_dim:8 kv_rank:24}}]"}) {
    const config::Loaded config = load_string(kTiny, {mixer, "model.vocab=512", "model.dim=128", "model.context=8192",
                                                      "train.tokens=1M", "train.tokens_per_step=32768"});
    MeshPlan plan(config, 512, dist::hardware_profile("h200"));
    for (const dist::MeshChoice& choice : some_choices()) {
      SCOPED_TRACE(str(mixer, ", ", to_string(choice), ", zero ", choice.zero));
      MemorySubject subject = memory_subject(config, 512, false);
      subject.model.recompute = Recompute::none;
      subject.parallel = {.data = choice.data,
                          .context = choice.context,
                          .zero = choice.zero,
                          .layout = choice.layout,
                          .scheme = choice.scheme};
      const auto exact = static_cast<double>(MemoryEstimator(subject).of(1).peak_bytes);
      EXPECT_NEAR(static_cast<double>(plan.dry_step(choice).peak_bytes) / exact, 1, 0.03);
      const auto sums = static_cast<double>(plan.step(choice).peak_bytes);
      EXPECT_GE(sums, 0.97 * exact);
      EXPECT_LE(sums, 1.15 * exact);
      if (choice.context == 1 && choice.zero == 0) { EXPECT_NEAR(sums / exact, 1, 0.03); }
    }
  }
}

// What a plan prints is what a run of these ranks says of itself when it starts.
TEST(MeshPlan, TheFirstChoicesHaveTheMemoryOfTheRunThatTheyName) {
  const std::vector<std::string> sizes = {"model.vocab=512", "model.context=1024", "train.tokens=1M",
                                          "train.tokens_per_step=8192"};
  const config::Loaded config = load_string(kTiny, sizes);
  constexpr size_t kDryRuns = 6;
  const std::vector<PlannedStep> steps =
      MeshPlan(config, 512, dist::hardware_profile("h200"), {.ranks_here = 4}).steps(4, kDryRuns);
  const int before = num_threads();
  set_num_threads(std::max(before / 4, 1));  // of a rank: products take memory for each
  ASSERT_GT(steps.size(), kDryRuns);
  for (size_t i = 0; i < steps.size(); ++i) {
    const PlannedStep& s = steps[i];
    ASSERT_TRUE(s.is_dry_run || i >= kDryRuns);
    if (!s.is_dry_run) continue;
    SCOPED_TRACE(to_string(s.choice));
    std::vector<std::string> said = sizes;
    for (const std::string& field : {str("parallel.data=", s.choice.data), str("parallel.context=", s.choice.context),
                                     str("parallel.scheme=", s.choice.scheme), str("parallel.layout=", s.choice.layout),
                                     str("train.micro_batch=", s.choice.micro_batch),
                                     str("train.recompute=", s.choice.recomputes ? "blocks" : "none")})
      said.push_back(field);
    EXPECT_EQ(s.peak_bytes, check_memory(load_string(kTiny, said), 512, false).peak_bytes);
  }
  set_num_threads(before);
}

// Where the memory decides, a choice is looked at before it is said to fit.
TEST(MeshPlan, WhatDoesNotFitByItsDryRunComesLater) {
  const config::Loaded config = load_string(
      kTiny, {"model.vocab=512", "model.dim=128", "model.context=8192", "train.tokens=1M",
              "train.tokens_per_step=32768", "parallel.context=4", "parallel.scheme=ring", "parallel.layout=zigzag"});
  MeshPlanOptions options{.fixed = fixed_choices(config)};
  options.fixed.micro_batch = 1;
  const dist::MeshChoice choice{.context = 4, .scheme = dist::Scheme::ring, .layout = dist::LayoutKind::zigzag};
  MeshPlan any(config, 512, dist::hardware_profile("h200"), options);
  const int64_t exact = any.dry_step(choice).bytes, sums = any.step(choice).bytes;
  ASSERT_GT(exact, sums) << "this choice shows nothing any more: take another";
  dist::Hardware tight = dist::hardware_profile("h200");
  tight.memory_bytes = static_cast<double>(sums);
  MeshPlan plan(config, 512, tight, options);
  EXPECT_TRUE(plan.step(choice).fits);
  const std::vector<PlannedStep> steps = plan.steps(4, 1);
  ASSERT_EQ(steps.size(), 2u);
  EXPECT_TRUE(steps[0].fits && steps[0].choice.recomputes && steps[0].is_dry_run);
  EXPECT_TRUE(!steps[1].fits && !steps[1].choice.recomputes && steps[1].is_dry_run);
}

TEST(MeshPlan, MemoryFallsWithTheRanksOfASequence) {
  MeshPlan plan = plan_of({"model.context=4096", "train.tokens_per_step=32768"});
  int64_t before = plan.step({.layout = dist::LayoutKind::contiguous}).bytes;
  for (int context : {2, 4, 8}) {
    const int64_t bytes = plan.step({.context = context}).bytes;
    EXPECT_LT(bytes, before) << context;
    before = bytes;
  }
}

TEST(MeshPlan, SharedMomentsAndGradientsTakeAPartOfTheirMemory) {
  const config::Loaded config =
      load_string(kTiny, {"model.vocab=512", "train.tokens=1M", "train.tokens_per_step=4096"});
  MeshPlan plan(config, 512, dist::hardware_profile("h200"));
  auto bytes = [&](int zero, int64_t micro_batch) {
    return plan.step({.data = 4, .micro_batch = micro_batch, .zero = zero}).bytes;
  };
  const double part = 4 * plan.training().params * 3 / 4;
  EXPECT_NEAR(static_cast<double>(bytes(1, 32) - bytes(2, 32)), part, 8);
  EXPECT_GE(static_cast<double>(bytes(0, 32) - bytes(1, 32)), 2 * part);
  EXPECT_EQ(bytes(1, 16), bytes(2, 16)) << "while micro-batches accumulate, a rank holds all of its gradients";
}

TEST(MeshPlan, FastestThatFitsComesFirst) {
  MeshPlan plan = plan_of({});
  const std::vector<PlannedStep> steps = plan.steps(4);
  ASSERT_GT(steps.size(), 3u);
  EXPECT_TRUE(std::ranges::is_sorted(steps, {}, [](const PlannedStep& s) { return s.cost.step_s; }));
  EXPECT_TRUE(std::ranges::all_of(steps, &PlannedStep::fits));

  dist::Hardware small = dist::hardware_profile("h200");
  small.memory_bytes = static_cast<double>(std::ranges::min_element(steps, {}, &PlannedStep::bytes)->bytes);
  MeshPlan tight(
      load_string(kTiny, {"model.vocab=512", "model.context=256", "train.tokens=1M", "train.tokens_per_step=4096"}),
      512, small);
  const std::vector<PlannedStep> few = tight.steps(4);
  EXPECT_TRUE(few.front().fits);
  EXPECT_FALSE(few.back().fits);
  EXPECT_TRUE(std::ranges::is_sorted(few, std::greater<>(), &PlannedStep::fits));
}

TEST(MeshPlan, WhatTheConfigSaysOfRanksIsNotChosen) {
  const std::vector<std::string> sizes = {"model.vocab=512", "model.context=256", "train.tokens=1M",
                                          "train.tokens_per_step=4096"};
  auto steps = [&](std::vector<std::string> overrides, int ranks) {
    overrides.insert(overrides.end(), sizes.begin(), sizes.end());
    const config::Loaded config = load_string(kTiny, overrides);
    return MeshPlan(config, 512, dist::hardware_profile("h200"), {.fixed = fixed_choices(config)}).steps(ranks);
  };
  EXPECT_EQ(to_string(fixed_choices(load_string(kTiny, sizes))), "");
  for (const PlannedStep& s : steps({"parallel.context=2", "parallel.layout=striped"}, 4)) {
    EXPECT_EQ(s.choice.context, 2);
    EXPECT_EQ(s.choice.data, 2);
    EXPECT_EQ(s.choice.layout, dist::LayoutKind::striped);
  }
  for (const PlannedStep& s : steps({"parallel.data=4", "parallel.zero=2"}, 4)) {
    EXPECT_EQ(s.choice.context, 1);
    EXPECT_EQ(s.choice.zero, 2);
  }
  const std::vector<PlannedStep> balanced =
      steps({"parallel.context=4", "parallel.layout=balanced", "parallel.scheme=all_gather"}, 4);
  ASSERT_FALSE(balanced.empty());
  EXPECT_EQ(to_string(balanced[0].choice).substr(0, 45), "data 1 x context 4, all_gather, balanced, mic");
  EXPECT_TRUE(steps({"parallel.context=2"}, 3).empty());
}

TEST(MeshPlan, DocumentsAreLessWork) {
  const std::vector<std::string> sizes = {"model.vocab=512", "model.context=4096", "train.tokens=1M",
                                          "train.tokens_per_step=32768"};
  const config::Loaded config = load_string(kTiny, sizes);
  MeshPlan whole(config, 512, dist::hardware_profile("h200"));
  MeshPlan packed(config, 512, dist::hardware_profile("h200"), {.documents = {{256, 256, 1.0}}});
  const dist::MeshChoice choice{.layout = dist::LayoutKind::contiguous};
  EXPECT_NEAR(packed.step(choice).cost.attention_s / whole.step(choice).cost.attention_s, 257.0 / 4097, 1e-6);
  EXPECT_GT(packed.step(choice).bytes, 0);
}

// Recipes and presets, on two ranks that share a row where they can: none is an Error, and what is said of the first choice may be.
void expect_plan(const config::Loaded& config, int ranks) {
  const int64_t vocab = num_ids_of(config).value_or(65);
  const MeshPlanOptions options{.fixed = {.context = ranks,
                                          .micro_batch = config.experiment.train().micro_batch(),
                                          .scheme = dist::Scheme::ring,
                                          .layout = dist::LayoutKind::contiguous}};
  MeshPlan plan(config, vocab, dist::hardware_profile("h200"), options);
  const std::vector<PlannedStep> steps = plan.steps(ranks, 1);
  ASSERT_FALSE(steps.empty());
  const PlannedStep& first = steps[0];
  EXPECT_TRUE(first.is_dry_run && first.fits);
  EXPECT_TRUE(std::isfinite(first.cost.step_s) && first.cost.step_s > 0);
  // At least weights, gradients and a moment, and less than what a laptop has.
  EXPECT_GT(static_cast<double>(first.peak_bytes), 3 * 4 * plan.training().params);
  EXPECT_LT(first.peak_bytes, int64_t{16} << 30);
  EXPECT_EQ(first.cost.context_sent > 0, ranks > 1);
  EXPECT_GT(plan.flops_per_token(), 2 * plan.training().params);
}

TEST(MeshPlan, EveryRecipeHasOne) {
  int count = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(WEFT_RECIPES)) {
    if (entry.path().extension() != ".txtpb" ||
        io::read_file(entry.path().string()).find("\nbase:") != std::string::npos)
      continue;
    SCOPED_TRACE(entry.path().string());
    ++count;
    const config::Loaded config = config::load(entry.path().string(), {});
    expect_plan(config, 2);
  }
  EXPECT_GE(count, 6) << "configs that are no grids";
}

TEST(MeshPlan, EveryMixerHasOne) {
  int count = 0;
  for (const MixerRow& row : mixer_table()) {
    SCOPED_TRACE(row.name);
    const config::Loaded config = load_string(
        kTiny, {str("model.mixer=[{preset: \"", row.name, "\"}]"), "model.vocab=256", "model.layers=2",
                "train.tokens=64000", "train.tokens_per_step=128", "train.micro_batch=2", "model.context=64"});
    ++count;
    expect_plan(config, row.lacks.order.empty() ? 2 : 1);
  }
  EXPECT_GE(count, 60);
}

// Where its run is not there yet, a teacher is taken for a model of this one's sizes.
TEST(MeshPlan, ATeacherMayBeMissing) {
  const std::vector<std::string> sizes = {"model.vocab=512", "train.tokens=1M", "train.tokens_per_step=4096"};
  std::vector<std::string> taught = sizes;
  taught.push_back("start={from: \"runs/none\" distill{}}");
  MeshPlan alone(load_string(kTiny, sizes), 512, dist::hardware_profile("h200")),
      with(load_string(kTiny, taught), 512, dist::hardware_profile("h200"));
  EXPECT_EQ(alone.teacher_note(), "");
  EXPECT_NE(with.teacher_note().find("runs/none"), std::string::npos) << with.teacher_note();
  EXPECT_NEAR(with.flops_per_token(), alone.flops_per_token() * 4 / 3, 1);
  const dist::MeshChoice choice{.micro_batch = 2, .layout = dist::LayoutKind::contiguous};
  const PlannedStep one = alone.step(choice), two = with.step(choice);
  EXPECT_GT(two.cost.step_s, one.cost.step_s);
  EXPECT_GE(static_cast<double>(two.peak_bytes - one.peak_bytes), 4 * alone.training().params) << "its weights";
}

}  // namespace
}  // namespace weft::train
