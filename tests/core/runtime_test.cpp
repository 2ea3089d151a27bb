// Allocator, errors, scopes and the thread pool.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <thread>

#include "tests/support/errors.h"
#include "tests/support/random.h"
#include "weft/core/allocator.h"
#include "weft/core/parallel.h"
#include "weft/core/scope.h"
#include "weft/core/stream.h"
#include "weft/core/tensor.h"

namespace weft {
namespace {

#if !defined(__SANITIZE_ADDRESS__)
TEST(Allocator, ASteadyStateTakesNothingFromTheSystem) {
  auto step = [] {
    for (int64_t n : {1, 63, 64, 65, 1000, 4097, 1 << 20, 5 << 20}) Tensor::empty({n});
  };
  step();
  int64_t before = allocator(Device::cpu()).stats().num_system_allocations;
  for (int i = 0; i < 10; ++i) step();
  EXPECT_EQ(allocator(Device::cpu()).stats().num_system_allocations, before);
}
#endif

TEST(Allocator, CountsCurrentPeakAndTags) {
  Allocator& cpu = allocator(Device::cpu());
  cpu.reset_peak();
  int64_t before = cpu.stats().current_bytes;
  {
    MemoryTag tag("allocator test");
    Tensor a = Tensor::empty({1 << 18}), b = Tensor::empty({1 << 18});
    EXPECT_GE(cpu.stats().current_bytes, before + (2 << 20));
  }
  MemoryStats stats = cpu.stats();
  EXPECT_EQ(stats.current_bytes, before);
  EXPECT_GE(stats.peak_bytes, before + (2 << 20));
  for (const auto& tag : stats.tags)
    if (tag.name == "allocator test") {
      EXPECT_EQ(tag.current_bytes, 0);
      EXPECT_GE(tag.peak_bytes, 2 << 20);
      return;
    }
  FAIL() << "no tag";
}

TEST(Allocator, BlocksAreAlignedAndDistinctForEverySize) {
  std::vector<Tensor> kept;
  for (int64_t n = 1; n < 3000; n += 37) {
    kept.push_back(Tensor::empty({n}, kU8));
    ASSERT_EQ(reinterpret_cast<uintptr_t>(kept.back().raw()) % 64, 0u);
    std::memset(kept.back().mutable_raw(), static_cast<int>(n % 251), static_cast<size_t>(n));
  }
  for (const Tensor& t : kept)
    for (uint8_t byte : t.to_vector<uint8_t>()) ASSERT_EQ(byte, t.num_elements() % 251);
}

TEST(Allocator, NoticesAWriteBehindTheEnd) {
  Allocator& cpu = allocator(Device::cpu());
  int64_t before = cpu.stats().num_guard_errors;
  Storage* storage = cpu.allocate(100);
  auto* bytes = static_cast<unsigned char*>(storage->data);
  unsigned char kept = bytes[100];
  bytes[100] = 0;  // inside the block, behind the tensor
  Storage* copy = storage;
  copy->release();
  EXPECT_EQ(cpu.stats().num_guard_errors, before + 1);
  EXPECT_EQ(kept, 0xA5);
  test::expect_guard_errors(1);
}

TEST(Error, SaysWhatWhereAndFix) {
  Scope model("model");
  Scope layer("layers.3");
  set_rank_label({2, 4});
  std::string wrong = test::error_of(
      [] { fail("matmul: bad", "transpose b?"); },
      {"matmul: bad\n", "where: model.layers.3, rank 2 of 4 (", "runtime_test.cpp:", "fix: transpose b?"});
  set_rank_label({});
  EXPECT_EQ(wrong, "");
  EXPECT_EQ(str("a", 1, -2, 3.5, true, 'c', Shape{1, 2}, kBF16), "a1-23.5truec[1, 2]bf16");
  EXPECT_EQ(str(-std::nan(""), " ", std::nan(""), " ", -INFINITY), "nan nan -inf") << "the sign of NaN means nothing";
}

TEST(Device, OneThatTheBuildLacksIsAnError) {
  if (has_cuda_kernels()) GTEST_SKIP() << "a CUDA build";
  EXPECT_EQ("", test::error_of([] { set_default_device(Device::cuda()); },
                               {"set_default_device: cuda:0 is not in this build"}));
  EXPECT_EQ("", test::error_of([] { Tensor::zeros({2}, kF32, Device::cuda(1)); },
                               {"memory on cuda:1: this build has no CUDA"}));
  EXPECT_TRUE(default_device().is_cpu());
}

TEST(Parallel, CoversEveryIndexOnce) {
  for (int64_t n : {0, 1, 2, 1000, 1001}) {
    std::vector<std::atomic<int>> hits(static_cast<size_t>(n));
    parallel_for(n, 10, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) ++hits[static_cast<size_t>(i)];
    });
    parallel_items(n, [&](int64_t i) { ++hits[static_cast<size_t>(i)]; });
    for (auto& hit : hits) EXPECT_EQ(hit, 2);
  }
}

TEST(Parallel, PassesErrorsToTheCaller) {
  EXPECT_EQ(test::error_of([] { parallel_for(100, 1, [](int64_t, int64_t) { fail("inside", "none"); }); }, {"inside"}),
            "");
  EXPECT_EQ(test::error_of(
                [] {
                  parallel_items(100, [](int64_t i) {
                    if (i == 57) fail("item 57", "none");
                  });
                },
                {"item 57"}),
            "");
}

TEST(Parallel, WorksFromSeveralThreads) {
  std::atomic<int64_t> sum{0};
  std::vector<std::thread> ranks;
  for (int r = 0; r < 4; ++r)
    ranks.emplace_back([&] { parallel_for(1000, 10, [&](int64_t begin, int64_t end) { sum += end - begin; }); });
  for (auto& rank : ranks) rank.join();
  EXPECT_EQ(sum, 4000);
}

}  // namespace
}  // namespace weft
