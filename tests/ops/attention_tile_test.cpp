// Parts of the attention core below a tile: tanh, packing by transposing, and which cells an edge of a mask needs.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/support/random.h"
#include "weft/ops/attention_core.h"

namespace weft {
namespace {

using namespace ops;
using namespace ops::core;

TEST(AttentionTile, TanhIsNearThatOfFloat64AndNeverAboveOne) {
  double worst = 0;
  for (int i = 1; i <= 400000; ++i) {
    const float x = static_cast<float>(i) * 2.5e-5f;
    const double want = std::tanh(static_cast<double>(x)), got = lane_tanh(x);
    worst = std::max(worst, std::abs(got / want - 1));
    ASSERT_LE(got, 1) << x;
    ASSERT_EQ(lane_tanh(-x), -lane_tanh(x)) << x;
  }
  EXPECT_LT(worst, 4e-7);
  for (float x : {1e-38f, 1e-20f, 1e-6f}) EXPECT_NEAR(lane_tanh(x) / x, 1, 2e-7) << x;
  for (float x : {8.f, 100.f, 1e30f, INFINITY}) EXPECT_NEAR(lane_tanh(x), 1, 4e-7) << x;
  EXPECT_TRUE(std::isnan(lane_tanh(NAN)));
  for (double x : {1e-9, 0.1, 0.124, 0.126, 1.0, 9.0, 30.0}) EXPECT_NEAR(lane_tanh(x), std::tanh(x), 1e-15) << x;
}

template <class T>
void expect_packed_by_lanes(DType dtype) {
  constexpr int P = kPanel<T>;
  for (int64_t rows : {1, 7, 16, 33, 96})
    for (int64_t width : {1, 3, 15, 16, 17, 33, 64}) {
      const Tensor x = test::random_normal({1, rows + 2, 2, width}, "x", dtype);
      const Operand o{x.raw(), 0, 2 * width, width, dtype == kBF16, static_cast<int64_t>(size_of(dtype))};
      std::vector<T> packed(static_cast<size_t>(round_up(rows, P) * width), T(NAN));
      pack_lane_rows<T>(o.at(0, 1), 2, rows, width, T(3), packed.data());
      for (int64_t i = 0; i < round_up(rows, P); ++i)
        for (int64_t c = 0; c < width; ++c) {
          const int64_t at = i / P * P * width + c * P + i % P;
          const T want = i < rows ? element<T>(o, ((i + 2) * 2 + 1) * width + c) * T(3) : T(0);
          ASSERT_EQ(packed[static_cast<size_t>(at)], want) << rows << " rows, width " << width << ": " << i << " " << c;
        }
    }
}

TEST(AttentionTile, PackingPutsTokensIntoLanes) {
  expect_packed_by_lanes<float>(kF32);
  expect_packed_by_lanes<float>(kBF16);
  expect_packed_by_lanes<double>(kF64);
}

// How many groups of rows the groups of lanes of a tile need, summed, and the same of the groups of rows.
template <class Mask>
std::pair<int, int> groups_needed(const Mask& mask, int32_t first_key, int64_t document_length) {
  std::vector<int32_t> numbers, documents;
  for (int32_t i = 0; i < 2000; ++i)
    numbers.push_back(i), documents.push_back(i / static_cast<int32_t>(document_length));
  auto tokens = [&](int32_t first) { return TokenView{numbers.data() + first, documents.data() + first, 0, 1, 0, 1}; };
  constexpr int32_t kFirstQuery = 960;
  const TokenView queries = tokens(kFirstQuery), keys = tokens(first_key);
  const Ranges panels(queries, 1, kBlock, kPanel<float>), lanes(queries, 1, kBlock, kGroup),
      rows(keys, 1, kBlock, kGroup);
  const Ranges block(rows, kGroups);
  EXPECT_EQ(block.count(), 1);
  EXPECT_EQ(block.row(0)[0].position_min, first_key);
  EXPECT_EQ(block.row(0)[0].position_max, first_key + kBlock - 1);
  TilePlan<float> plan;
  make_plan(plan, kBlock, kBlock, false, panels.row(0), lanes.row(0),
            [&](const TokenRange& of_lanes, int group) { return mask.cover(0, 0, of_lanes, rows.row(0)[group]); });
  std::pair<int, int> sums{0, 0};
  for (int g = 0; g < kGroups; ++g)
    sums.first += plan.lane_end[g] - plan.lane_begin[g],
        sums.second += std::max(0, plan.row_end[g] - plan.row_begin[g]);
  return sums;
}

// Whatever blocks a mask sees, none of them is passed over, from any block on and back.
TEST(AttentionTile, BlocksThatAreSeenAreFoundFromEitherSide) {
  const Rng rng = Rng(test::seed())["seen"];
  for (int64_t count : {0, 1, 15, 16, 17, 255, 256, 257, 700})
    for (uint64_t sparsity : {1, 2, 40, 1000}) {
      std::vector<int32_t> block_of(static_cast<size_t>(count * kBlock));
      std::vector<bool> is_seen(static_cast<size_t>(count));
      for (size_t i = 0; i < block_of.size(); ++i) block_of[i] = static_cast<int32_t>(i / kBlock);
      for (size_t i = 0; i < is_seen.size(); ++i) is_seen[i] = rng.below(sparsity, i) == 0;
      const Ranges groups(TokenView{block_of.data(), nullptr, 0, 1, 0, 1}, 1, count * kBlock, kGroup);
      const Blocks blocks(groups);
      ASSERT_EQ(blocks.count(), count);
      auto is_empty = [&](const TokenRange& range) {
        const auto begin = is_seen.begin() + range.position_min, end = is_seen.begin() + range.position_max + 1;
        return std::find(begin, end, true) == end;
      };
      for (int64_t from = 0; from <= count; ++from) {
        int64_t next = from, last = from - 1;
        while (next < count && !is_seen[static_cast<size_t>(next)]) ++next;
        while (last >= 0 && !is_seen[static_cast<size_t>(last)]) --last;
        ASSERT_EQ(blocks.first_seen(0, from, is_empty), next) << count << " blocks from " << from;
        ASSERT_EQ(blocks.last_seen(0, from, is_empty), last) << count << " blocks before " << from;
      }
    }
}

TEST(AttentionTile, EdgesOfMasksNeedNoMoreGroupsThanTheyTouch) {
  const StandardMask causal{{}}, window{{.window = 97}}, documents{{.same_document = true}};
  // The diagonal of 8 x 8 groups and what is below it.
  EXPECT_EQ(groups_needed(causal, 960, 5000), std::make_pair(36, 36));
  // The far edge of a window that reaches 96 keys back: the same above the diagonal.
  EXPECT_EQ(groups_needed(window, 960 - 96, 5000), std::make_pair(36, 36));
  // A document begins 48 tokens into the block: two diagonals of 4 x 4 groups.
  EXPECT_EQ(groups_needed(documents, 960, 1008), std::make_pair(20, 20));
  EXPECT_EQ(groups_needed(causal, 960 + 96, 5000), std::make_pair(0, 0));
}

}  // namespace
}  // namespace weft
