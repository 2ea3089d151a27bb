// The order of training samples, without memory that grows with the data.
#pragma once

#include <cstdint>
#include <vector>

#include "weft/core/rng.h"

namespace weft::data {

// A pseudo-random permutation of [0, n), computed for one index at a time.
class Permutation {
 public:
  Permutation(int64_t n, Rng rng);
  int64_t operator()(int64_t index) const;  // 0 <= index < n

 private:
  uint64_t n_, rows_, columns_;
  Rng rng_;
};

// Which source sample g comes from, and how many samples that source has given before.
class Mixture {
 public:
  explicit Mixture(const std::vector<double>& weights);
  struct Turn {
    int64_t source, index;
  };
  Turn turn(int64_t sample) const;
  int64_t period() const { return static_cast<int64_t>(sources_.size()); }
  int64_t share(int64_t source) const { return shares_[static_cast<size_t>(source)]; }  // turns per period

 private:
  std::vector<int64_t> shares_;
  std::vector<int32_t> sources_, before_;  // of each turn of a period
};

}  // namespace weft::data
