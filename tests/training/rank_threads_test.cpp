// What ranks that are threads have each for itself, and the threads that work for one of them: memory and its limits, anomaly mode, random
// numbers, scratch memory.
#include <gtest/gtest.h>

#include <optional>

#include "src/training/job_thread.h"
#include "tests/support/errors.h"
#include "tests/training/ranks_support.h"
#include "weft/autograd/functions.h"
#include "weft/core/memory.h"
#include "weft/core/parallel.h"
#include "weft/core/scope.h"
#include "weft/ops/attention.h"
#include "weft/ops/matmul.h"

namespace weft {
namespace {

using namespace test;

constexpr int64_t kMiB = int64_t{1} << 20;

TEST(RankThreads, AJobIsOfTheRankThatGaveIt) {
  JobThread thread;  // one for all: each job brings its own settings
  dist::run_thread_ranks(3, [&](dist::Communicator& comm) {
    for (int turn = 0; turn < 3; ++turn, comm.barrier()) {
      if (turn != comm.rank()) continue;
      const MemoryLimit limit(Device::cpu(), 3 * kMiB);
      const int64_t before = allocator(Device::cpu()).stats().current_bytes;
      Tensor made;
      int rank = -1;
      std::string problem;
      thread.add([&] {
        rank = rank_label().rank;
        made = Tensor::empty({kMiB}, kU8);
        problem = error_of([] { Tensor::empty({4 * kMiB}, kU8); }, {"out of memory", "which may have 3145728 on cpu"});
      });
      thread.wait();
      EXPECT_EQ(rank, comm.rank());
      EXPECT_EQ(problem, "");
      EXPECT_GE(allocator(Device::cpu()).stats().current_bytes, before + kMiB);
    }
  });
}

TEST(RankThreads, BatchesMadeAheadAreInTheBooksOfTheirRank) {
  dist::run_thread_ranks(2, [](dist::Communicator& comm) {
    const int64_t before = allocator(Device::cpu()).stats().current_bytes;
    const int64_t size = (comm.rank() + 1) * kMiB;
    data::Prefetcher ahead(
        [size](int64_t, int64_t rows) {
          return data::Batch{.tokens = Tensor::zeros({rows, size / 4}, kI32, Device::cpu())};
        },
        1);
    const data::Batch batch = ahead.next();
    EXPECT_GE(allocator(Device::cpu()).stats().current_bytes, before + size);
  });
}

// The bytes of a rank's peak in a step after the first: gradients, their copies for the others and the sums are more than its activations.
int64_t peak_of_step(int zero, bool overlaps, std::optional<int64_t> limit) {
  int64_t peak = 0;
  dist::run_thread_ranks(2, [&](dist::Communicator& comm) {
    LanguageModelOptions wide = tiny_options();
    wide.dim = 64, wide.ffn.hidden = 128;
    LanguageModel model(wide, Rng(1));
    Training training(model,
                      {.micro_batch = 1,
                       .ranks = {.comm = &comm, .zero = zero, .bucket_bytes = 1 << 24, .overlaps_backward = overlaps}});
    training.step(rows_from, 0, 4);
    comm.barrier();  // what the other one has of this rank's is free
    allocator(Device::cpu()).reset_peak();
    std::optional<MemoryLimit> within;
    if (limit) within.emplace(Device::cpu(), *limit);
    training.step(rows_from, 4, 4);
    if (comm.rank() == 0) peak = allocator(Device::cpu()).stats().peak_bytes;
  });
  return peak;
}

TEST(RankThreads, SumsOfGradientsAreInTheBooksOfTheirRankAndWithinItsLimit) {
  for (int zero : {0, 2}) {
    SCOPED_TRACE(str("zero ", zero));
    const int64_t here = peak_of_step(zero, false, {}), ahead = peak_of_step(zero, true, {});
    EXPECT_NEAR(static_cast<double>(ahead), static_cast<double>(here), 0.02 * static_cast<double>(here));
    EXPECT_GT(peak_of_step(zero, true, ahead + ahead / 10), 0);
    EXPECT_EQ(error_of([&] { peak_of_step(zero, true, ahead - ahead / 10); }, {"out of memory"}), "");
  }
}

// The op is named on the rank that asked for it; the other one sees no error of its own.
TEST(RankThreads, AnomalyModeIsOfARank) {
  std::vector<std::string> problems(2);
  dist::run_thread_ranks(2, [&](dist::Communicator& comm) {
    set_anomaly_mode(comm.rank() == 1);
    comm.barrier();  // both have said what they want
    try {
      Scope scope("layers.3");
      log(variable(Tensor::full({2}, -1)));
    } catch (const Error& e) { problems[static_cast<size_t>(comm.rank())] = e.what(); }
  });
  EXPECT_EQ(problems[0], "");
  for (const char* part : {"log: output 0 [2] f32 cpu holds NaN", "layers.3"})
    EXPECT_NE(problems[1].find(part), std::string::npos) << problems[1];
  EXPECT_FALSE(anomaly_mode());
}

// Ranks draw at once, each for its own tokens: what a token gets depends on its position alone.
TEST(RankThreads, RandomNumbersAreThoseOfThePositionsAndOfNoThread) {
  const Rng rng = Rng(7)["dropout"];
  Tensor all = Tensor::empty({64});
  ops::fill_uniform_(all, rng, 0, 1);
  const std::vector<float> want = all.to_vector<float>();
  dist::run_thread_ranks(4, [&](dist::Communicator& comm) {
    for (int turn = 0; turn < 100; ++turn) {
      Tensor mine = Tensor::empty({64});
      if (comm.rank() % 2) ops::fill_uniform_(mine, Rng(8)["other"], 0, 1);  // what another rank draws between
      ops::fill_uniform_(mine, rng, 0, 1);
      ASSERT_EQ(mine.to_vector<float>(), want);
    }
  });
}

// Products and attention of other sizes on every rank at once: none writes another one's scratch memory.
TEST(RankThreads, ScratchMemoryIsOfARank) {
  auto run = [](int rank, int turn) {
    const int64_t T = 33 + 40 * rank + turn, K = 16 + 8 * rank;
    Tensor x = Tensor::empty({1, T, 2, K});
    ops::fill_uniform_(x, Rng(static_cast<uint64_t>(rank)), -1, 1);
    Tensor positions = Tensor::empty({1, T}, kI32, Device::cpu());
    for (int64_t t = 0; t < T; ++t) positions.mutable_data<int32_t>()[t] = static_cast<int32_t>(t);
    const ops::AttentionTokens tokens{.positions = positions};
    const std::vector<float> attended = ops::attend(x, x, x, tokens, tokens, {}).out.to_vector<float>();
    const Tensor rows = x.reshape({T, 2 * K});
    std::vector<float> product = ops::matmul(rows, rows, {.transpose_b = true}).to_vector<float>();
    product.insert(product.end(), attended.begin(), attended.end());
    return product;
  };
  std::vector<std::vector<float>> want;
  set_num_threads(1);
  for (int rank = 0; rank < 4; ++rank)
    for (int turn = 0; turn < 8; ++turn) want.push_back(run(rank, turn));
  dist::run_thread_ranks(
      4,
      [&](dist::Communicator& comm) {
        for (int turn = 0; turn < 8; ++turn)
          EXPECT_EQ(run(comm.rank(), turn) == want[static_cast<size_t>(comm.rank() * 8 + turn)], true)
              << comm.rank() << " " << turn;
      },
      {.threads_per_rank = 1});
}

}  // namespace
}  // namespace weft
