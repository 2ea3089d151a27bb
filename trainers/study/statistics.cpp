#include "weft/trainers/statistics.h"

#include <algorithm>
#include <boost/math/distributions/non_central_t.hpp>
#include <boost/math/distributions/normal.hpp>
#include <boost/math/distributions/students_t.hpp>
#include <cmath>
#include <map>
#include <numeric>

#include "weft/core/error.h"
#include "weft/core/rng.h"

namespace weft::study {

namespace {

namespace math = boost::math;

void check(const StatisticsOptions& options) {
  WEFT_CHECK(options.confidence > 0 && options.confidence < 1 && options.power > 0 && options.power < 1,
             str("statistics: confidence is ", options.confidence, ", power is ", options.power),
             "both lie between 0 and 1, such as 0.95 and 0.8");
  WEFT_CHECK(options.resamples >= 100, str("statistics: ", options.resamples, " resamples"), "use 100 or more");
  WEFT_CHECK(options.contrasts >= 1, str("statistics: ", options.contrasts, " contrasts"), "use 1 or more");
}

// What a t that is exceeded on either side with probability 1 - confidence is.
double t_quantile(double degrees, double confidence) {
  return math::quantile(math::complement(math::students_t(degrees), (1 - confidence) / 2));
}

struct Moments {
  double mean = 0, deviation = 0;
};
Moments moments_of(std::span<const double> x) {
  const auto n = static_cast<double>(x.size());
  if (x.empty()) return {};
  const double mean = std::accumulate(x.begin(), x.end(), 0.0) / n;
  double squares = 0;
  for (double value : x) squares += (value - mean) * (value - mean);
  return {mean, x.size() > 1 ? std::sqrt(squares / (n - 1)) : 0};
}

Interval around(double mean, double standard_error, double degrees, double confidence) {
  const double half = t_quantile(degrees, confidence) * standard_error;
  return {mean - half, mean + half};
}

// Percentiles of the means of resampled differences. A study's numbers are the same whenever they are computed.
Interval bootstrap(std::span<const double> x, const StatisticsOptions& options) {
  const Rng rng = Rng(options.seed)["bootstrap"];
  const auto n = static_cast<uint64_t>(x.size());
  std::vector<double> means(static_cast<size_t>(options.resamples));
  for (size_t r = 0; r < means.size(); ++r) {
    double sum = 0;
    for (uint64_t i = 0; i < n; ++i) sum += x[rng.below(n, r * n + i)];
    means[r] = sum / static_cast<double>(n);
  }
  std::sort(means.begin(), means.end());
  auto percentile = [&](double share) {  // between neighbours by their distance
    const double at = share * static_cast<double>(means.size() - 1);
    const auto below = static_cast<size_t>(at);
    const double part = at - static_cast<double>(below);
    return means[below] * (1 - part) + means[std::min(below + 1, means.size() - 1)] * part;
  };
  const double outside = (1 - options.confidence) / 2;
  return {percentile(outside), percentile(1 - outside)};
}

// Chance that a two-sided paired t-test finds `effect`, in units of the deviation of a pair's difference. Holm multiplies the smallest of m
// values of p by m.
double power_of(double effect, int64_t seeds, const StatisticsOptions& options) {
  const auto degrees = static_cast<double>(seeds - 1);
  const double confidence = 1 - (1 - options.confidence) / static_cast<double>(options.contrasts);
  const double bound = t_quantile(degrees, confidence), shift = effect * std::sqrt(static_cast<double>(seeds));
  if (shift > 37) return 1;  // the distribution's own sums end before the tail does
  const math::non_central_t t(degrees, shift);
  return math::cdf(math::complement(t, bound)) + math::cdf(t, -bound);
}

}  // namespace

Mean mean_of(std::span<const double> results, const StatisticsOptions& options) {
  check(options);
  std::vector<double> kept;
  for (double x : results)
    if (std::isfinite(x)) kept.push_back(x);
  const auto [mean, deviation] = moments_of(kept);
  Mean out{.count = static_cast<int64_t>(kept.size()),
           .lost = static_cast<int64_t>(results.size() - kept.size()),
           .mean = mean,
           .deviation = deviation,
           .t_interval = {}};
  const auto n = static_cast<double>(out.count);
  if (out.count >= kFewestForAnInterval)
    out.t_interval = around(mean, deviation / std::sqrt(n), n - 1, options.confidence);
  return out;
}

namespace {

// Without `resolves`.
Difference difference_of(std::span<const double> arm, std::span<const double> baseline,
                         const StatisticsOptions& options) {
  check(options);
  WEFT_CHECK(arm.size() == baseline.size(),
             str("paired_difference: ", arm.size(), " results of the arm and ", baseline.size(), " of the baseline"),
             "give one number per seed for both, in the same order");
  std::vector<double> pairs;
  for (size_t i = 0; i < arm.size(); ++i)
    if (std::isfinite(arm[i]) && std::isfinite(baseline[i])) pairs.push_back(arm[i] - baseline[i]);
  const auto [mean, deviation] = moments_of(pairs);
  Difference d;
  d.count = static_cast<int64_t>(pairs.size()), d.unpaired = static_cast<int64_t>(arm.size()) - d.count;
  d.mean = mean, d.deviation = deviation;
  if (d.count < kFewestForAnInterval) return d;
  const auto n = static_cast<double>(d.count);
  const double standard_error = deviation / std::sqrt(n);
  d.t_interval = around(mean, standard_error, n - 1, options.confidence);
  d.bootstrap_interval = bootstrap(pairs, options);
  if (standard_error > 0)
    d.p = 2 * math::cdf(math::complement(math::students_t(n - 1), std::abs(mean) / standard_error));
  else d.p = mean == 0 ? 1 : 0;  // every seed gave the same difference
  return d;
}

}  // namespace

Difference paired_difference(std::span<const double> arm, std::span<const double> baseline,
                             const StatisticsOptions& options) {
  Difference d = difference_of(arm, baseline, options);
  if (d.p) d.resolves = resolvable_effect(d.deviation, d.count, options);
  return d;
}

std::vector<Difference> compare(std::span<const double> baseline, std::span<const std::vector<double>> arms,
                                const StatisticsOptions& options) {
  std::vector<Difference> all;
  std::vector<double> p;
  for (const std::vector<double>& arm : arms) {
    all.push_back(difference_of(arm, baseline, options));
    if (all.back().p) p.push_back(*all.back().p);
  }
  const std::vector<double> adjusted = holm_adjusted(p);
  StatisticsOptions of_all = options;
  of_all.contrasts = std::max<int64_t>(1, std::ssize(p));
  std::map<int64_t, double> of_one;  // what so many pairs resolve, in deviations
  size_t next = 0;
  for (Difference& d : all) {
    if (!d.p) continue;
    d.adjusted_p = adjusted[next++];
    const auto [at, is_new] = of_one.try_emplace(d.count, 0);
    if (is_new) at->second = resolvable_effect(1, d.count, of_all);
    d.resolves = at->second * d.deviation;
  }
  return all;
}

std::vector<double> holm_adjusted(std::span<const double> p) {
  std::vector<size_t> order(p.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return p[a] < p[b]; });
  std::vector<double> adjusted(p.size());
  double largest = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    largest = std::max(largest, std::min(1.0, static_cast<double>(p.size() - i) * p[order[i]]));
    adjusted[order[i]] = largest;
  }
  return adjusted;
}

ClusteredMean clustered_mean(std::span<const double> scores, std::span<const int64_t> clusters,
                             const StatisticsOptions& options) {
  check(options);
  WEFT_CHECK(scores.size() == clusters.size(),
             str("clustered_mean: ", scores.size(), " scores and ", clusters.size(), " cluster numbers"),
             "give the cluster of every score");
  for (double score : scores)
    WEFT_CHECK(std::isfinite(score), str("clustered_mean: a score is ", score), "leave out items without a score");
  ClusteredMean out{.count = static_cast<int64_t>(scores.size())};
  if (scores.empty()) return out;
  out.mean = moments_of(scores).mean;
  std::map<int64_t, double> sums;  // of deviations from the mean
  for (size_t i = 0; i < scores.size(); ++i) sums[clusters[i]] += scores[i] - out.mean;
  out.clusters = static_cast<int64_t>(sums.size());
  if (out.clusters < kFewestForAnInterval) return out;
  double squares = 0;
  for (const auto& [cluster, sum] : sums) squares += sum * sum;
  const auto c = static_cast<double>(out.clusters);
  out.standard_error = std::sqrt(c / (c - 1) * squares) / static_cast<double>(out.count);
  out.t_interval = around(out.mean, out.standard_error, c - 1, options.confidence);
  return out;
}

double resolvable_effect(double deviation, int64_t seeds, const StatisticsOptions& options) {
  check(options);
  WEFT_CHECK(seeds >= 2 && deviation >= 0 && std::isfinite(deviation),
             str("resolvable_effect: ", seeds, " seeds with a deviation of ", deviation),
             "use 2 seeds or more and a deviation that is not negative");
  double low = 0, high = 1;
  while (power_of(high, seeds, options) < options.power) low = high, high *= 2;
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2;
    (power_of(middle, seeds, options) < options.power ? low : high) = middle;
  }
  return high * deviation;
}

std::optional<int64_t> seeds_needed(double deviation, double effect, const StatisticsOptions& options) {
  check(options);
  WEFT_CHECK(deviation >= 0 && std::isfinite(deviation) && effect != 0 && std::isfinite(effect),
             str("seeds_needed: an effect of ", effect, " with a deviation of ", deviation),
             "use an effect that is not 0 and a deviation that is not negative");
  if (deviation == 0) return kFewestForAnInterval;
  const double size = std::abs(effect) / deviation;
  auto suffices = [&](int64_t n) { return power_of(size, n, options) >= options.power; };
  constexpr int64_t kMost = 10'000'000;
  int64_t low = kFewestForAnInterval - 1, high = kFewestForAnInterval;
  while (!suffices(high)) {
    if (high >= kMost) return {};
    low = high, high = std::min(kMost, high * 2);
  }
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (suffices(middle) ? high : low) = middle;
  }
  return high;
}

SelectionFloor selection_floor(int64_t arms, double standard_error, const StatisticsOptions& options) {
  check(options);
  WEFT_CHECK(arms >= 1 && standard_error >= 0 && std::isfinite(standard_error),
             str("selection_floor: ", arms, " arms with a standard error of ", standard_error),
             "use 1 arm or more and an error that is not negative");
  const math::normal normal;
  const auto k = static_cast<double>(arms);
  // Mean of the largest: the integral of 1 - F(x)^k over x > 0, less that of F(x)^k over x < 0.
  constexpr double kStep = 1.0 / 512, kEnd = 12;
  double expected = 0;
  for (double x = kStep / 2; x < kEnd; x += kStep) {
    const double above = -std::expm1(k * std::log1p(-math::cdf(math::complement(normal, x))));
    expected += kStep * (above - std::pow(math::cdf(normal, -x), k));
  }
  // The largest is less than c above the baseline: the integral over the baseline's x of F(x + c)^k f(x).
  auto share_below = [&](double c) {
    double share = 0;
    for (double x = -kEnd + kStep / 2; x < kEnd; x += kStep)
      share += kStep * std::pow(math::cdf(normal, x + c), k) * math::pdf(normal, x);
    return share;
  };
  double low = -kEnd, high = 2 * kEnd;
  while (high - low > 1e-6) {
    const double middle = (low + high) / 2;
    (share_below(middle) < options.confidence ? low : high) = middle;
  }
  return {expected * standard_error, high * standard_error};
}

}  // namespace weft::study
