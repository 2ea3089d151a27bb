// Statistics of studies, against published tables and simulated studies whose truth is known.
#include "weft/trainers/statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/errors.h"
#include "weft/core/rng.h"

namespace weft::study {
namespace {

using test::error_of;

// Student's data of 1908: additional hours of sleep of ten patients under two drugs.
const std::vector<double> kDrug1{0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0};
const std::vector<double> kDrug2{1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4};

TEST(Statistics,
     PairedTestOfStudentsSleepData) {  // as in every textbook: t = 4.0621 with 9 degrees of freedom, p = 0.00283
  const Difference d = paired_difference(kDrug2, kDrug1);
  EXPECT_EQ(d.count, 10);
  EXPECT_EQ(d.unpaired, 0);
  EXPECT_NEAR(d.mean, 1.58, 1e-12);
  EXPECT_NEAR(d.deviation, 1.2299, 1e-4);
  ASSERT_TRUE(d.t_interval && d.bootstrap_interval && d.p && d.resolves);
  EXPECT_NEAR(*d.p, 0.002833, 1e-6);
  EXPECT_NEAR(d.t_interval->low, 0.7001, 1e-4);
  EXPECT_NEAR(d.t_interval->high, 2.4599, 1e-4);
  // Resampled means have a deviation of 1.2299 sqrt(9 / 10) / sqrt(10), and the interval lies about 1.96 of it to each side.
  EXPECT_NEAR(d.bootstrap_interval->low, 1.58 - 1.96 * 0.369, 0.12);
  EXPECT_NEAR(d.bootstrap_interval->high, 1.58 + 1.96 * 0.369, 0.12);
  const Difference again = paired_difference(kDrug2, kDrug1);
  EXPECT_EQ(again.bootstrap_interval->low, d.bootstrap_interval->low) << "a report must not change between two calls";
}

TEST(Statistics, IntervalsAreThoseOfTheTableOfT) {  // t of 0.975 for 2, 4, 9 and 29 degrees of freedom
  const std::vector<std::pair<int, double>> table{{3, 4.3027}, {5, 2.7764}, {10, 2.2622}, {30, 2.0452}};
  for (auto [n, t] : table) {
    std::vector<double> x;
    for (int i = 0; i < n; ++i) x.push_back(i);
    const Mean m = mean_of(x);
    ASSERT_TRUE(m.t_interval);
    EXPECT_NEAR((m.t_interval->high - m.mean) / (m.deviation / std::sqrt(n)), t, 1e-4);
    EXPECT_NEAR(m.t_interval->high - m.mean, m.mean - m.t_interval->low, 1e-12);
  }
}

TEST(Statistics, FewerThanThreeRunsHaveNoInterval) {
  const std::vector<double> two{1, 2}, other{2, 4};
  EXPECT_FALSE(mean_of(two).t_interval);
  const Difference d = paired_difference(other, two);
  EXPECT_NEAR(d.mean, 1.5, 1e-15);
  EXPECT_FALSE(d.t_interval || d.bootstrap_interval || d.p || d.resolves);
  EXPECT_EQ(mean_of({}).count, 0);
}

TEST(Statistics, RunsWithoutAResultAreCountedAndNotAveraged) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  const std::vector<double> arm{1, 2, nan, 4, 6}, baseline{0, 1, 2, inf, 2};
  EXPECT_EQ(mean_of(arm).lost, 1);
  EXPECT_NEAR(mean_of(arm).mean, 3.25, 1e-15);
  const Difference d = paired_difference(arm, baseline);
  EXPECT_EQ(d.count, 3);
  EXPECT_EQ(d.unpaired, 2);
  EXPECT_NEAR(d.mean, 2, 1e-15);
}

TEST(Statistics, EqualDifferencesAreCertain) {
  const std::vector<double> a{1, 2, 3}, b{2, 3, 4};
  EXPECT_EQ(*paired_difference(b, a).p, 0);
  EXPECT_EQ(*paired_difference(a, a).p, 1);
  EXPECT_EQ(paired_difference(b, a).t_interval->low, 1);
}

TEST(Statistics, HolmsAdjustment) {  // steps: 4 x 0.005, 3 x 0.01, 2 x 0.03, 1 x 0.04 raised to the one before
  const std::vector<double> p{0.01, 0.04, 0.03, 0.005}, expected{0.03, 0.06, 0.06, 0.02};
  const std::vector<double> got = holm_adjusted(p);
  for (size_t i = 0; i < p.size(); ++i) EXPECT_NEAR(got[i], expected[i], 1e-15) << i;
  EXPECT_EQ(holm_adjusted(std::vector<double>{0.7, 0.8}), (std::vector<double>{1, 1}));
  EXPECT_TRUE(holm_adjusted({}).empty());
}

TEST(Statistics, PowerIsThatOfTheNoncentralT) {
  // An effect of half a deviation with power 0.8 at 5 %, one sample: n = 33.37, so 34 (Cohen 1988, and R's power.t.test).
  EXPECT_EQ(seeds_needed(1, 0.5), 34);
  EXPECT_EQ(seeds_needed(2, -1.0), 34);
  EXPECT_EQ(seeds_needed(1, 1.0), 10);
  EXPECT_EQ(seeds_needed(0, 1.0), kFewestForAnInterval);
  EXPECT_FALSE(seeds_needed(1, 1e-6));
  EXPECT_NEAR(resolvable_effect(1, 34), 0.5, 0.01);
  EXPECT_NEAR(resolvable_effect(3, 34), 3 * resolvable_effect(1, 34), 1e-9);
  // An effect that n seeds just resolve needs n seeds.
  for (int64_t n : {3, 5, 10}) EXPECT_EQ(seeds_needed(1, resolvable_effect(1, n) * 1.0001), n);
  // Five pairs: simulated, the test finds the effect that it claims to find in 80 % of the studies.
  const double effect = resolvable_effect(1, 5);
  int found = 0;
  for (uint64_t study = 0; study < 4000; ++study) {
    std::vector<double> x;
    for (uint64_t i = 0; i < 5; ++i) x.push_back(effect + Rng(9)["study"].normal(study * 5 + i));
    const Mean m = mean_of(x);
    found += m.t_interval->low > 0 || m.t_interval->high < 0;
  }
  EXPECT_NEAR(found / 4000.0, 0.8, 0.02);  // three standard errors
}

TEST(Statistics, ItemsOfADocumentCountTogether) {
  // Every item four times: the mean and its error are those of the items once, with documents as clusters.
  const std::vector<double> once{1, 0, 0, 1, 1, 1, 0};
  std::vector<double> scores;
  std::vector<int64_t> documents;
  for (size_t i = 0; i < once.size(); ++i)
    for (int copy = 0; copy < 4; ++copy) scores.push_back(once[i]), documents.push_back(static_cast<int64_t>(i) * 10);
  const ClusteredMean c = clustered_mean(scores, documents);
  const Mean m = mean_of(once);
  EXPECT_EQ(c.count, 28);
  EXPECT_EQ(c.clusters, 7);
  EXPECT_NEAR(c.mean, m.mean, 1e-15);
  ASSERT_TRUE(c.t_interval);
  EXPECT_NEAR(c.t_interval->low, m.t_interval->low, 1e-12);
  EXPECT_NEAR(c.t_interval->high, m.t_interval->high, 1e-12);
  // Clusters of unequal size, by hand: mean 0.5, sums of deviations -0.5, 1, -0.5 and squares 1.5; error sqrt(1.5 x 1.5) / 4.
  const std::vector<double> few{0, 1, 1, 0};
  const std::vector<int64_t> of{3, 5, 5, 9};
  EXPECT_NEAR(clustered_mean(few, of).standard_error, std::sqrt(1.5 * 1.5) / 4, 1e-15);
  EXPECT_FALSE(clustered_mean(few, std::vector<int64_t>{1, 1, 2, 2}).t_interval);
}

TEST(Statistics, TheBestOfEqualArmsWinsByLuck) {
  // Means of the largest of n standard normal numbers (Harter 1961).
  const std::vector<std::pair<int64_t, double>> table{{1, 0},        {2, 0.56419},  {3, 0.84628},
                                                      {10, 1.53875}, {30, 2.04276}, {100, 2.50759}};
  for (auto [arms, expected] : table) EXPECT_NEAR(selection_floor(arms, 1).expected, expected, 2e-5) << arms;
  EXPECT_NEAR(selection_floor(1, 2).bound, 2 * std::sqrt(2.0) * 1.644854, 1e-5);
  // 30 equal arms, each right on half of 200 questions: 7 points.
  EXPECT_NEAR(selection_floor(30, std::sqrt(0.25 / 200)).expected, 0.07, 0.005);
  // What the best of equal arms leads a baseline by, of which both have noise.
  constexpr uint64_t kStudies = 40000;
  const Rng rng = Rng(8)["studies"];
  for (uint64_t arms : {1, 5, 20}) {
    const SelectionFloor floor = selection_floor(static_cast<int64_t>(arms), 1);
    double sum = 0;
    int beyond = 0;
    for (uint64_t study = 0; study < kStudies; ++study) {
      double best = -HUGE_VAL;
      for (uint64_t a = 1; a <= arms; ++a) best = std::max(best, static_cast<double>(rng[study].normal(a)));
      const double lead = best - static_cast<double>(rng[study].normal(0));
      sum += lead, beyond += lead > floor.bound;
    }
    EXPECT_NEAR(sum / kStudies, floor.expected, 3 * std::sqrt(2.0 / kStudies)) << arms;
    EXPECT_NEAR(static_cast<double>(beyond) / kStudies, 0.05, 3 * std::sqrt(0.05 * 0.95 / kStudies)) << arms;
  }
}

// Studies of five arms and a baseline. Runs of one seed share noise that pairing must remove. One arm is better by `effect`; the others are
// equal to the baseline.
constexpr int64_t kArms = 5;
std::vector<Difference> planted_study(uint64_t study, uint64_t seeds, double effect) {
  const Rng rng = Rng(4)[study];
  std::vector<double> baseline;
  std::vector<std::vector<double>> arms(kArms);
  for (uint64_t s = 0; s < seeds; ++s) {
    const double shared = 1.5 + 0.2 * rng["seed"].normal(s);
    baseline.push_back(shared + 0.01 * rng["baseline"].normal(s));
    for (size_t a = 0; a < kArms; ++a)
      arms[a].push_back(shared - (a == 2 ? effect : 0) + 0.01 * rng["arm"][a].normal(s));
  }
  return compare(baseline, arms, {.resamples = 100});  // the intervals looked at are those of t
}

// 200 studies over eight seeds, with twice what they resolve.
TEST(Statistics, APlantedEffectIsFoundAndAPlantedNullIsNot) {
  constexpr int64_t kStudies = 200, kSeeds = 8;
  const double effect = 2 * resolvable_effect(std::sqrt(2.0) * 0.01, kSeeds);
  int found = 0, studies_with_a_false_finding = 0, covered = 0, intervals = 0;
  for (uint64_t study = 0; study < kStudies; ++study) {
    const std::vector<Difference> all = planted_study(study, kSeeds, effect);
    bool is_false = false;
    for (size_t a = 0; a < kArms; ++a) {
      const bool is_found = *all[a].adjusted_p < 0.05;
      const double truth = a == 2 ? -effect : 0;
      if (a == 2) found += is_found && all[a].mean < 0;
      else is_false = is_false || is_found;
      covered += all[a].t_interval->low <= truth && truth <= all[a].t_interval->high;
      ++intervals;
      EXPECT_GE(*all[a].adjusted_p, *all[a].p);
    }
    studies_with_a_false_finding += is_false;
  }
  EXPECT_GE(found, 0.99 * kStudies);
  EXPECT_LE(studies_with_a_false_finding, 0.05 * kStudies + 3 * std::sqrt(0.05 * 0.95 * kStudies));
  EXPECT_NEAR(static_cast<double>(covered) / intervals, 0.95, 0.03);
}

// An effect of just the size that the table says it resolves is found, by the adjusted p that decides, in about 80 of 100 studies.
TEST(Statistics, AnEffectOfTheSizeThatIsResolvedIsFoundInFourOfFiveStudies) {
  constexpr int64_t kStudies = 400;
  const double deviation = std::sqrt(2.0) * 0.01;
  for (int64_t seeds : {3, 8}) {
    const double effect = resolvable_effect(deviation, seeds, {.contrasts = kArms});
    EXPECT_EQ(seeds_needed(deviation, effect * 1.0001, {.contrasts = kArms}), seeds);
    int found = 0;
    for (uint64_t study = 0; study < kStudies; ++study) {
      const std::vector<Difference> all = planted_study(study, static_cast<uint64_t>(seeds), effect);
      found += *all[2].adjusted_p < 0.05 && all[2].mean < 0;
      EXPECT_NEAR(*all[2].resolves, effect * all[2].deviation / deviation, 1e-12);
    }
    EXPECT_NEAR(static_cast<double>(found) / kStudies, 0.8, 0.06) << seeds;  // three standard errors
  }
  // A contrast without a p is none.
  const std::vector<double> baseline{1, 2, 4};
  const std::vector<std::vector<double>> arms{{1.5, 2, 4}, {NAN, NAN, 4}};
  const std::vector<Difference> one = compare(baseline, arms);
  EXPECT_DOUBLE_EQ(*one[0].resolves, resolvable_effect(one[0].deviation, 3));
}

TEST(Statistics, RefuseWhatHasNoAnswer) {
  const std::vector<double> three{1, 2, 3}, two{1, 2};
  EXPECT_EQ(error_of([&] { paired_difference(three, two); },
                     {"3 results of the arm and 2 of the baseline", "one number per seed"}),
            "");
  EXPECT_EQ(error_of([&] { mean_of(three, {.confidence = 1}); }, {"confidence is 1", "between 0 and 1"}), "");
  EXPECT_EQ(error_of([&] { seeds_needed(1, 0); }, {"an effect of 0"}), "");
  EXPECT_EQ(error_of([&] { seeds_needed(1, 1, {.contrasts = 0}); }, {"0 contrasts"}), "");
  EXPECT_EQ(error_of([&] { resolvable_effect(-1, 3); }, {"a deviation of -1"}), "");
  EXPECT_EQ(error_of([&] { selection_floor(0, 1); }, {"0 arms"}), "");
  EXPECT_EQ(error_of([&] { clustered_mean(three, std::vector<int64_t>{1}); }, {"3 scores and 1 cluster numbers"}), "");
}

}  // namespace
}  // namespace weft::study
