// Layouts are maps of positions; hop plans count the pairs of their ranks. The tables are those of Weft's reference on context parallelism.
#include "weft/comm/layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

#include "tests/support/errors.h"

namespace weft::dist {
namespace {

std::vector<Layout> all_layouts(int64_t tokens, int ranks, int64_t block, const TokenMask& mask = {}) {
  return {Layout::contiguous(tokens, ranks), Layout::striped(tokens, ranks, block), Layout::zigzag(tokens, ranks),
          Layout::balanced(tokens, ranks, mask, block)};
}

TEST(Layout, EveryTokenBelongsToOneRankAndRanksHaveEquallyManyInAscendingOrder) {
  for (int64_t tokens : {1, 7, 64, 100, 257})
    for (int ranks : {1, 2, 3, 8})
      for (int64_t block : {1, 4})
        for (const Layout& layout : all_layouts(tokens, ranks, block)) {
          SCOPED_TRACE(to_string(layout));
          std::set<int32_t> seen;
          for (int r = 0; r < ranks; ++r) {
            std::vector<int32_t> positions = layout.positions(r);
            EXPECT_EQ(static_cast<int64_t>(positions.size()), layout.tokens_per_rank());
            EXPECT_TRUE(std::is_sorted(positions.begin(), positions.end()));
            for (int32_t p : positions) EXPECT_EQ(layout.owner(p), r);
            seen.insert(positions.begin(), positions.end());
          }
          EXPECT_EQ(static_cast<int64_t>(seen.size()), layout.padded_tokens());
          EXPECT_EQ(*seen.rbegin(), layout.padded_tokens() - 1);
          EXPECT_GE(layout.padded_tokens(), tokens);
          EXPECT_LT(layout.padded_tokens() - tokens, 2 * ranks * block + ranks);  // no more than a round of blocks
        }
}

TEST(Layout, PositionsAreThoseOfTheFormulas) {
  const int64_t n = 12, ranks = 3;
  for (int r = 0; r < ranks; ++r)
    for (int64_t i = 0; i < n; ++i) {
      const auto at = static_cast<size_t>(i);
      EXPECT_EQ(Layout::contiguous(n * ranks, ranks).positions(r)[at], r * n + i);
      EXPECT_EQ(Layout::striped(n * ranks, ranks, 1).positions(r)[at], i * ranks + r);
      const int64_t m = 4, half = n / 2;
      EXPECT_EQ(Layout::striped(n * ranks, ranks, m).positions(r)[at], i / m * (ranks * m) + r * m + i % m);
      EXPECT_EQ(Layout::zigzag(n * ranks, ranks).positions(r)[at],
                i < half ? r * half + i : (2 * ranks - 1 - r) * half + (i - half));
    }
}

std::vector<int64_t> pairs(const Layout& layout, int64_t window) { return plan_hops(layout, {.window = window}).pairs; }

TEST(HopPlan, PairsOfFourRanksAreThoseOfTheTable) {
  using Table = std::vector<int64_t>;
  EXPECT_EQ(pairs(Layout::contiguous(32, 4), 0), (Table{36, 0, 0, 0, 36, 64, 0, 0, 36, 64, 64, 0, 36, 64, 64, 64}));
  EXPECT_EQ(pairs(Layout::striped(32, 4, 1), 0),
            (Table{36, 28, 28, 28, 36, 36, 28, 28, 36, 36, 36, 28, 36, 36, 36, 36}));
  EXPECT_EQ(pairs(Layout::zigzag(32, 4), 0), (Table{36, 32, 32, 32, 36, 32, 32, 32, 36, 32, 32, 32, 36, 32, 32, 32}));
  EXPECT_EQ(pairs(Layout::zigzag(32, 4), 4), (Table{20, 0, 0, 6, 20, 6, 0, 6, 20, 6, 0, 6, 26, 6, 0, 0}));
  EXPECT_EQ(pairs(Layout::contiguous(32, 4), 4), (Table{26, 0, 0, 0, 26, 6, 0, 0, 26, 6, 0, 0, 26, 6, 0, 0}));
}

TEST(HopPlan, BalanceOfEightRanksIsThatOfTheTable) {
  const int64_t n = 512;
  struct Row {
    int64_t window;
    Layout layout;
    double pairs, tiles;
    int steps;
  };
  const Layout contiguous = Layout::contiguous(8 * n, 8), striped = Layout::striped(8 * n, 8, 1),
               blocks = Layout::striped(8 * n, 8, 64), zigzag = Layout::zigzag(8 * n, 8),
               balanced = Layout::balanced(8 * n, 8, {}, 64);
  for (const Row& row :
       {Row{0, contiguous, 1.875, 1.890, 8}, Row{0, striped, 1.002, 1.125, 8}, Row{0, blocks, 1.109, 1.125, 8},
        Row{0, zigzag, 1.000, 1.015, 8}, Row{0, balanced, 1.000, 1.015, 8}, Row{n / 2, contiguous, 1.032, 1.290, 2},
        Row{n / 2, striped, 1.001, 3.870, 8}, Row{n / 2, blocks, 1.032, 1.290, 5}, Row{n / 2, zigzag, 1.289, 1.613, 3},
        Row{2 * n, contiguous, 1.143, 1.214, 3}, Row{2 * n, striped, 1.001, 1.500, 8},
        Row{2 * n, blocks, 1.062, 1.125, 8}, Row{2 * n, zigzag, 1.928, 2.018, 8}}) {
    SCOPED_TRACE(str(row.layout, ", window ", row.window));
    const HopPlan plan = plan_hops(row.layout, {.window = row.window});
    EXPECT_NEAR(plan.lockstep_pairs(), row.pairs, 0.0006);
    EXPECT_NEAR(plan.lockstep_tiles(), row.tiles, 0.0006);
    int non_empty = 0;
    for (int s = 0; s < 8; ++s) {
      bool has_work = false;
      for (int r = 0; r < 8; ++r) has_work |= plan.pairs_of(r, s) > 0;
      non_empty += has_work;
    }
    EXPECT_EQ(non_empty, row.steps);
  }
}

// Every pair by itself, for masks of any kind.
TEST(HopPlan, CountsAndCoversEqualLoopsOverAllPairs) {
  std::mt19937 random(5);
  for (int round = 0; round < 120; ++round) {
    const int ranks = 1 + static_cast<int>(random() % 5);
    const int64_t tokens = 1 + static_cast<int64_t>(random() % 90), tile = 1 + static_cast<int64_t>(random() % 9);
    TokenMask mask{.window = round % 3 ? 0 : 1 + static_cast<int64_t>(random() % 20)};
    mask.is_causal = round % 5 != 4;
    if (round % 7 < 3) mask.prefix = static_cast<int64_t>(random() % 60);
    if (round % 2) {
      int32_t document = 0;
      for (int64_t t = 0; t < tokens; ++t) {
        if (random() % 7 == 0) ++document;
        mask.documents.push_back(t > tokens - 5 && round % 4 == 1 ? -1 : document);
      }
    }
    auto document = [&](int64_t t) {
      if (t >= tokens) return -1;
      return mask.documents.empty() ? 0 : mask.documents[static_cast<size_t>(t)];
    };
    auto is_seen = [&](int64_t q, int64_t k) {
      const bool is_behind = k <= q || (!mask.is_causal && !mask.window);
      return document(q) >= 0 && document(q) == document(k) &&
             ((is_behind && (!mask.window || q - k < mask.window)) || k < mask.prefix);
    };
    for (const Layout& layout : all_layouts(tokens, ranks, 1 + static_cast<int64_t>(random() % 5), mask)) {
      SCOPED_TRACE(str(layout, ", round ", round));
      const HopPlan plan = plan_hops(layout, mask, tile);
      int steps = 1;
      for (int r = 0; r < ranks; ++r)
        for (int s = 0; s < ranks; ++s) {
          const std::vector<int32_t> queries = layout.positions(r), keys = layout.positions((r - s + ranks) % ranks);
          int64_t count = 0;
          std::set<std::pair<size_t, size_t>> tiles;
          for (size_t i = 0; i < queries.size(); ++i)
            for (size_t j = 0; j < keys.size(); ++j)
              if (is_seen(queries[i], keys[j])) {
                ++count;
                tiles.insert({i / static_cast<size_t>(tile), j / static_cast<size_t>(tile)});
              }
          EXPECT_EQ(plan.pairs_of(r, s), count);
          EXPECT_EQ(plan.tiles[static_cast<size_t>(r * ranks + s)], static_cast<int64_t>(tiles.size()));
          const Cover cover = count == 0                                                    ? Cover::empty
                              : count == static_cast<int64_t>(queries.size() * keys.size()) ? Cover::full
                                                                                            : Cover::partial;
          EXPECT_EQ(plan.cover_of(r, s), cover);
          if (count) steps = std::max(steps, s + 1);
        }
      EXPECT_EQ(plan.steps, steps);
    }
  }
}

TEST(HopPlan, BalancedRanksHaveEqualWorkAlsoWithOneLongDocument) {
  const int64_t tokens = 4096;
  TokenMask mask;
  for (int64_t t = 0; t < tokens; ++t) mask.documents.push_back(t < tokens / 2 ? 0 : 1 + static_cast<int32_t>(t / 128));
  EXPECT_LT(plan_hops(Layout::balanced(tokens, 8, mask), mask).rank_pairs(), 1.02);
  EXPECT_GT(plan_hops(Layout::contiguous(tokens, 8), mask).rank_pairs(), 3);
}

// A prefix language model and one that looks both ways: rows of one work, or of several.
TEST(HopPlan, BalancedRanksHaveEqualWorkForEveryMask) {
  const int64_t tokens = 4096;
  TokenMask both_ways{.is_causal = false};
  for (int64_t t = 0; t < tokens; ++t)
    both_ways.documents.push_back(t < tokens / 2 ? 0 : 1 + static_cast<int32_t>(t / 128));
  for (const TokenMask& mask : {TokenMask{.prefix = 1500}, TokenMask{.window = 300, .prefix = 700}, both_ways}) {
    EXPECT_LT(plan_hops(Layout::balanced(tokens, 8, mask), mask).rank_pairs(), 1.03);
    EXPECT_GT(plan_hops(Layout::contiguous(tokens, 8), mask).rank_pairs(), 1.05);
  }
}

TEST(Layout, WrongSizesAreRefused) {
  EXPECT_EQ(test::error_of([] { Layout::zigzag(0, 2); }, {"0 tokens, 2 ranks", "at least 1"}), "");
  EXPECT_EQ(test::error_of([] { Layout::striped(8, 2, 0); }, {"blocks of 0"}), "");
  EXPECT_EQ(test::error_of([] { Layout::contiguous(8, 2).positions(2); }, {"rank 2 of 2"}), "");
  EXPECT_EQ(test::error_of([] { Layout::balanced(8, 2, {.documents = {1, 2}}); }, {"2 documents of 8 tokens"}), "");
  EXPECT_EQ(test::error_of([] { plan_hops(Layout::zigzag(8, 2), {.documents = {1}}); }, {"1 documents of 8"}), "");
}

}  // namespace
}  // namespace weft::dist
