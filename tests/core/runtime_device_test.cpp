// Memory of devices and the order of their work.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <future>
#include <thread>

#include "src/core/cuda/runtime.h"
#include "tests/support/errors.h"
#include "tests/support/random.h"
#include "weft/core/allocator.h"
#include "weft/core/stream.h"
#include "weft/core/tensor.h"

namespace weft {
namespace {

const Device kDevice = Device::cuda();
constexpr int64_t kMiB = 1 << 20;

TEST(AllocatorOnDevices, CountsCurrentPeakAndTags) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  Allocator& gpu = allocator(kDevice);
  gpu.reset_peak();
  const int64_t before = gpu.stats().current_bytes, of_cpu = allocator(Device::cpu()).stats().current_bytes;
  {
    MemoryTag tag("device allocator test");
    Tensor a = Tensor::empty({kMiB}, kU8, kDevice), b = Tensor::empty({kMiB}, kU8, kDevice);
    Tensor view = b.slice(0, 7, 9);
    b = Tensor();  // its view keeps the memory
    EXPECT_GE(gpu.stats().current_bytes, before + 2 * kMiB);
    EXPECT_EQ(allocator(Device::cpu()).stats().current_bytes, of_cpu);
  }
  MemoryStats stats = gpu.stats();
  EXPECT_EQ(stats.current_bytes, before);
  EXPECT_GE(stats.peak_bytes, before + 2 * kMiB);
  EXPECT_LT(stats.peak_bytes, before + 3 * kMiB);
  gpu.reset_peak();
  EXPECT_EQ(gpu.stats().peak_bytes, before);
  for (const auto& tag : stats.tags)
    if (tag.name == "device allocator test") {
      EXPECT_EQ(tag.current_bytes, 0);
      EXPECT_GE(tag.peak_bytes, 2 * kMiB);
      return;
    }
  FAIL() << "no tag";
}

TEST(AllocatorOnDevices, ASteadyStateTakesNothingFromTheSystem) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  auto step = [] {
    for (int64_t n : {1, 63, 64, 65, 1000, 4097, 1 << 20}) Tensor::empty({n}, kF32, kDevice);
  };
  step();
  const MemoryStats before = allocator(kDevice).stats();
  const int64_t waits = num_device_waits();
  for (int i = 0; i < 10; ++i) step();
  const MemoryStats after = allocator(kDevice).stats();
  EXPECT_EQ(after.num_system_allocations, before.num_system_allocations);
  EXPECT_EQ(after.reserved_bytes, before.reserved_bytes);
  EXPECT_EQ(after.num_allocations, before.num_allocations + 70);
  EXPECT_EQ(num_device_waits(), waits);
}

TEST(AllocatorOnDevices, TrimGivesBackWhatNoTensorHas) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  Allocator& gpu = allocator(kDevice);
  Tensor kept = Tensor::full({kMiB}, 7, kU8, kDevice);
  Tensor::empty({3 * kMiB}, kU8, kDevice);
  MemoryStats before = gpu.stats();
  EXPECT_GE(before.reserved_bytes, before.current_bytes + 3 * kMiB);
  gpu.trim();
  MemoryStats after = gpu.stats();
  EXPECT_EQ(after.current_bytes, before.current_bytes);
  EXPECT_EQ(after.reserved_bytes, after.current_bytes);
  gpu.trim();  // of nothing
  EXPECT_EQ(gpu.stats().reserved_bytes, after.reserved_bytes);
  for (uint8_t byte : kept.to_vector<uint8_t>()) ASSERT_EQ(byte, 7);
  Tensor again = Tensor::full({3 * kMiB}, 9, kU8, kDevice);
  EXPECT_EQ(gpu.stats().num_system_allocations, before.num_system_allocations + 1);
  EXPECT_EQ(again.slice(0, 3 * kMiB - 1, 3 * kMiB).item(), 9);
}

TEST(AllocatorOnDevices, BlocksAreAlignedAndDistinctForEverySize) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  std::vector<Tensor> kept;
  for (int64_t n = 1; n < 3000; n += 37) {
    kept.push_back(Tensor::full({n}, static_cast<double>(n % 251), kU8, kDevice));
    ASSERT_EQ(reinterpret_cast<uintptr_t>(kept.back().raw()) % 64, 0u);
  }
  for (const Tensor& t : kept)
    for (uint8_t byte : t.to_vector<uint8_t>()) ASSERT_EQ(byte, t.num_elements() % 251);
}

TEST(AllocatorOnDevices, NewMemoryIsNanInTests) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  Tensor::full({1000}, 1, kF32, kDevice);
  for (float x : Tensor::empty({1000}, kF32, kDevice).to_vector<float>()) ASSERT_TRUE(std::isnan(x));
}

TEST(AllocatorOnDevices, NoticesAWriteBehindTheEnd) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  Allocator& gpu = allocator(kDevice);
  const int64_t before = gpu.stats().num_guard_errors;
  for (int64_t behind : {0, 63}) {
    Tensor t = Tensor::empty({100}, kU8, kDevice);
    const unsigned char zero = 0;
    cuda::copy_bytes(static_cast<char*>(t.mutable_raw()) + 100 + behind, &zero, 1, kDevice, Device::cpu());
  }
  EXPECT_EQ(gpu.stats().num_guard_errors, before + 2);
  test::expect_guard_errors(2);
}

TEST(AllocatorOnDevices, OutOfMemoryNamesSizesAndLeavesTheDeviceUsable) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  constexpr int64_t kTooMuch = int64_t{1} << 46;
  const MemoryStats before = allocator(kDevice).stats();
  EXPECT_EQ("",
            test::error_of([] { Tensor::empty({kTooMuch}, kU8, kDevice); },
                           {"[70368744177664] u8", "out of memory", "bytes asked for", "on cuda:0", "use a smaller"}));
  EXPECT_EQ(allocator(kDevice).stats().current_bytes, before.current_bytes);
  EXPECT_EQ(Tensor::full({1}, 3, kF32, kDevice).item(), 3);
}

// What another thread drops comes back to the thread that took it, and is written again only when the other one's kernels have read it.
TEST(AllocatorOnDevices, ABlockThatAnotherThreadFreesIsUsedAgainAfterItsWork) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  constexpr int64_t kCount = int64_t{1} << 22;
  constexpr int kCopies = 50;
  for (int round = 0; round < 4; ++round) {
    Tensor x = Tensor::full({kCount}, round, kF32, kDevice);
    const void* block = x.raw();
    Event is_filled(kDevice);
    is_filled.record();
    Tensor last;
    std::promise<void> is_dropped, is_taken;
    std::thread other([&, x = std::exchange(x, {})]() mutable {
      is_filled.wait();
      for (int i = 0; i < kCopies; ++i) last = Tensor::zeros({kCount}, kF32, kDevice), last.set_bytes(x);
      x = {};
      is_dropped.set_value();
      is_taken.get_future().wait();  // the end of a thread waits for its work
    });
    is_dropped.get_future().wait();
    const Tensor next = Tensor::full({kCount}, -1, kF32, kDevice);
    is_taken.set_value();
    other.join();
    EXPECT_EQ(next.raw(), block);
    const std::vector<float> values = last.to_vector<float>();
    EXPECT_EQ(std::count(values.begin(), values.end(), static_cast<float>(round)), kCount);
  }
}

// Each has a stream of its own, and free blocks of its own.
TEST(AllocatorOnDevices, ThreadsDoNotGetEachOthersMemory) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  constexpr int kThreads = 4, kRounds = 40;
  std::vector<std::future<bool>> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.push_back(std::async(std::launch::async, [t] {
      bool is_right = true;
      Tensor last;
      for (int i = 0; i < kRounds; ++i) {
        const int number = t * kRounds + i;
        Tensor x = Tensor::full({10000 + 100 * t}, number, kI32, kDevice);
        if (i > 0)
          for (int32_t y : last.to_vector<int32_t>()) is_right = is_right && y == number - 1;
        last = x;
      }
      return is_right;
    }));
  for (int t = 0; t < kThreads; ++t) EXPECT_TRUE(threads[static_cast<size_t>(t)].get()) << "thread " << t;
}

TEST(EventOnDevices, ElapsedTimeGrowsWithTheWorkBetween) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  Event begin(kDevice, true), middle(kDevice, true), end(kDevice, true);
  Tensor x = Tensor::empty({4 * kMiB}, kU8, kDevice);
  begin.record();
  for (int i = 0; i < 3; ++i) x = Tensor::full({4 * kMiB}, 5, kU8, kDevice);
  middle.record();
  for (int i = 0; i < 3; ++i) x = Tensor::full({4 * kMiB}, 6, kU8, kDevice);
  end.record();
  end.synchronize();
  EXPECT_GT(middle.elapsed_ms(begin), 0);
  EXPECT_GT(end.elapsed_ms(middle), 0);
  EXPECT_NEAR(end.elapsed_ms(begin), middle.elapsed_ms(begin) + end.elapsed_ms(middle), 0.01);
  EXPECT_NEAR(begin.elapsed_ms(begin), 0, 1e-9);
  const double before = end.elapsed_ms(begin);
  x = Tensor::full({4 * kMiB}, 7, kU8, kDevice);
  end.record();  // later than before
  end.synchronize();
  EXPECT_GT(end.elapsed_ms(begin), before);
}

// A thread waits on its stream for another thread's work, the CPU does not.
TEST(EventOnDevices, WorkAfterAWaitSeesWhatWasRecorded) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  constexpr int64_t kNumbers = 2 * kMiB;
  for (int round = 0; round < 5; ++round) {
    Event written(kDevice), read(kDevice);
    Tensor x = Tensor::empty({kNumbers}, kI32, kDevice), copy = Tensor::empty({kNumbers}, kI32, kDevice);
    synchronize(kDevice);  // what fills new memory is this thread's work
    std::promise<void> is_written, is_read;
    std::thread writer([&] {
      Tensor three = Tensor::full({kNumbers}, 3, kI32, kDevice), four = Tensor::full({kNumbers}, 4, kI32, kDevice);
      for (int i = 0; i < 10; ++i) x.set_bytes(i < 9 ? four : three);
      written.record();
      is_written.set_value();
      is_read.get_future().wait();
      read.wait();
      x.set_bytes(four);  // after the copy below
      synchronize(kDevice);
    });
    is_written.get_future().wait();
    const int64_t waits = num_device_waits();
    written.wait();
    copy.set_bytes(x);
    read.record();
    EXPECT_EQ(num_device_waits(), waits);
    is_read.set_value();
    writer.join();
    for (int32_t number : copy.to_vector<int32_t>()) ASSERT_EQ(number, 3);
    for (int32_t number : x.to_vector<int32_t>()) ASSERT_EQ(number, 4);
  }
}

TEST(EventOnDevices, WaitsOfTheCpuAreCounted) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  Tensor x = Tensor::full({100}, 2, kF32, kDevice);
  Event event(kDevice), of_cpu(Device::cpu());
  const int64_t before = num_device_waits();
  event.record();
  event.wait();
  of_cpu.record();
  of_cpu.synchronize();
  synchronize(Device::cpu());
  EXPECT_EQ(num_device_waits(), before);
  event.synchronize();
  EXPECT_EQ(num_device_waits(), before + 1);
  synchronize(kDevice);
  EXPECT_EQ(num_device_waits(), before + 2);
  EXPECT_EQ(x.slice(0, 3, 4).item(), 2);
  EXPECT_EQ(num_device_waits(), before + 3);
}

TEST(PinnedBufferOnDevices, CarriesBytesToAndFromTheDevice) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  constexpr int64_t n = 100003;
  auto buffer = std::make_shared<PinnedBuffer>(n);
  EXPECT_EQ(buffer->bytes(), static_cast<size_t>(n));
  auto* bytes = static_cast<uint8_t*>(buffer->data());
  for (int64_t i = 0; i < n; ++i) bytes[i] = static_cast<uint8_t>(i * 7 % 253);
  Tensor host = Tensor::borrow(buffer->data(), {n}, kU8, buffer), there = Tensor::empty({n}, kU8, kDevice);
  there.set_bytes(host);
  synchronize(kDevice);  // the copy may still read the buffer
  std::memset(bytes, 0, static_cast<size_t>(n));
  host.set_bytes(there);
  for (int64_t i = 0; i < n; ++i) ASSERT_EQ(bytes[i], i * 7 % 253) << i;
  PinnedBuffer none(0);
  EXPECT_EQ(none.bytes(), 0u);
}

}  // namespace
}  // namespace weft
