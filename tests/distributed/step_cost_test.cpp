// The cost of a step from hand calculations, and that the choices are those that can run.
#include "weft/distributed/step_cost.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "weft/core/error.h"
#include "weft/ops/recurrence.h"

namespace weft::dist {
namespace {

TrainingShape small() {
  return {.tokens = 8192,
          .rows_per_step = 16,
          .params = 1e9,
          .matmul_params = 9e8,
          .attention = {{.layers = 24, .heads = 16, .kv_heads = 4, .key_width = 128, .value_width = 128}}};
}
const Hardware& h200() { return hardware_profile("h200"); }

TEST(StepCost, OfOneRankIsTheSumOfItsParts) {
  const TrainingShape t = small();
  const StepCost cost = step_cost(t, {.micro_batch = 2, .layout = LayoutKind::contiguous}, h200());
  const double tokens = 16.0 * 8192, pairs = 16 * 8192.0 * 8193 / 2;
  EXPECT_NEAR(cost.linear_s, 3 * 2 * 9e8 * tokens / 690e12, 1e-9);
  EXPECT_NEAR(cost.attention_s, 24 * 16 * 128 * pairs * (4 / 600e12 + 10 / 480e12), 1e-9);
  EXPECT_NEAR(cost.optimizer_s, 28e9 / 4.8e12, 1e-12);
  EXPECT_EQ(cost.exposed_reduce_s + cost.context_sent + cost.gradients_sent, 0);
  EXPECT_NEAR(cost.step_s, cost.linear_s + cost.attention_s + cost.optimizer_s, 1e-12);
}

TEST(StepCost, RecomputationIsOneMoreForwardOfTheProducts) {
  MeshChoice choice{.data = 2, .context = 4, .micro_batch = 2};
  const StepCost kept = step_cost(small(), choice, h200());
  choice.recomputes = true;
  const StepCost again = step_cost(small(), choice, h200());
  EXPECT_NEAR(again.linear_s, kept.linear_s * 4 / 3, 1e-12);
  EXPECT_EQ(again.attention_s, kept.attention_s);
}

TEST(StepCost, WorkIsSharedAndGradientsAreSentOnce) {
  const StepCost one = step_cost(small(), {.micro_batch = 2, .layout = LayoutKind::contiguous}, h200());
  for (MeshChoice choice : {MeshChoice{.data = 8, .context = 1, .micro_batch = 2, .layout = LayoutKind::contiguous},
                            MeshChoice{.data = 2, .context = 4, .micro_batch = 2}}) {
    const StepCost cost = step_cost(small(), choice, h200());
    EXPECT_NEAR(cost.linear_s, one.linear_s / 8, 1e-9) << to_string(choice);
    EXPECT_GE(cost.attention_s, one.attention_s / 8 - 1e-9) << to_string(choice);
    EXPECT_NEAR(cost.gradients_sent, 2 * 4e9 * 7 / 8, 1) << to_string(choice);
    EXPECT_NEAR(cost.reduce_s, 14 * (6e-6 + 0.5e9 / 370e9), 1e-9) << to_string(choice);
  }
}

// 4 micro-batches, 3 layers; each of 4 ranks sends 3 others the states of its segments of 2 rows: 4 heads of 64 x 64, and the decays forward.
TEST(StepCost, CountsTheStatesOfRecurrences) {
  TrainingShape shape = small();
  shape.attention = {};
  shape.recurrences = {{.layers = 3, .shape = {.key_heads = 4, .heads = 4, .key_width = 64, .value_width = 64}}};
  MeshChoice choice{.data = 2, .context = 4, .micro_batch = 2, .layout = LayoutKind::contiguous};
  const double states = 3 * 2 * 4 * 4 * 64 * 64.0, decays = 3 * 2 * 4 * 4 * 64.0;
  const StepCost cost = step_cost(shape, choice, h200());
  EXPECT_NEAR(cost.context_sent, 4 * 3 * (2 * states + decays), 1);
  EXPECT_NEAR(cost.carry_s, 4 * 3 * (2 * 6e-6 + (2 * states + decays) / 370e9), 1e-12);
  const Tensor q = Tensor::zeros({2, 8192 / 4, 4, 64});  // of a rank: a segment of each row
  EXPECT_EQ(cost.context_bytes,
            3.0 * static_cast<double>(ops::recur_states({.q_BTGK = q, .k_BTGK = q, .v_BTHV = q}).states.num_bytes()));
  choice.layout = LayoutKind::zigzag;  // 7 segments, 2 of a rank
  EXPECT_NEAR(step_cost(shape, choice, h200()).context_sent, 2 * cost.context_sent, 1);
  choice.layout = LayoutKind::striped, shape.block = 1024;  // 2 segments of a rank and row, of 17 states each
  EXPECT_EQ(step_cost(shape, choice, h200()).context_bytes, 3 * 2 * 2 * 17 * 4 * 64 * 64 * 4.0);
  shape.block = 512;
  EXPECT_EQ(step_cost(shape, choice, h200()).context_bytes, 3 * 2 * 4 * 9 * 4 * 64 * 64 * 4.0);
  shape.recurrences[0].shape.is_delta = true;  // matrices of 64 x 64 beside the states
  choice.layout = LayoutKind::contiguous;
  EXPECT_NEAR(step_cost(shape, choice, h200()).context_sent, 4 * 3 * 3 * states, 1);
  Hardware cpu = h200();
  cpu.has_engines = false;  // 8 heads of rows, 3 ranks to wait for: a scan
  EXPECT_NEAR(step_cost(shape, choice, cpu).context_sent, 4 * 3 * 2 * states / 3, 1);
}

// Plain recurrences: with few threads there are turns enough for a scan, which sends no decays and keeps no states of chunks.
TEST(StepCost, ThreadsOfARankDecideHowStatesTravel) {
  TrainingShape shape = small();
  shape.attention = {};
  shape.recurrences = {{.layers = 3, .shape = {.key_heads = 12, .heads = 12, .key_width = 64, .value_width = 64}}};
  Hardware cpu = h200();
  cpu.has_engines = false;
  const MeshChoice choice{.data = 2, .context = 4, .micro_batch = 2, .layout = LayoutKind::contiguous};
  const double state = 2 * 12 * 64 * 64 * 4.0, decays = 2 * 12 * 64 * 4.0;
  const StepCost scan = step_cost(shape, choice, cpu);
  EXPECT_NEAR(scan.context_sent, 4 * 3 * 2 * state, 1);
  EXPECT_EQ(scan.context_bytes, 0);
  shape.recurrences[0].shape.threads = 2;
  const StepCost gather = step_cost(shape, choice, cpu);
  EXPECT_NEAR(gather.context_sent, 4 * 3 * 3 * (2 * state + decays), 1);
  EXPECT_EQ(gather.context_bytes, 3 * (8192 / 4 / 64 + 1) * state);
}

// Of a scan each segment waits for a head of the one before it, and its backward is twice the work.
TEST(StepCost, AScanWaitsForTheRanksBefore) {
  TrainingShape shape = small();
  shape.attention = {};
  shape.recurrences = {
      {.layers = 3, .shape = {.key_heads = 4, .heads = 4, .key_width = 64, .value_width = 64, .is_delta = true}}};
  Hardware cpu = h200();
  cpu.has_engines = false;
  const MeshChoice choice{.data = 2, .context = 4, .micro_batch = 2, .layout = LayoutKind::contiguous};
  const double message = 6e-6 + 64 * 64 * 4 / 370e9, head = 2 * (4 * 64 * 64 + 2 * 64 * 128) * 2048.0 / cpu.gemm_flops;
  EXPECT_NEAR(step_cost(shape, choice, cpu).carry_s, 4 * 3 * 3 * (2 * message + 3 * head), 1e-12);
}

// 4 micro-batches; 2 rows of a rank, whose convolutions look at 3 tokens of 100 bf16 numbers, fetched forward and returned backward.
TEST(StepCost, CountsTheTokensThatConvolutionsFetch) {
  TrainingShape shape = small();
  const MeshChoice choice{.data = 2, .context = 4, .micro_batch = 2, .layout = LayoutKind::contiguous};
  const StepCost without = step_cost(shape, choice, h200());
  shape.neighbours = {{.calls = 6, .tokens = 3, .numbers = 100, .dtype = kBF16}};
  const StepCost with = step_cost(shape, choice, h200());
  const double bytes = 2 * 3 * 100 * 2;
  EXPECT_NEAR(with.context_sent - without.context_sent, 4 * 2 * 6 * bytes, 1e-3);
  EXPECT_NEAR(with.others_s, 4 * 2 * 6 * (6e-6 + bytes / 370e9), 1e-12);
  EXPECT_NEAR(with.step_s - without.step_s, with.others_s, 1e-12);
  MeshChoice alone = choice;
  alone.data = 8, alone.context = 1, alone.micro_batch = 1;
  EXPECT_EQ(step_cost(shape, alone, h200()).others_s, 0);
}

// 4 micro-batches of 2 rows, 24 layers: a ring of 4 sends 3 messages of keys forward, and 3 of them and of the sums backward.
TEST(StepCost, CountsTheBytesOfEveryMicroBatchAndLayer) {
  const StepCost cost = step_cost(small(), {.data = 2, .context = 4, .micro_batch = 2}, h200());
  const double keys = 2 * (2 * 8192 / 4.0) * 4 * 128 * 2, places = 4 * (2 * 8192 / 4.0);
  // Of rank 0 the others see half of the keys; whoever has most sums to send passes them on in backward.
  EXPECT_NEAR(cost.context_sent, 4 * 24 * (5.5 * (keys + places) + 3 * 2 * keys), 1);
}

TEST(StepCost, SharedStateIsUpdatedByPartsWhichAreSentAfterwards) {
  auto cost = [](int zero) {
    return step_cost(small(), {.data = 8, .micro_batch = 2, .layout = LayoutKind::contiguous, .zero = zero}, h200());
  };
  EXPECT_NEAR(cost(1).optimizer_s, cost(0).optimizer_s / 8, 1e-12);
  EXPECT_NEAR(cost(1).gradients_sent, cost(0).gradients_sent * 1.5, 1);
  EXPECT_NEAR(cost(2).gradients_sent, cost(0).gradients_sent, 1);
  EXPECT_GT(cost(2).exposed_reduce_s, cost(0).exposed_reduce_s);
}

TEST(StepCost, PackedDocumentsAreBalancedByABalancedLayoutAndGathering) {
  TrainingShape t = small();
  t.rows_per_step = 1, t.block = 64;
  std::vector<int32_t> row(static_cast<size_t>(t.tokens));
  for (size_t i = row.size() / 2; i < row.size(); ++i) row[i] = static_cast<int32_t>(1 + i / 256);
  t.documents = {row};
  StepPlanner planner(t, h200());
  const MeshChoice zigzag{.context = 8, .layout = LayoutKind::zigzag},
      balanced{.context = 8, .scheme = Scheme::all_gather, .layout = LayoutKind::balanced};
  EXPECT_GT(planner.balance(zigzag, 0).ranks, 1.2);
  EXPECT_LT(planner.balance(balanced, 0).ranks, 1.05);
  EXPECT_LT(planner.cost(balanced).attention_s, planner.cost(zigzag).attention_s);
  const StepCost whole = step_cost(small(), {.context = 8, .layout = LayoutKind::zigzag}, h200());
  EXPECT_LT(planner.cost(balanced).attention_s, whole.attention_s / 16);  // 16 rows there
}

TEST(StepCost, AWindowAndChosenHeadsTakeTheirShareOfTheWork) {
  TrainingShape t = small();
  const MeshChoice choice{.micro_batch = 1, .layout = LayoutKind::contiguous};
  const double whole = step_cost(t, choice, h200()).attention_s;
  t.attention[0].share = 0.25;
  EXPECT_NEAR(step_cost(t, choice, h200()).attention_s, whole / 4, 1e-12);
  t.attention[0].window = 1024;
  const double pairs = 1024.0 * 1025 / 2 + (8192 - 1024) * 1024.0;
  EXPECT_NEAR(step_cost(t, choice, h200()).attention_s, whole / 4 * pairs / (8192.0 * 8193 / 2), 1e-12);
  // And a ring ends where the window does.
  const MeshChoice ring{.context = 16, .layout = LayoutKind::contiguous};
  EXPECT_LT(step_cost(t, ring, h200()).context_sent, step_cost(small(), ring, h200()).context_sent / 4);
}

TEST(StepCost, ChoicesAreThoseThatCanRun) {
  const StepPlanner planner(small(), h200());
  const std::vector<MeshChoice> choices = planner.choices(8);
  ASSERT_FALSE(choices.empty());
  for (const MeshChoice& choice : choices) {
    EXPECT_EQ(choice.ranks(), 8);
    EXPECT_EQ(planner.problem(choice), "") << to_string(choice);
  }
  auto has = [&](Scheme scheme, int context) {
    return std::ranges::any_of(choices,
                               [&](const MeshChoice& c) { return c.scheme == scheme && c.context == context; });
  };
  EXPECT_TRUE(has(Scheme::ulysses, 8));  // 4 key/value heads are replicated
  EXPECT_TRUE(has(Scheme::ring, 1));
  EXPECT_FALSE(has(Scheme::ulysses, 1));  // one rank has nothing to choose
}

TEST(StepCost, RefusesWhatCannotRun) {
  const StepPlanner planner(small(), h200());
  EXPECT_NE(planner.problem({.data = 3}), "");
  EXPECT_NE(planner.problem({.context = 3, .scheme = Scheme::ulysses}), "");
  EXPECT_EQ(planner.problem({.context = 3}), "");  // padded
  EXPECT_THROW(step_cost(small(), {.data = 3}, h200()), Error);
}

// 2 P V tokens: where every block is a segment of its own.
TEST(StepCost, RefusesShortBlocksOfRecurrences) {
  TrainingShape shape = small();
  shape.recurrences = {{.layers = 3, .shape = {.key_heads = 4, .heads = 4, .key_width = 64, .value_width = 64}}};
  for (LayoutKind layout : {LayoutKind::striped, LayoutKind::balanced}) {
    shape.block = 255;
    EXPECT_NE(StepPlanner(shape, h200()).problem({.context = 2, .layout = layout}).find("256 at least"),
              std::string::npos)
        << to_string(layout);
    shape.block = 256;
    EXPECT_EQ(StepPlanner(shape, h200()).problem({.context = 2, .layout = layout}), "") << to_string(layout);
  }
}

}  // namespace
}  // namespace weft::dist
