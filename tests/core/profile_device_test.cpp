// Spans of work on a GPU.
#include <gtest/gtest.h>

#include "weft/core/profile.h"
#include "weft/core/scope.h"
#include "weft/core/stream.h"
#include "weft/core/tensor.h"

namespace weft {
namespace {

TEST(ProfileOnDevices, HasTimesOfTheDevice) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  Profile profile(Device::cuda());
  {
    Scope scope("fill");
    Tensor::zeros({1 << 20}, kF32, Device::cuda());
  }
  std::vector<ProfileSpan> spans = profile.finish();
  ASSERT_EQ(spans.size(), 1u);
  EXPECT_GT(spans[0].device_duration_us, 0);
  EXPECT_GE(spans[0].device_begin_us, 0);
}

}  // namespace
}  // namespace weft
