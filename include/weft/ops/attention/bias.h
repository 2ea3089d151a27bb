// Biases of scores per token: b_q[t, h] + b_k[s, g or h], in float64. They may be huge where their pair sums are not (running sums), and
// float32 would lose the sums of near pairs. So a bias is carried as two numbers of the computing type, x = high + low. The highs of a
// pair are added first, with an error relative to their sum, then the lows.
#pragma once

#include <cstdint>

#include "weft/ops/attention/lanes.h"

namespace weft::ops::core {

template <class V>
struct Bias {
  V high{}, low{};
};

template <class T>
[[gnu::always_inline]] WEFT_HD Bias<T> split_bias(double x) {
  const T high = static_cast<T>(x);
  const double rest = x - static_cast<double>(high);
  return {high, rest * 0 == 0 ? static_cast<T>(rest) : T(0)};  // an infinite bias has no rest
}

template <class V>
[[gnu::always_inline]] WEFT_HD V pair_bias(const Bias<V>& q, const Bias<V>& k) {
  return (q.high + k.high) + (q.low + k.low);
}

// Biases of one side, contiguous [B, n, heads], and where their gradients are added. Each may be absent: zeros, and nowhere.
struct BiasView {
  const double* data = nullptr;
  double* gradient = nullptr;
  int64_t tokens = 0, heads = 1, heads_each = 1;  // heads_each: query heads that share one of these heads

  WEFT_HD int64_t index(int64_t b, int64_t i, int64_t head) const {
    return (b * tokens + i) * heads + head / heads_each;
  }
  WEFT_HD double at(int64_t b, int64_t i, int64_t head) const { return data ? data[index(b, i, head)] : 0; }
};

// Whether a score functor takes biases: value(s, bias, row, head, q, k), bias_slope(same) its derivative by the bias, and slope(s, row,
// head, q, k) that of what the bias is added to.
template <class Score>
constexpr bool takes_bias() {
  if constexpr (requires { Score::kTakesBias; }) return Score::kTakesBias;
  else return false;
}

}  // namespace weft::ops::core
