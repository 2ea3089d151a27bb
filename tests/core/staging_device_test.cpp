// Copies by way of pinned memory: nothing is overwritten on its way, and nobody waits.
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "tests/support/errors.h"
#include "weft/core/staging.h"
#include "weft/core/stream.h"

namespace weft {
namespace {

class StagingOnDevices : public ::testing::Test {
 protected:
  void SetUp() override {
    if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  }
};

std::vector<int32_t> numbers(int64_t count, int32_t first) {
  std::vector<int32_t> values(static_cast<size_t>(count));
  std::iota(values.begin(), values.end(), first);
  return values;
}

TEST_F(StagingOnDevices, PinnedMemoryIsCopiedFromAndTo) {
  PinnedBuffer buffer(4096);
  EXPECT_EQ(buffer.bytes(), 4096u);
  std::vector<int32_t> values = numbers(1024, 7);
  std::memcpy(buffer.data(), values.data(), buffer.bytes());
  Tensor there = Tensor::empty({1024}, kI32, Device::cuda());
  Tensor here = Tensor::borrow(buffer.data(), {1024}, kI32, nullptr);
  there.set_bytes(here);
  synchronize(Device::cuda());
  std::memset(buffer.data(), 0, buffer.bytes());
  here.set_bytes(there);
  EXPECT_EQ(here.to_vector<int32_t>(), values);
  PinnedBuffer nothing(0);
  EXPECT_EQ(nothing.bytes(), 0u);
}

TEST_F(StagingOnDevices, AnEventIsReachedOnceTheDeviceIsPastIt) {
  Event event(Device::cuda());
  Tensor::zeros({1 << 20}, kF32, Device::cuda());
  event.record();
  if (has_emulated_cuda()) {  // a device may be quicker than the question
    EXPECT_FALSE(event.is_reached());
  }
  synchronize(Device::cuda());
  EXPECT_TRUE(event.is_reached());
}

TEST_F(StagingOnDevices, UploadsOfManyBatchesArriveWhole) {
  Upload upload(Device::cuda());
  std::vector<Tensor> there;
  const int64_t before = num_device_waits();
  Tensor batch = Tensor::empty({3, 40}, kI32, Device::cpu());  // one memory for all of them
  for (int32_t i = 0; i < 100; ++i) {
    std::vector<int32_t> values = numbers(i % 3 == 0 ? 120 : 40, 1000 * i);
    Tensor part = i % 3 == 0 ? batch : batch.slice(0, 1, 2);
    std::memcpy(part.mutable_raw(), values.data(), part.num_bytes());
    there.push_back(upload(part));
    EXPECT_TRUE(there.back().is_cuda());
    EXPECT_EQ(there.back().shape(), part.shape());
  }
  EXPECT_EQ(num_device_waits(), before);
  if (has_emulated_cuda()) {  // where a copy has ended only when somebody has waited
    EXPECT_EQ(upload.num_buffers(), 100u);
  }
  for (int32_t i = 0; i < 100; ++i)
    EXPECT_EQ(there[static_cast<size_t>(i)].to_vector<int32_t>(), numbers(i % 3 == 0 ? 120 : 40, 1000 * i)) << i;
}

// A step uploads, works, and waits once.
TEST_F(StagingOnDevices, UploadsInSteadyStateReuseTheirBuffers) {
  Upload upload(Device::cuda());
  for (int32_t step = 0; step < 20; ++step) {
    std::vector<Tensor> there;
    for (int32_t i = 0; i < 4; ++i)
      there.push_back(upload(Tensor::from(std::span<const int32_t>(numbers(64, 10 * step + i)), {64})));
    synchronize(Device::cuda());
    for (int32_t i = 0; i < 4; ++i)
      EXPECT_EQ(there[static_cast<size_t>(i)].to_vector<int32_t>(), numbers(64, 10 * step + i));
    EXPECT_LE(upload.num_buffers(), 4u);
  }
}

TEST_F(StagingOnDevices, UploadsLeaveAloneWhatIsThere) {
  Upload upload(Device::cuda()), home(Device::cpu());
  EXPECT_FALSE(upload(Tensor()).defined());
  Tensor there = Tensor::zeros({2}, kF32, Device::cuda()), here = Tensor::zeros({2}, kF32, Device::cpu());
  EXPECT_TRUE(upload(there).shares_memory_with(there));
  EXPECT_TRUE(home(here).shares_memory_with(here));
  EXPECT_EQ(upload(Tensor::zeros({0, 3}, kI32, Device::cpu())).shape(), (Shape{0, 3}));
  EXPECT_EQ(test::error_of(
                [&] {
                  upload(Tensor::zeros({2, 3}, kF32, Device::cpu()).transpose(0, 1));
                },
                {"Upload: [3, 2] f32 cpu to cuda:0", "row-major"}),
            "");
}

TEST_F(StagingOnDevices, DownloadsComeWithTheNextWait) {
  Download download;
  Tensor first = Tensor::full({3}, 2.5, kF64, Device::cuda()), other = Tensor::full({1}, 7, kF64, Device::cuda());
  download.start(first);
  EXPECT_EQ(other.item(), 7);  // waits
  const int64_t before = num_device_waits();
  EXPECT_EQ(download.finish().to_vector<double>(), (std::vector<double>{2.5, 2.5, 2.5}));
  EXPECT_EQ(num_device_waits(), before);
  download.start(other);
  EXPECT_EQ(download.finish().to_vector<double>(), std::vector<double>{7}) << "without another wait: it waits itself";
  Tensor here = Tensor::full({2}, 1, kF32, Device::cpu());
  download.start(here);
  EXPECT_TRUE(download.finish().shares_memory_with(here));
  EXPECT_EQ(test::error_of([&] { download.finish(); }, {"finish() without start()"}), "");
}

}  // namespace
}  // namespace weft
