// Score modifiers: what happens to s = scale * q.k before the normaliser, and the derivative of that at s.
//   template <class V, class I> V value(V s, int64_t row, int64_t head, Token<I> query, Token<I> key) const;
//   template <class V, class I> V slope(V s, ...same) const;
// A functor of plain float and Token<int32_t> works too, slower. kIsIdentity lets the core leave the calls out.
#pragma once

#include "weft/ops/attention/tokens.h"

namespace weft::ops {

struct PlainScore {
  static constexpr bool kIsIdentity = true;
  template <class V, class I>
  [[gnu::always_inline]] WEFT_HD V value(V s, int64_t, int64_t, Token<I>, Token<I>) const {
    return s;
  }
  template <class V, class I>
  [[gnu::always_inline]] WEFT_HD V slope(V, int64_t, int64_t, Token<I>, Token<I>) const {
    return V{} + 1;
  }
};

// cap * tanh(s / cap)
struct SoftcapScore {
  double cap;
  template <class V, class I>
  [[gnu::always_inline]] WEFT_HD V value(V s, int64_t, int64_t, Token<I>, Token<I>) const {
    using T = typename core::LaneTraits<V>::Element;
    return core::lane_tanh(s * T(1 / cap)) * T(cap);
  }
  template <class V, class I>
  [[gnu::always_inline]] WEFT_HD V slope(V s, int64_t, int64_t, Token<I>, Token<I>) const {
    using T = typename core::LaneTraits<V>::Element;
    V y = core::lane_tanh(s * T(1 / cap));
    return T(1) - y * y;
  }
};

// s - slope_h * (query position - key position)
struct AlibiScore {
  const float* slopes;  // one per query head
  template <class V, class I>
  [[gnu::always_inline]] WEFT_HD V value(V s, int64_t, int64_t head, Token<I> q, Token<I> k) const {
    using T = typename core::LaneTraits<V>::Element;
    if constexpr (std::is_arithmetic_v<V>) return s - T(slopes[head]) * T(q.position - k.position);
    else return s - T(slopes[head]) * __builtin_convertvector(q.position - k.position, V);
  }
  template <class V, class I>
  [[gnu::always_inline]] WEFT_HD V slope(V, int64_t, int64_t, Token<I>, Token<I>) const {
    return V{} + 1;
  }
};

// First, then Second on its result.
template <class First, class Second>
struct ScoreChain {
  First first;
  Second second;
  template <class V, class I>
  [[gnu::always_inline]] WEFT_HD V value(V s, int64_t row, int64_t head, Token<I> q, Token<I> k) const {
    return second.value(first.value(s, row, head, q, k), row, head, q, k);
  }
  template <class V, class I>
  [[gnu::always_inline]] WEFT_HD V slope(V s, int64_t row, int64_t head, Token<I> q, Token<I> k) const {
    return first.slope(s, row, head, q, k) * second.slope(first.value(s, row, head, q, k), row, head, q, k);
  }
};

template <class Score>
constexpr bool is_identity_score() {
  if constexpr (requires { Score::kIsIdentity; }) return Score::kIsIdentity;
  else return false;
}

}  // namespace weft::ops
