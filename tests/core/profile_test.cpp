// Profiles record the scopes of their thread while they are taken, with their paths, inside each other and in order.
#include "weft/core/profile.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "tests/support/errors.h"
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
