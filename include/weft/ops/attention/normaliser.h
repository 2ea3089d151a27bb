// Normalisers: how scores become weights, and the running state that makes that possible tile by tile and hop by hop.
// A normaliser owns its state: init, update (rescale, weight, add), finish, merge, and what backward needs.
// kIsBase2: scores arrive multiplied by log2(e) and the statistic is kept so inside, so that weights are a bare 2^x.
#pragma once

#include "weft/ops/attention/lanes.h"

namespace weft::ops {

// out = sum_j exp(s_j - lse) v_j, lse = log sum_j exp(s_j). No key seen: out = 0, lse = -inf.
struct SoftmaxNormaliser {
  static constexpr bool kHasStatistic = true;
  static constexpr bool kIsBase2 = true;
  static constexpr double kMasked = -__builtin_inf();  // score of a pair that the mask removes
  template <class V>
  struct State {
    V max, sum;
  };

  // State after the keys behind a stored statistic; their part of `out` counts with weight 1.
  template <class V>
  [[gnu::always_inline]] WEFT_HD static State<V> init(V lse) {
    using T = typename core::LaneTraits<V>::Element;
    V none = V{} + T(kMasked), zero = V{}, one = zero + T(1);
    return {lse, lse == none ? zero : one};
  }
  // Takes the largest new score in; returns the factor of everything summed so far.
  template <class V>
  [[gnu::always_inline]] WEFT_HD static V rescale(State<V>& state, V tile_max) {
    V max = core::lane_max(tile_max, state.max);
    V factor = core::lane_exp2(state.max - shift(max));
    state = {max, state.sum * factor};
    return factor;
  }
  // What weight() subtracts: the maximum, or 0 while no key was seen.
  template <class V>
  [[gnu::always_inline]] WEFT_HD static V shift(V max) {
    using T = typename core::LaneTraits<V>::Element;
    V none = V{} + T(kMasked), zero = V{};
    return max == none ? zero : max;
  }
  template <class V>
  [[gnu::always_inline]] WEFT_HD static V weight(V score, V shift) {
    return core::lane_exp2(score - shift);
  }
  template <class V>
  [[gnu::always_inline]] WEFT_HD static void add(State<V>& state, V weights) {
    state.sum += weights;
  }

  template <class T>
  struct Final {
    T factor, statistic;  // of the summed out; lse / log(2)
  };
  template <class T>
  static Final<T> finish(T max, T sum) {
    if (sum == 0) return {T(0), T(kMasked)};
    return {T(1) / sum, max + T(std::log2(static_cast<double>(sum)))};
  }
  // Two finished partial results over disjoint keys: out = a * out_a + b * out_b. Maximum form, no overflow.
  template <class T>
  struct Merged {
    T a, b, statistic;
  };
  template <class T>
  static Merged<T> merge(T lse_a, T lse_b) {
    T high = lse_a > lse_b ? lse_a : lse_b, low = lse_a > lse_b ? lse_b : lse_a;
    if (high == T(kMasked)) return {T(0), T(0), high};
    T lse = high + std::log1p(std::exp(low - high));
    return {std::exp(lse_a - lse), std::exp(lse_b - lse), lse};
  }

  // Backward: the final weight from the stored statistic (rows without keys: weight 0), and d score.
  template <class T>
  [[gnu::always_inline]] WEFT_HD static T backward_shift(T lse) {
    return lse == T(kMasked) ? -T(kMasked) : lse;
  }
  template <class V>
  [[gnu::always_inline]] WEFT_HD static V dscore(V weight, V dweight, V delta) {
    return weight * (dweight - delta);
  }
};

// out = sum_j s_j v_j: weights are the scores themselves. State: out alone, merged by +.
struct SumNormaliser {
  static constexpr bool kHasStatistic = false;
  static constexpr bool kIsBase2 = false;
  static constexpr double kMasked = 0;
  template <class V>
  struct State {
    V max, sum;
  };

  template <class V>
  [[gnu::always_inline]] WEFT_HD static State<V> init(V) {
    return {V{}, V{}};
  }
  template <class V>
  [[gnu::always_inline]] WEFT_HD static V rescale(State<V>&, V) {
    return V{} + 1;
  }
  template <class V>
  [[gnu::always_inline]] WEFT_HD static V shift(V max) {
    return max;
  }
  template <class V>
  [[gnu::always_inline]] WEFT_HD static V weight(V score, V) {
    return score;
  }
  template <class V>
  [[gnu::always_inline]] WEFT_HD static void add(State<V>&, V) {}
  template <class T>
  struct Final {
    T factor, statistic;
  };
  template <class T>
  static Final<T> finish(T, T) {
    return {T(1), T(0)};
  }
  template <class T>
  struct Merged {
    T a, b, statistic;
  };
  template <class T>
  static Merged<T> merge(T, T) {
    return {T(1), T(1), T(0)};
  }
  template <class T>
  [[gnu::always_inline]] WEFT_HD static T backward_shift(T) {
    return T(0);
  }
  template <class V>
  [[gnu::always_inline]] WEFT_HD static V dscore(V, V dweight, V) {
    return dweight;
  }
};

}  // namespace weft::ops
