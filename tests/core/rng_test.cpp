#include "weft/core/rng.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

namespace weft {
namespace {

using Block = std::array<uint32_t, 4>;

TEST(Philox, GivesThePublishedVectors) {
  EXPECT_EQ(philox({0, 0, 0, 0}, 0), (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox({~0u, ~0u, ~0u, ~0u}, ~uint64_t{0}), (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0x299f31d0a4093822),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Rng, StreamsAreIndependentAndRepeatable) {
  Rng rng(7);
  EXPECT_EQ(rng["a"].bits(3), Rng(7)["a"].bits(3));
  std::set<uint64_t> keys{rng.key(),           rng["a"].key(),         rng["b"].key(),         rng["a"]["b"].key(),
                          rng["b"]["a"].key(), rng[uint64_t{0}].key(), rng[uint64_t{1}].key(), Rng(8)["a"].key()};
  EXPECT_EQ(keys.size(), 8u);
}

TEST(Rng, MomentsOfUniformAndNormalAreRight) {
  Rng rng = Rng(1)["moments"];
  constexpr int n = 100000;
  double sum = 0, sum2 = 0, normal = 0, normal2 = 0;
  for (uint64_t i = 0; i < n; ++i) {
    double u = rng.uniform(i), z = rng.normal(i);
    ASSERT_TRUE(0 <= u && u < 1 && std::isfinite(z));
    sum += u;
    sum2 += u * u;
    normal += z;
    normal2 += z * z;
  }
  EXPECT_NEAR(sum / n, 0.5, 0.005);
  EXPECT_NEAR(sum2 / n, 1.0 / 3, 0.005);
  EXPECT_NEAR(normal / n, 0, 0.02);
  EXPECT_NEAR(normal2 / n, 1, 0.02);
}

TEST(Rng, BelowStaysBelowAndReachesAll) {
  std::set<uint64_t> seen;
  for (uint64_t i = 0; i < 200; ++i) seen.insert(Rng(3).below(7, i));
  EXPECT_EQ(seen.size(), 7u);
  EXPECT_EQ(*seen.rbegin(), 6u);
}

}  // namespace
}  // namespace weft
