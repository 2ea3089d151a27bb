// Profiles record the scopes of their thread while they are taken, with their paths, inside each other and in order.
#include "weft/core/profile.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "tests/support/errors.h"
#include "weft/core/error.h"
#include "weft/core/scope.h"

namespace weft {
namespace {

void work() { std::this_thread::sleep_for(std::chrono::milliseconds(2)); }

TEST(Profile, RecordsScopesInsideEachOther) {
  Scope before("before");  // began before, and is no span of it
  Profile profile(Device::cpu());
  {
    Scope model("model");
    work();
    {
      ProfileRange range("forward");
      Scope layer("layers.0");
      work();
    }
  }
  std::thread([] { Scope elsewhere("another thread"); }).join();
  Scope open("open");
  std::vector<ProfileSpan> spans = profile.finish();
  ASSERT_EQ(spans.size(), 4u);
  EXPECT_EQ(spans[0].path, "before.model");
  EXPECT_EQ(spans[1].path, "forward");
  EXPECT_EQ(spans[2].path, "before.model.layers.0");
  EXPECT_EQ(spans[3].path, "before.open");
  for (size_t i : {0, 1, 2, 3}) EXPECT_EQ(spans[i].depth, i < 3 ? static_cast<int>(i) : 0);
  EXPECT_GE(spans[0].duration_us, 4000);
  EXPECT_GE(spans[2].duration_us, 2000);
  EXPECT_GE(spans[1].begin_us, spans[0].begin_us + 2000);
  EXPECT_LE(spans[2].begin_us + spans[2].duration_us, spans[0].begin_us + spans[0].duration_us);
  { Scope after("after"); }
  EXPECT_TRUE(profile.finish().empty());
}

TEST(Profile, SelfTimesLeaveOutWhatIsInside) {
  const std::vector<ProfileSpan> spans = {
      {"forward", 0, 0, 100}, {"model.layers.0", 1, 0, 60},  {"model.layers.0.ffn", 2, 0, 30},
      {"matmul", 3, 0, 20},   {"model.layers.11", 1, 0, 25}, {"backward", 0, 100, 50},
      {"matmul", 1, 100, 50}};
  auto text = [](std::span<const ProfileSpan> of) {
    std::string all;
    for (const SelfTime& t : self_times(of)) all += str(t.name, " ", t.us, " x", t.count, "; ");
    return all;
  };
  EXPECT_EQ(text(spans),
            "forward layers.* 55 x2; backward matmul 50 x1; forward matmul 20 x1; forward 15 x1; forward ffn 10 x1; "
            "backward 0 x1; ");
  std::vector<ProfileSpan> on_gpu = spans;
  for (ProfileSpan& span : on_gpu) span.device_duration_us = 2 * span.duration_us;
  EXPECT_EQ(text(on_gpu),
            "forward layers.* 110 x2; backward matmul 100 x1; forward matmul 40 x1; forward 30 x1; forward ffn 20 x1; "
            "backward 0 x1; ");
  EXPECT_TRUE(self_times({}).empty());
}

TEST(Profile, IsOnePerThread) {
  Profile profile(Device::cpu());
  EXPECT_EQ(test::error_of([] { Profile second(Device::cpu()); }, {"profile: this thread takes one already"}), "");
  EXPECT_TRUE(profile.finish().empty());
  Profile next(Device::cpu());
  { Scope scope("x"); }
  EXPECT_EQ(next.finish().size(), 1u);
}

}  // namespace
}  // namespace weft
