#include "src/nn/mixing/runs.h"

#include <gtest/gtest.h>

#include <map>

#include "tests/support/errors.h"
#include "weft/core/rng.h"

namespace weft {
namespace {

using Ints = std::vector<int32_t>;

TEST(Runs, OfOrderedTokensAreDocuments) {
  const Ints positions{0, 1, 2, 3, 5, 6, 7, 8}, documents{0, 0, 1, 1, 4, 4, -1, -1};
  Runs runs(2, 4, positions, documents);
  EXPECT_TRUE(runs.are_in_order());
  EXPECT_EQ(runs.all().size(), 4u);
  EXPECT_EQ(runs.chains(), (Ints{0, 0, 1, 1, 2, 2, 3, 3}));
  EXPECT_TRUE(Runs(2, 4, Ints{0, 1, 2, 3, 0, 1, 2, 3}, {}).are_in_order());
}

TEST(Runs, OfOtherOrdersAreSortedByPosition) {
  const Ints positions{4, 5, 0, 1, 2, 3};
  Runs runs(1, 6, positions, {});
  EXPECT_FALSE(runs.are_in_order());
  EXPECT_EQ(runs.all().size(), 2u);
  EXPECT_EQ(runs.all()[0].begin, 2);
  EXPECT_EQ(runs.order(), (Ints{2, 3, 4, 5, 0, 1}));
  EXPECT_EQ(runs.run_of_tokens(), (Ints{1, 1, 0, 0, 0, 0}));
  EXPECT_EQ(runs.chains(), (Ints{0, 0, 0, 0, 0, 0}));
}

TEST(Runs, AGapInADocumentIsNotInOrder) {
  EXPECT_FALSE(Runs(1, 4, Ints{0, 1, 5, 6}, {}).are_in_order());
  EXPECT_TRUE(Runs(1, 4, Ints{0, 1, 5, 6}, {}).have_gaps());
  EXPECT_FALSE(Runs(1, 4, Ints{5, 6, 0, 1}, Ints{1, 1, 0, 0}).have_gaps());
  EXPECT_EQ(Runs(1, 4, Ints{0, 1, 5, 6}, {}).chains(), (Ints{0, 0, 1, 1}));
}

TEST(Runs, ChainsAreUnbrokenStretchesOfDocuments) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const Rng rng(seed);
    const int64_t B = 2, T = 1 + static_cast<int64_t>(rng.below(20, 0));
    Ints positions, documents;
    uint64_t draw = 1;
    for (int64_t b = 0; b < B; ++b) {
      Ints order(static_cast<size_t>(T));
      for (int64_t t = 0; t < T; ++t) order[static_cast<size_t>(t)] = static_cast<int32_t>(t);
      for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[rng.below(i, draw++)]);
      for (int32_t t : order) {
        positions.push_back(t + 7 + t / 6);  // gaps too
        documents.push_back(t > 15 ? -1 : t / 4);
      }
    }
    Runs runs(B, T, positions, documents);
    const Ints order = runs.order(), chains = runs.chains();
    for (size_t i = 1; i < order.size(); ++i) {
      auto at = [&](const Ints& all, size_t k) { return all[static_cast<size_t>(order[k])]; };
      const bool is_one_row = order[i] / T == order[i - 1] / T, is_padding = at(documents, i) < 0;
      if (is_padding) continue;  // any
      const bool continues =
          is_one_row && at(documents, i) == at(documents, i - 1) && at(positions, i) == at(positions, i - 1) + 1;
      EXPECT_EQ(chains[i] == chains[i - 1], continues) << "seed " << seed << ", place " << i;
      EXPECT_GE(chains[i], chains[i - 1]);
    }
  }
}

TEST(Runs, TwoTokensAtOnePositionAreAnError) {
  EXPECT_EQ(test::error_of([] { Runs(1, 3, Ints{0, 1, 1}, {}); }, {"row 0 has two tokens at position 1"}), "");
  Runs(1, 3, Ints{0, 1, 1}, Ints{0, -1, -1});  // padding may stand anywhere
}

}  // namespace
}  // namespace weft
