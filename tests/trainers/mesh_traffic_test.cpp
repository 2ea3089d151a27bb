// What a plan says is sent over ranks: states, latents, tokens of neighbours, and what only a dry run knows of.
#include <gtest/gtest.h>

#include "tests/trainers/config_text.h"
#include "tests/trainers/mesh_plan_support.h"
#include "trainers/config/translate.h"
#include "trainers/run/mesh_plan.h"
#include "weft/core/parallel.h"

namespace weft::train {
namespace {

using config::test::kTiny;
using config::test::load_string;

TEST(MeshTraffic, KnowsWhatStatesOfRecurrencesAreSent) {
  MeshPlan plan = plan_of({"model.mixer=[{gla{heads:4}},{softmax{heads:4}}]", "model.layers=4"});
  const dist::TrainingShape& t = plan.training();
  ASSERT_EQ(t.recurrences.size(), 1u);
  EXPECT_EQ(t.recurrences[0].layers, 2);
  EXPECT_EQ(plan.num_other_layers(), 0);
  const dist::MeshChoice choice{.context = 2, .micro_batch = 2};
  dist::CarryShape shape = t.recurrences[0].shape;
  shape.ranks = 2, shape.segments = counts_of(dist::Layout::zigzag(256, 2), 2);
  const dist::CarryBytes bytes = carry_bytes(shape);
  EXPECT_GT(bytes.gather_forward, bytes.gather_backward);
  const dist::SchemeCost attention = plan.planner().attention(choice, 0);
  EXPECT_DOUBLE_EQ(plan.step(choice).cost.context_sent,
                   8 * 2 *
                       (attention.forward_sent + attention.backward_sent +
                        static_cast<double>(bytes.gather_forward + bytes.gather_backward)));
}

// What an MLA sends over ranks is its latent, where that is less, and as much as the dry run of a rank counts.
TEST(MeshTraffic, AnMlaSendsItsLatent) {
  const std::string mixer = "model.mixer=[{mla{heads:4 head_dim:16 rope_dim:8 kv_rank:24}}]";
  MeshPlan plan = plan_of({mixer, "parallel.context=4"});
  const dist::AttentionLayers& a = plan.training().attention.at(0);
  EXPECT_EQ(a.latent, 24);
  EXPECT_EQ(a.rotated, 8);
  EXPECT_EQ(a.key_width, 24);
  const dist::MeshChoice choice{.context = 4, .scheme = dist::Scheme::all_gather, .layout = dist::LayoutKind::zigzag};
  // Of the last rank, whose keys the others see whole, 3 packets of 64 tokens: f32 latents and positions. Of theirs it sees the first halves.
  const double each = 3 * 64 * (32 * 4 + 4), sums = 3 * 32 * 32 * 4;
  EXPECT_DOUBLE_EQ(plan.planner().attention(choice, 0).forward_sent, each);
  EXPECT_DOUBLE_EQ(plan.planner().attention(choice, 0).backward_sent, each + sums);
}

// The first of two ranks sends the second the tokens that its convolutions look at, and has nothing of them to return.
TEST(MeshTraffic, KnowsWhatConvolutionsFetch) {
  const config::Loaded config =
      load_string(kTiny, {"model.vocab=512", "model.context=256", "train.tokens=1M", "train.tokens_per_step=4096",
                          "train.micro_batch=2", "model.mixer=[{delta{heads:4}}]", "parallel.context=2",
                          "parallel.layout=contiguous"});
  dist::Hardware cpu = dist::hardware_profile("h200");
  cpu.has_engines = false;
  MeshPlan plan(config, 512, cpu);
  ASSERT_FALSE(plan.training().neighbours.empty());
  const dist::MeshChoice choice{.context = 2, .micro_batch = 2, .layout = dist::LayoutKind::contiguous};
  double halo = 0;
  for (size_t kind = 0; kind < plan.training().neighbours.size(); ++kind) {
    EXPECT_EQ(plan.training().neighbours[kind].tokens, 3);
    halo += plan.planner().neighbours(choice, kind).backward_sent;
  }
  EXPECT_GT(halo, 0);
  const PlannedStep step = plan.step(choice);
  EXPECT_GT(step.cost.others_s, 0);
  // Beside it ranks tell each other where their tokens stand: 3 numbers for each of 2 x 128, and 3 more.
  const double places = 4 * (3 * 2 * 128 + 3);
  EXPECT_DOUBLE_EQ(step.cost.context_sent - 8 * halo,
                   8 * (static_cast<double>(check_memory(config, 512, false).sent_bytes) - places));
  EXPECT_DOUBLE_EQ(plan.dry_step(choice).cost.context_sent, step.cost.context_sent);
}

// 16 heads of 32 x 64 and 2 ranks: in turns of one thread a scan, in turns of 4 they are gathered.
std::vector<std::string> wide_recurrences() {
  return {"model.vocab=512",
          "model.dim=512",
          "model.layers=2",
          "model.context=256",
          "train.tokens=1M",
          "train.tokens_per_step=2048",
          "train.micro_batch=1",
          "parallel.context=2",
          "parallel.layout=contiguous",
          "parallel.scheme=ring",
          "model.mixer=[{retnet{heads:16}}]"};
}

// How states travel on other hardware does not depend on the threads of the process that plans.
TEST(MeshTraffic, SentStatesDoNotDependOnTheThreadsHere) {
  const config::Loaded config = load_string(kTiny, wide_recurrences());
  dist::Hardware cpu = dist::hardware_profile("h200");
  cpu.has_engines = false;
  const dist::MeshChoice choice{.context = 2, .micro_batch = 1, .layout = dist::LayoutKind::contiguous};
  const int before = num_threads();
  for (const dist::Hardware& hardware : {dist::hardware_profile("h200"), cpu}) {
    set_num_threads(1);
    MeshPlan first(config, 512, hardware);
    const PlannedStep sums = first.step(choice), dry = first.dry_step(choice);
    EXPECT_GT(sums.cost.context_sent, 0);
    for (int threads : {2, 4, 16}) {
      SCOPED_TRACE(str(threads, " threads, has engines: ", hardware.has_engines));
      set_num_threads(threads);
      MeshPlan plan(config, 512, hardware);
      EXPECT_EQ(plan.step(choice).cost.context_sent, sums.cost.context_sent);
      EXPECT_EQ(plan.dry_step(choice).cost.context_sent, dry.cost.context_sent);
      EXPECT_EQ(num_threads(), threads);
    }
  }
  set_num_threads(before);
}

// Of this machine, they are those of the run, whose ranks share its threads or have what the config says.
TEST(MeshTraffic, SentStatesHereAreThoseOfTheRun) {
  struct Case {
    int process, asked, of_rank;  // threads; asked 0: not in the config
    bool scans;
  };
  const dist::MeshChoice choice{.context = 2, .micro_batch = 1, .layout = dist::LayoutKind::contiguous};
  const dist::Hardware here{.name = "here", .ranks_per_node = 1 << 20, .has_engines = false};
  const int before = num_threads();
  for (const Case& c : {Case{1, 0, 1, true}, Case{2, 0, 1, true}, Case{8, 0, 4, false}, Case{4, 4, 4, false}}) {
    SCOPED_TRACE(str(c.process, " threads, train.threads ", c.asked));
    std::vector<std::string> said = wide_recurrences();
    if (c.asked > 0) said.push_back(str("train.threads=", c.asked));
    const config::Loaded config = load_string(kTiny, said);
    set_num_threads(c.process);
    MeshPlan plan(config, 512, here, {.ranks_here = 2});
    const double planned = plan.dry_step(choice).cost.context_sent;
    MemoryEstimate of_run;
    dist::run_thread_ranks(2,
                           [&](dist::Communicator& world) {
                             if (world.rank() > 0) return;
                             EXPECT_EQ(num_threads(), c.of_rank);
                             of_run = check_memory(config, 512, false);
                           },
                           {.threads_per_rank = c.asked});
    const dist::SchemeCost carried = plan.planner().carry(choice, 0);
    EXPECT_EQ(carried.forward_sent == carried.backward_sent, c.scans) << "gathering sends decays, forward";
    // The first of two ranks sends states forward; the second sends as much backward. Beside them ranks tell each other where their tokens stand.
    const double places = 4 * (3 * 128 + 3), unsent = c.scans ? 2 * carried.backward_sent - places : 0;
    EXPECT_DOUBLE_EQ(planned, 8 * (static_cast<double>(of_run.sent_bytes) + unsent));
  }
  set_num_threads(before);
}

// What a plan's sums do not know is known of a dry run: tokens that are gathered.
TEST(MeshTraffic, ADryRunKnowsWhatElseIsSent) {
  const config::Loaded config =
      load_string(kTiny, {"model.vocab=512", "model.context=256", "train.tokens=1M", "train.tokens_per_step=4096",
                          "train.micro_batch=2", "model.mixer=[{miras{heads:4}}]"});
  MeshPlan plan(config, 512, dist::hardware_profile("h200"));
  EXPECT_GT(plan.num_other_layers(), 0);
  const dist::MeshChoice choice{.context = 2, .micro_batch = 2, .layout = dist::LayoutKind::contiguous};
  const PlannedStep sums = plan.step(choice), dry = plan.dry_step(choice);
  EXPECT_GT(dry.cost.context_sent, sums.cost.context_sent);
  EXPECT_NEAR(dry.cost.step_s - sums.cost.step_s, dry.cost.others_s - sums.cost.others_s, 1e-12);
}

}  // namespace
}  // namespace weft::train
