// Statistics of a study: is one arm better than another, by how much, and is that noise? Arms that are compared share their seeds, so
// differences are taken seed by seed and the noise that both arms share cancels.
//   study::Difference d = study::paired_difference(gated_losses, plain_losses);   // d.mean, d.t_interval, d.p
// A result that is not finite (a run that diverged, or was not made) is counted in `lost` or `unpaired`, never averaged and never hidden.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace weft::study {

inline constexpr int64_t kFewestForAnInterval = 3;  // runs; with fewer there is no interval and no p

struct Interval {
  double low = 0, high = 0;
};

struct StatisticsOptions {
  double confidence = 0.95;  // of intervals; tests are two-sided at 1 - confidence
  double power = 0.8;        // with which `resolves` and seeds_needed() find an effect
  int64_t contrasts = 1;     // that Holm adjusts over: these two count an effect as found by its adjusted p
  int64_t resamples = 10000;
  uint64_t seed = 1;  // of the resamples
};

// Of one arm over its seeds.
struct Mean {
  int64_t count = 0, lost = 0;
  double mean = 0, deviation = 0;           // standard deviation of one run, with count - 1
  std::optional<Interval> t_interval = {};  // of the mean
};
Mean mean_of(std::span<const double> results, const StatisticsOptions& options = {});

// Arm minus baseline, seed by seed. Both spans have one number per seed, in the same order.
struct Difference {
  int64_t count = 0, unpaired = 0;  // pairs, and seeds without one: a run of theirs has no result
  double mean = 0, deviation = 0;
  std::optional<Interval> t_interval = {},
                          bootstrap_interval = {};  // of the mean; the latter from resampled pairs, percentiles
  std::optional<double> p = {};                     // of the paired t-test
  std::optional<double> adjusted_p = {};            // after Holm, over the contrasts of one table; see compare()
  std::optional<double> resolves = {};              // see resolvable_effect()
};
Difference paired_difference(std::span<const double> arm, std::span<const double> baseline,
                             const StatisticsOptions& options = {});
// Every arm against the baseline, with p and `resolves` adjusted over all that have a p.
std::vector<Difference> compare(std::span<const double> baseline, std::span<const std::vector<double>> arms,
                                const StatisticsOptions& options = {});

// Holm's step-down adjustment (1979): with these, the chance of any false finding among all stays below the level.
std::vector<double> holm_adjusted(std::span<const double> p);

// Scores of items that come in clusters, such as questions about one document: items of a cluster are alike, so their number says little
// and that of the clusters counts. The variance of the mean is that of sums over clusters (Liang and Zeger, 1986) times C / (C - 1); t has
// C - 1 degrees of freedom. `deviation` is that of one item. For a paired comparison give the differences of the items.
struct ClusteredMean {
  int64_t count = 0, clusters = 0;
  double mean = 0, standard_error = 0;
  std::optional<Interval> t_interval = {};
};
ClusteredMean clustered_mean(std::span<const double> scores, std::span<const int64_t> clusters,
                             const StatisticsOptions& options = {});

// The smallest true difference that a paired t-test with `seeds` pairs of this deviation finds with the power asked for, and how many seeds
// an effect needs. By the noncentral t distribution. Unset where more than 10 million would be needed. Of several contrasts each is tested at
// (1 - confidence) / contrasts, as Holm does with the smallest p; what Holm gives the later ones beyond that is not counted.
double resolvable_effect(double deviation, int64_t seeds, const StatisticsOptions& options = {});
std::optional<int64_t> seeds_needed(double deviation, double effect, const StatisticsOptions& options = {});

// By how much the best of so many equal arms beats a baseline, which is equal too, by luck alone. `standard_error`: of one arm's mean, and of
// the baseline's.
struct SelectionFloor {
  double expected = 0;  // mean of the largest of `arms` normal numbers less another one
  double bound = 0;     // not exceeded with the confidence asked for
};
SelectionFloor selection_floor(int64_t arms, double standard_error, const StatisticsOptions& options = {});

}  // namespace weft::study
