// The permutation of windows and the turns of a mixture.
#include "src/data/order.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "tests/data/support.h"
#include "tests/support/random.h"

namespace weft::data {
namespace {

using test::expect_error;

TEST(Permutation, MeetsEveryIndexOnce) {
  for (int64_t n : {1, 2, 3, 4, 5, 7, 16, 17, 99, 100, 101, 1023, 10007}) {
    Permutation permutation(n, Rng(test::seed()));
    std::vector<bool> seen(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) {
      int64_t p = permutation(i);
      ASSERT_TRUE(p >= 0 && p < n && !seen[static_cast<size_t>(p)]) << n << " " << i;
      seen[static_cast<size_t>(p)] = true;
    }
  }
  int64_t huge = int64_t{1} << 52;
  EXPECT_LT(Permutation(huge, Rng(1))(huge - 1), huge);
}

TEST(Permutation, LooksRandom) {
  // Mean displacement of a uniform permutation is n / 3; index and image are uncorrelated; neighbours part.
  const int64_t n = 20000;
  Permutation permutation(n, Rng(test::seed()));
  double displacement = 0, correlation = 0;
  int64_t near = 0;
  for (int64_t i = 0; i < n; ++i) {
    int64_t p = permutation(i);
    displacement += static_cast<double>(std::abs(p - i));
    correlation += (static_cast<double>(i) - n / 2.0) * (static_cast<double>(p) - n / 2.0);
    near += std::abs(permutation((i + 1) % n) - p) < 10;
  }
  EXPECT_NEAR(displacement / n / (n / 3.0), 1, 0.03);
  EXPECT_LT(std::abs(correlation / n / (n * (n / 12.0))), 0.03);
  EXPECT_LT(near, 60);  // 20 expected
}

TEST(Permutation, OfThreeTakesEveryOrder) {
  std::map<int64_t, int> counts;
  for (uint64_t key = 0; key < 6000; ++key) {
    Permutation p(3, Rng(key));
    ++counts[p(0) * 100 + p(1) * 10 + p(2)];
  }
  EXPECT_EQ(counts.size(), 6u);
  for (auto [order, count] : counts) EXPECT_NEAR(count, 1000, 200) << order;
}

TEST(Mixture, HonoursWeightsWithinOneSampleAfterAnyNumber) {
  std::vector<std::vector<double>> lists = {
      {1}, {0.9, 0.1}, {2, 1}, {1, 1, 1}, {0.5, 0.3, 0.15, 0.05}, {7, 11, 13, 17, 1}};
  lists.push_back({0.9});
  lists.back().resize(11, 0.01);  // one large and many small
  lists[6][0] = 0.9;
  lists.push_back({std::sqrt(2.0), 1, 3.14159});
  Rng rng = Rng(test::seed())["weights"];
  for (uint64_t i = 0; i < 12; ++i) {
    lists.emplace_back();
    for (uint64_t j = 0; j < 2 + i; ++j) lists.back().push_back(0.01 + rng.uniform(i, j));
  }
  for (const auto& weights : lists) {
    Mixture mixture(weights);
    double total = std::accumulate(weights.begin(), weights.end(), 0.0);
    std::vector<int64_t> counts(weights.size());
    for (int64_t g = 0; g < 2 * mixture.period() + 10; ++g) {
      auto [source, index] = mixture.turn(g);
      ASSERT_EQ(index, counts[static_cast<size_t>(source)]++);
      for (size_t i = 0; i < weights.size(); ++i) {
        double share =
            static_cast<double>(mixture.share(static_cast<int64_t>(i))) / static_cast<double>(mixture.period());
        ASSERT_LT(std::abs(static_cast<double>(counts[i]) - share * static_cast<double>(g + 1)), 1.0);
        ASSERT_NEAR(share, weights[i] / total, 1.0 / 65536);
      }
    }
  }
  EXPECT_EQ(Mixture({0.9, 0.1}).period(), 10);
  EXPECT_EQ(Mixture({2, 1}).period(), 3);
}

TEST(Mixture, RefusesWeightsThatMeanNothing) {
  expect_error([] { Mixture({1, 0}); }, {"weight 1 is 0", "leave a source out"});
  expect_error([] { Mixture({-1, 2}); }, {"weight 0 is -1"});
  expect_error([] { Mixture({1, std::nan("")}); }, {"weight 1"});
  expect_error([] { Mixture({1, 1e-9}); }, {"weight 1", "1/65536"});
}

}  // namespace
}  // namespace weft::data
