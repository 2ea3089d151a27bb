// Normalisers: how scores become weights, and the running state with which this works on some keys at a time.
// A normaliser defines its `State`, kStateRows numbers per query. The kernel carries it from tile to tile and does not look into it. All
// members are static, for lanes V of T and for T itself:
//   kHasStatistic   one number per query comes back beside `out` (softmax: lse), differentiable, and resumes the state;
//                   backward then gets delta = dout . out - dstatistic too
//   kIsBase2        scores arrive multiplied by log2(e), so that weights are a bare 2^x
//   kMasked         the score of a pair that the mask removes: its key() is the lowest, its weight() is 0
//   init(statistic, has)           the state that a stored result continues from (has: lanes that have one)
//   resumed(statistic)             optional: the same from an f64 statistic, which the state holds more exactly than T could
//   key(score)                     rescale() gets the largest one of a tile
//   rescale(state, largest)        called per tile; returns the factor for everything summed so far
//   weight(score, shift(state))    the factor of the value; the tile's sum of counted(weight) is given to add(state, sum)
//   finish(state)                  {factor of the summed out, statistic}
//   backward_shift(statistic)      the shift with which weight() gives the final weight, in backward
//   dscore(score, weight, dweight, delta)   gradient of the score, in natural units
#pragma once

#include <cmath>

#include "weft/ops/attention/lanes.h"

namespace weft::ops {

template <class T>
struct Final {
  T factor;
  double statistic;
};

// A state, and the factor of the stored `out` that belongs to it.
template <class State, class T>
struct Resumed {
  State state;
  T factor;
};

// out = sum_j exp(s_j - lse) v_j, lse = log sum_j exp(s_j). No key seen: out = 0, lse = -inf.
struct SoftmaxNormaliser {
  static constexpr bool kHasStatistic = true;
  static constexpr bool kIsBase2 = true;
  static constexpr double kMasked = -__builtin_inf();
  static constexpr double kLog2e = 1.44269504088896340736, kLn2 = 0.693147180559945309417;
  static constexpr int kStateRows = 2;
  template <class V>
  struct State {  // the maximum, times log2(e), and the sum of 2^(x - max)
    V rows[kStateRows];
  };

  template <class T>
  WEFT_HD static State<T> init(T lse, bool has) {
    T max = has ? lse * T(kLog2e) : T(kMasked);
    return {max, max == T(kMasked) ? T(0) : T(1)};
  }
  // What T rounds off the maximum is in the sum.
  template <class T>
  WEFT_HD static Resumed<State<T>, T> resumed(double lse) {
    const double exact = lse * kLog2e;
    const T max = static_cast<T>(exact);
    if (max == T(kMasked)) return {{max, T(0)}, T(0)};
    const T sum = static_cast<T>(1 + (exact - static_cast<double>(max)) * kLn2);
    return {{max, sum}, sum};
  }
  template <class V>
  [[gnu::always_inline]] WEFT_HD static V key(V score) {
    return score;
  }
  template <class V>
  [[gnu::always_inline]] WEFT_HD static V rescale(State<V>& state, V tile_max) {
    V max = core::lane_max(tile_max, state.rows[0]);
    V factor = core::lane_exp2(state.rows[0] - or_zero(max));
    state = {max, state.rows[1] * factor};
    return factor;
  }
  template <class V>
  [[gnu::always_inline]] WEFT_HD static V shift(const State<V>& state) {
    return or_zero(state.rows[0]);
  }
  template <class V>
  [[gnu::always_inline]] WEFT_HD static V weight(V score, V shift) {
    return core::lane_exp2(score - shift);
  }
  template <class V>
  [[gnu::always_inline]] WEFT_HD static V counted(V weight) {
    return weight;
  }
  template <class V>
  [[gnu::always_inline]] WEFT_HD static void add(State<V>& state, V weights) {
    state.rows[1] += weights;
  }
  template <class T>
  WEFT_HD static Final<T> finish(const State<T>& state) {
    T max = state.rows[0], sum = state.rows[1];
    if (sum == 0) return {T(0), kMasked};
    return {T(1) / sum, (static_cast<double>(max) + std::log2(static_cast<double>(sum))) * kLn2};
  }
  template <class T>
  [[gnu::always_inline]] WEFT_HD static T backward_shift(T lse) {  // rows without keys: weight 0
    return lse == T(kMasked) ? -T(kMasked) : lse * T(kLog2e);
  }
  template <class V>
  [[gnu::always_inline]] WEFT_HD static V dscore(V, V weight, V dweight, V delta) {
    return weight * (dweight - delta);
  }

 private:
  // 0 while no key was seen, so that -inf - (-inf) never happens.
  template <class V>
  [[gnu::always_inline]] WEFT_HD static V or_zero(V max) {
    using T = typename core::LaneTraits<V>::Element;
    V none = V{} + T(kMasked), zero = V{};
    return max == none ? zero : max;
  }
};

// out = sum_j sign(s_j) exp(|s_j| - lse) v_j, lse = log sum_j exp(|s_j|) (Lv et al., 2411.07176): softmax's state over |s|.
struct SignedSoftmaxNormaliser : SoftmaxNormaliser {
  template <class V>
  [[gnu::always_inline]] WEFT_HD static V key(V score) {
    using T = typename core::LaneTraits<V>::Element;
    V none = V{} + T(kMasked), size = score < V{} ? -score : score;
    return score == none ? none : size;
  }
  template <class V>
  [[gnu::always_inline]] WEFT_HD static V weight(V score, V shift) {
    V size = core::lane_exp2(key(score) - shift);
    return score < V{} ? -size : size;
  }
  template <class V>
  [[gnu::always_inline]] WEFT_HD static V counted(V weight) {
    return weight < V{} ? -weight : weight;
  }
  template <class V>
  [[gnu::always_inline]] WEFT_HD static V dscore(V, V weight, V dweight, V delta) {
    return counted(weight) * dweight - weight * delta;
  }
};

// out = sum_j s_j v_j: weights are the scores themselves. State: out alone, merged by +.
struct SumNormaliser {
  static constexpr bool kHasStatistic = false;
  static constexpr bool kIsBase2 = false;
  static constexpr double kMasked = 0;
  static constexpr int kStateRows = 0;
  template <class V>
  struct State {};

  template <class T>
  WEFT_HD static State<T> init(T, bool) {
    return {};
  }
  template <class V>
  [[gnu::always_inline]] WEFT_HD static V key(V score) {
    return score;
  }
  template <class V>
  [[gnu::always_inline]] WEFT_HD static V rescale(State<V>&, V) {
    return V{} + 1;
  }
  template <class V>
  [[gnu::always_inline]] WEFT_HD static V shift(const State<V>&) {
    return V{};
  }
  template <class V>
  [[gnu::always_inline]] WEFT_HD static V weight(V score, V) {
    return score;
  }
  template <class V>
  [[gnu::always_inline]] WEFT_HD static V counted(V weight) {
    return weight;
  }
  template <class V>
  [[gnu::always_inline]] WEFT_HD static void add(State<V>&, V) {}
  template <class T>
  WEFT_HD static Final<T> finish(const State<T>&) {
    return {T(1), 0};
  }
  template <class T>
  [[gnu::always_inline]] WEFT_HD static T backward_shift(T) {
    return T(0);
  }
  template <class V>
  [[gnu::always_inline]] WEFT_HD static V dscore(V, V, V dweight, V) {
    return dweight;
  }
};

#ifndef __CUDACC__
namespace core {

// States of many queries as rows of `stride` numbers; the state of query i is column i.
template <class Normaliser, class V, class T>
[[gnu::always_inline]] inline typename Normaliser::template State<V> read_state(const T* rows, int64_t stride,
                                                                                int64_t i) {
  typename Normaliser::template State<V> state;
  if constexpr (Normaliser::kStateRows > 0) {
#pragma GCC unroll 8
    for (int r = 0; r < Normaliser::kStateRows; ++r) __builtin_memcpy(&state.rows[r], rows + r * stride + i, sizeof(V));
  }
  return state;
}
template <class Normaliser, class V, class T>
[[gnu::always_inline]] inline void write_state(const typename Normaliser::template State<V>& state, T* rows,
                                               int64_t stride, int64_t i) {
  if constexpr (Normaliser::kStateRows > 0) {
#pragma GCC unroll 8
    for (int r = 0; r < Normaliser::kStateRows; ++r) __builtin_memcpy(rows + r * stride + i, &state.rows[r], sizeof(V));
  }
}

}  // namespace core
#endif
}  // namespace weft::ops
