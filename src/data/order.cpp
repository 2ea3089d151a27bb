#include "src/data/order.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "weft/core/error.h"

namespace weft::data {

namespace {

constexpr uint64_t kRounds = 6;
constexpr int64_t kMaxPeriod = 65536;

// The smallest period in which every weight is a whole number of turns, else the longest period with rounded turns.
std::vector<int64_t> shares_of(const std::vector<double>& weights) {
  double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<int64_t> shares(weights.size());
  for (int64_t period = 1; period <= kMaxPeriod; ++period) {
    bool is_exact = true;
    for (size_t i = 0; i < weights.size() && is_exact; ++i) {
      double turns = weights[i] / total * static_cast<double>(period);
      shares[i] = std::llround(turns);
      is_exact = shares[i] > 0 && std::abs(turns - static_cast<double>(shares[i])) < 1e-7;
    }
    if (is_exact && std::accumulate(shares.begin(), shares.end(), int64_t{0}) == period) return shares;
  }
  std::vector<size_t> order(weights.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::vector<double> rest(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    double turns = weights[i] / total * kMaxPeriod;
    shares[i] = static_cast<int64_t>(turns);
    rest[i] = turns - static_cast<double>(shares[i]);
  }
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return rest[a] > rest[b]; });
  int64_t missing = kMaxPeriod - std::accumulate(shares.begin(), shares.end(), int64_t{0});
  for (size_t i = 0; missing > 0; ++i, --missing) ++shares[order[i % order.size()]];
  return shares;
}

}  // namespace

// A Feistel network over (row, column) of a grid that just covers [0, n); indices outside walk on until they are
// inside.
Permutation::Permutation(int64_t n, Rng rng) : n_(static_cast<uint64_t>(n)), rng_(rng) {
  WEFT_ASSERT(n > 0);
  rows_ = static_cast<uint64_t>(std::ceil(std::sqrt(static_cast<double>(n))));
  columns_ = (n_ + rows_ - 1) / rows_;
}

int64_t Permutation::operator()(int64_t index) const {
  auto x = static_cast<uint64_t>(index);
  do {
    uint64_t row = x / columns_, column = x % columns_;
    for (uint64_t round = 0; round < kRounds; ++round) {
      auto mix = [&](uint64_t value, uint64_t half) {
        auto bits = rng_.bits(value, 2 * round + half);
        return uint64_t{bits[0]} | uint64_t{bits[1]} << 32;
      };
      row = (row + mix(column, 0) % rows_) % rows_;
      column = (column + mix(row, 1) % columns_) % columns_;
    }
    x = row * columns_ + column;
  } while (x >= n_);
  return static_cast<int64_t>(x);
}

// Turn j of a source with c turns in a period P must come in the slots floor(j P / c) + 1 .. ceil((j + 1) P / c);
// taking the earliest deadline among the sources whose window is open always succeeds, and keeps every source within
// one turn of its share.
Mixture::Mixture(const std::vector<double>& weights) {
  for (size_t i = 0; i < weights.size(); ++i)
    WEFT_CHECK(std::isfinite(weights[i]) && weights[i] > 0, str("data mixture: weight ", i, " is ", weights[i]),
               "weights are positive; leave a source out instead of giving it no weight");
  shares_ = shares_of(weights);
  for (size_t i = 0; i < weights.size(); ++i)
    WEFT_CHECK(shares_[i] > 0, str("data mixture: weight ", i, " (", weights[i], ") is less than 1/65536 of the total"),
               "give it more weight or leave the source out");
  int64_t period = std::accumulate(shares_.begin(), shares_.end(), int64_t{0});
  std::vector<int64_t> taken(shares_.size(), 0);
  for (int64_t slot = 1; slot <= period; ++slot) {
    size_t best = shares_.size();
    int64_t earliest = period + 1;
    for (size_t i = 0; i < shares_.size(); ++i) {
      if (taken[i] == shares_[i] || taken[i] * period / shares_[i] + 1 > slot) continue;
      int64_t deadline = ((taken[i] + 1) * period + shares_[i] - 1) / shares_[i];
      if (deadline < earliest) {
        earliest = deadline;
        best = i;
      }
    }
    WEFT_ASSERT(best < shares_.size());
    sources_.push_back(static_cast<int32_t>(best));
    before_.push_back(static_cast<int32_t>(taken[best]++));
  }
}

Mixture::Turn Mixture::turn(int64_t sample) const {
  auto slot = static_cast<size_t>(sample % period());
  int64_t source = sources_[slot];
  return {source, sample / period() * share(source) + before_[slot]};
}

}  // namespace weft::data
