// The estimate of one of several ranks against what the books of such a rank say, and what it has sent against the record of its flight.
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/support/errors.h"
#include "trainers/run/memory_estimate.h"
#include "trainers/run/trainer.h"
#include "weft/core/parallel.h"
#include "weft/distributed/cost_model.h"

namespace weft::train {
namespace {

constexpr int64_t kContext = 96;

MemorySubject subject_of(MixerMaker mixer, const ParallelOptions& parallel) {
  return {.model = {.vocab = 300,
                    .dim = 32,
                    .layers = 2,
                    .context = kContext,
                    .mixers = {std::move(mixer)},
                    .ffn = {.hidden = 64},
                    .fixed_text = std::vector<int32_t>(kContext)},
          .groups = {{}},
          .rows_per_step = 4 * parallel.data,
          .counts_bytes = true,
          .parallel = parallel};
}

struct Measured {
  int64_t peak_bytes = 0, sent_bytes = 0;  // sent in a step
};

// Of rank 0 in two steps.
Measured measure(const MemorySubject& s, int64_t micro_batch) {
  std::string folder = std::filesystem::temp_directory_path() / "weft-rank-memory-XXXXXX";
  if (!mkdtemp(folder.data())) return {};
  Measured measured;
  dist::run_thread_ranks(s.parallel.ranks(), [&](dist::Communicator& world) {
    world.record_to(folder);
    const MemoryStats before = allocator(Device::cpu()).stats();
    Team team(world, as_said(s.parallel));
    LanguageModel model(s.model, Rng(3));
    std::vector<int32_t> ids;
    for (int i = 0; i < 4000; ++i) ids.push_back((i * i / 7 + i % 5) % static_cast<int>(s.model.vocab));
    data::Loader loader({{data::Dataset(ids), 1.0}}, {.context = kContext, .vocab = s.model.vocab}, 1);
    Trainer trainer(model, loader,
                    {.sizes = {.context = kContext,
                               .micro_batch = micro_batch,
                               .rows_per_step = s.rows_per_step,
                               .micro_batches = s.rows_per_step / (micro_batch * s.parallel.data),
                               .tokens_per_step = s.rows_per_step * kContext,
                               .steps = 3},
                     .groups = s.groups,
                     .schedule = {},
                     .clip_norm = 1,
                     .byte_lengths = std::vector<int64_t>(static_cast<size_t>(s.model.vocab), 1)},
                    &team);
    auto step = [&] {
      if (team.leads()) trainer.step();
      else if (team.hear().duty == Duty::step) trainer.step();
    };
    step();
    const int64_t sent = dist::recorded_bytes(folder, world.rank());
    step();
    if (!team.leads()) return;
    measured = {allocator(Device::cpu()).stats().peak_bytes - before.current_bytes,
                dist::recorded_bytes(folder, 0) - sent};
  });
  std::filesystem::remove_all(folder);
  return measured;
}

// Sums of gradients over all ranks, and what ranks that update parts send of the weights.
double gradient_bytes(const MemoryEstimate& estimate, const ParallelOptions& p) {
  const double each = 4.0 * static_cast<double>(estimate.num_params) * (p.ranks() - 1) / p.ranks();
  return (p.zero == 2 ? 1 : 2) * each + (p.zero > 0 ? each : 0);
}

void expect_within(const MemorySubject& s, int64_t micro_batch, double memory_band, double sent_band) {
  set_num_threads(s.parallel.ranks());  // one of each rank, in the estimate too
  const int64_t micro_batches = s.rows_per_step / (micro_batch * s.parallel.data);
  const Measured measured = measure(s, micro_batch);
  set_num_threads(1);
  const MemoryEstimate estimate = MemoryEstimator(s).of(micro_batch);
  EXPECT_NEAR(static_cast<double>(estimate.peak_bytes) / static_cast<double>(measured.peak_bytes), 1, memory_band)
      << estimate.peak_bytes << " estimated, " << measured.peak_bytes << " measured";
  const double sent = static_cast<double>(micro_batches * estimate.sent_bytes + estimate.buffers_sent_bytes) +
                      gradient_bytes(estimate, s.parallel);
  EXPECT_NEAR(sent / static_cast<double>(measured.sent_bytes), 1, sent_band)
      << sent << " estimated, " << measured.sent_bytes << " measured";
}

TEST(RankMemory, IsThatOfEveryMixerWithinThreePercent) {
  for (const MixerRow& row : mixer_table()) {
    SCOPED_TRACE(row.name);
    if (!row.lacks.order.empty()) continue;  // refused over ranks when a config is read
    expect_within(subject_of(row.make, {.context = 2}), 2, 0.03, 0.05);
  }
}

TEST(RankMemory, KnowsThePatternOfAHybrid) {
  MemorySubject s = subject_of({}, {.context = 2});
  s.model.layers = 6;
  s.model.mixers = {SoftmaxOptions{.heads = 4}, DeltaOptions{.decay = DeltaDecay::channel, .heads = 2},
                    HySparseOptions{.heads = 4, .kv_heads = 2, .sparse = 1, .block = 8, .blocks = 2, .window = 8},
                    HymbaOptions{.heads = 4, .kv_heads = 2, .window = 16, .sharing = 2}};
  s.model.pattern = {2, 2, 3, 3, 0, 1};
  expect_within(s, 2, 0.03, 0.05);
}

TEST(RankMemory, KnowsMixersAlone) {
  for (const ParallelOptions& parallel : {ParallelOptions{.context = 2}, ParallelOptions{.data = 2, .zero = 2}}) {
    MemorySubject s = subject_of(SoftmaxOptions{.heads = 4}, parallel);
    s.model.mixers.push_back(DeltaOptions{.heads = 2});
    s.model.has_ffn = false;
    expect_within(s, 2, 0.03, 0.05);
  }
}

TEST(RankMemory, KnowsSchemesAndLayouts) {
  for (dist::Scheme scheme : dist::all_schemes()) {
    SCOPED_TRACE(str(scheme));
    expect_within(subject_of(SoftmaxOptions{.heads = 4, .kv_heads = 2}, {.context = 4, .scheme = scheme}), 1, 0.03,
                  0.02);
  }
  for (dist::LayoutKind layout : {dist::LayoutKind::striped, dist::LayoutKind::balanced}) {
    SCOPED_TRACE(str(layout));
    expect_within(subject_of(SoftmaxOptions{.heads = 4}, {.context = 2, .layout = layout, .block = 8}), 2, 0.03, 0.02);
  }
}

TEST(RankMemory, KnowsWhatDataRanksShare) {
  for (int zero : {0, 1, 2}) {
    SCOPED_TRACE(str("zero ", zero));
    expect_within(subject_of(SoftmaxOptions{.heads = 4}, {.data = 2, .zero = zero}), 2, 0.03, 0.02);
    expect_within(subject_of(SoftmaxOptions{.heads = 4}, {.data = 2, .context = 2, .zero = zero}), 1, 0.03, 0.02);
  }
}

TEST(RankMemory, FallsWithTheRanksOfASequence) {
  auto activations = [](int context, dist::Scheme scheme) {
    MemorySubject s = subject_of(SoftmaxOptions{.heads = 4}, {.context = context, .scheme = scheme});
    s.model.context = 4096;
    s.model.fixed_text.resize(4096);
    return static_cast<double>(MemoryEstimator(s).of(1).activations_bytes);
  };
  const double one = activations(1, dist::Scheme::ring);
  for (dist::Scheme scheme : dist::all_schemes()) {
    SCOPED_TRACE(str(scheme));
    const double two = activations(2, scheme) / one, four = activations(4, scheme) / one;
    EXPECT_LT(two, 0.6);
    EXPECT_LT(four, 0.35);
  }
}

// What a call of attention takes beside one of its own tokens alone: a few times the keys and values of a rank. Under all-gather it is those
// of the whole sequence, on any number of ranks.
TEST(RankMemory, OfACallFallsUnderEverySchemeButAllGather) {
  constexpr int64_t kAll = 65536;
  auto of_call = [](dist::Scheme scheme, int ranks) {
    return dist::scheme_memory(scheme, {.group = 2, .node = 4},
                               {.ranks = ranks,
                                .batch = 1,
                                .tokens = kAll / ranks,
                                .heads = 32,
                                .kv_heads = 32,
                                .key_width = 16,
                                .value_width = 16});
  };
  for (dist::Scheme scheme : dist::all_schemes()) {
    SCOPED_TRACE(str(scheme));
    const double eight = of_call(scheme, 8), all = of_call(scheme, 32);
    if (scheme == dist::Scheme::all_gather) {
      EXPECT_GT(all, 2 * 2 * 32 * 16 * kAll) << "keys and values, in bf16";
      EXPECT_GT(all / eight, 0.95);
    } else {
      EXPECT_LT(all / eight, 0.35);
    }
  }
}

}  // namespace
}  // namespace weft::train
