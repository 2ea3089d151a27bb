// What only ranks that are threads, and one rank alone, promise.
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>

#include "tests/support/errors.h"
#include "weft/comm/communicator.h"
#include "weft/core/allocator.h"
#include "weft/core/error.h"
#include "weft/core/memory.h"
#include "weft/core/parallel.h"
#include "weft/core/scope.h"

namespace weft::dist {
namespace {

TEST(ThreadRanks, TheExampleOfDocsParallelSumsTheRanks) {
  run_thread_ranks(4, [](Communicator& comm) {
    Tensor sum = Tensor::full({3}, comm.rank());
    comm.all_reduce(sum);
    EXPECT_EQ(sum.to_vector<float>(), std::vector<float>(3, 6));
  });
}

TEST(ThreadRanks, RanksHaveTheirLabelAndTheirShareOfTheThreads) {
  const int before = num_threads(), limit = omp_get_thread_limit();  // 1 under ThreadSanitizer
  set_num_threads(4);
  run_thread_ranks(2, [&](Communicator& comm) {
    EXPECT_EQ(rank_label().rank, comm.rank());
    EXPECT_EQ(rank_label().size, 2);
    EXPECT_EQ(num_threads(), std::min(limit, 2));
  });
  EXPECT_EQ(num_threads(), std::min(limit, 4));
  EXPECT_EQ(rank_label().size, 1);
  set_num_threads(before);
}

// What a rank makes is in its own books, also when another thread frees it.
TEST(ThreadRanks, HaveMemoryStatisticsAndPeaksOfTheirOwn) {
  Allocator& memory = allocator(Device::cpu());
  const int64_t before = memory.stats().current_bytes;
  std::vector<Tensor> kept(3);
  for (int run = 0; run < 2; ++run)
    run_thread_ranks(3, [&](Communicator& comm) {
      const int64_t mib = int64_t{1} << 20, size = (comm.rank() + 1) * mib;
      Tensor handed_over = Tensor::empty({mib}, kU8), dropped = Tensor::empty({4 * mib}, kU8);
      dropped = {};
      MemoryTag tag("kept");
      kept[static_cast<size_t>(comm.rank())] = Tensor();  // of the run before
      kept[static_cast<size_t>(comm.rank())] = Tensor::empty({size}, kU8);
      comm.barrier();
      const MemoryStats mine = memory.stats();
      EXPECT_NEAR(static_cast<double>(mine.current_bytes), static_cast<double>(size + mib),
                  0.3 * static_cast<double>(mib + size));
      EXPECT_GE(mine.peak_bytes, 5 * mib);
      EXPECT_LT(mine.peak_bytes, 10 * mib);  // three ranks together have more
      EXPECT_EQ(mine.tags.back().name, "kept");
      EXPECT_GE(mine.tags.back().current_bytes, size);
      EXPECT_GE(memory.stats().reserved_bytes, 6 * mib);
      memory.reset_peak();
      EXPECT_EQ(memory.stats().peak_bytes, memory.stats().current_bytes);
    });
  EXPECT_GE(memory.stats().current_bytes, before + 6 * (int64_t{1} << 20));
  kept.clear();
  EXPECT_EQ(memory.stats().current_bytes, before);
  run_thread_ranks(3, [&](Communicator&) { EXPECT_EQ(memory.stats().current_bytes, 0); });
}

// What a rank may have is not less because others have much, and what is free again may be had again.
TEST(ThreadRanks, HaveALimitOfMemoryEach) {
  constexpr int64_t kMiB = int64_t{1} << 20;
  const Tensor of_nobody = Tensor::empty({8 * kMiB}, kU8);
  run_thread_ranks(3, [&](Communicator& comm) {
    const Tensor before = Tensor::empty({kMiB}, kU8);
    const MemoryLimit limit(Device::cpu(), 5 * kMiB);
    for (int i = 0; i < 2; ++i) {
      const Tensor fits = Tensor::empty({2 * kMiB}, kU8);
      EXPECT_EQ(test::error_of([&] { Tensor::empty({3 * kMiB}, kU8); },
                               {"out of memory: ", " in live tensors of this rank, which may have 5242880 on cpu",
                                "train.memory_gib"}),
                "");
      comm.barrier();
    }
    {
      const MemoryLimit inner(Device::cpu(), kMiB);
      EXPECT_THROW(Tensor::empty({1}, kU8), Error);
    }
    EXPECT_NO_THROW(Tensor::empty({3 * kMiB}, kU8));
  });
  EXPECT_NO_THROW(Tensor::empty({16 * kMiB}, kU8));
  const MemoryLimit limit(Device::cpu(), allocator(Device::cpu()).stats().current_bytes + kMiB);
  EXPECT_NO_THROW(Tensor::empty({kMiB / 2}, kU8));
  EXPECT_THROW(Tensor::empty({2 * kMiB}, kU8), Error);
}

TEST(OneRank, CopiesNothing) {
  auto comm = make_self_communicator();
  Tensor x = Tensor::full({4, 3}, 2);
  EXPECT_TRUE(comm->all_gather(x).shares_memory_with(x));
  EXPECT_TRUE(comm->reduce_scatter(x).shares_memory_with(x));
  EXPECT_TRUE(comm->all_to_all(x).shares_memory_with(x));
  comm->all_reduce(x);
  comm->broadcast(x, 0);
  comm->barrier();
  EXPECT_EQ(x.to_vector<float>(), std::vector<float>(12, 2));
  Tensor y = Tensor::zeros({4, 3});
  comm->exchange(std::vector<Send>{{x, 0}}, std::vector<Receive>{{y, 0}});
  EXPECT_EQ(y.to_vector<float>(), x.to_vector<float>());
  EXPECT_EQ(comm->split(3, 1, "part")->size(), 1);
}

}  // namespace
}  // namespace weft::dist
