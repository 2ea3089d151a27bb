// Score modifiers: what happens to s = scale * q.k before the normaliser, and the derivative of that at s.
//   template <class V, class I> V value(V s, int64_t row, int64_t head, Token<I> query, Token<I> key) const;
//   template <class V, class I> V slope(V s, ...same) const;
// A functor of plain float and Token<int32_t> works too, but slower. If kIsIdentity is true, the core does not call it.
//   auto in_unit(double unit, int64_t head) const;     may be there: a functor for this head that takes unit * s and gives unit * value,
//                                                      with the same slope. The core then spares the change from natural units to log2.
#pragma once

#include "weft/ops/attention.h"
#include "weft/ops/attention/bias.h"
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
  [[gnu::always_inline]] SoftcapScore in_unit(double unit, int64_t) const { return {cap * unit}; }
};

// s - slope * (query position - key position)
struct SlopeScore {
  double per_token;
  template <class V, class I>
  [[gnu::always_inline]] WEFT_HD V value(V s, int64_t, int64_t, Token<I> q, Token<I> k) const {
    using T = typename core::LaneTraits<V>::Element;
    if constexpr (std::is_arithmetic_v<V>) return s - T(per_token) * T(q.position - k.position);
    else return s - T(per_token) * __builtin_convertvector(q.position - k.position, V);
  }
  template <class V, class I>
  [[gnu::always_inline]] WEFT_HD V slope(V, int64_t, int64_t, Token<I>, Token<I>) const {
    return V{} + 1;
  }
};

// s - slope_h * (query position - key position)
struct AlibiScore {
  const float* slopes;  // one per query head
  template <class V, class I>
  [[gnu::always_inline]] WEFT_HD V value(V s, int64_t row, int64_t head, Token<I> q, Token<I> k) const {
    return SlopeScore{slopes[head]}.value(s, row, head, q, k);
  }
  template <class V, class I>
  [[gnu::always_inline]] WEFT_HD V slope(V, int64_t, int64_t, Token<I>, Token<I>) const {
    return V{} + 1;
  }
  [[gnu::always_inline]] SlopeScore in_unit(double unit, int64_t head) const { return {slopes[head] * unit}; }
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
  [[gnu::always_inline]] auto in_unit(double unit, int64_t head) const requires requires {
    first.in_unit(unit, head), second.in_unit(unit, head);
  }
  {
    return ScoreChain<decltype(first.in_unit(unit, head)), decltype(second.in_unit(unit, head))>{
        first.in_unit(unit, head), second.in_unit(unit, head)};
  }
};

namespace core {

// The weight that an activation makes of a score, and its derivative.
template <class V>
[[gnu::always_inline]] WEFT_HD V activated(ScoreActivation activation, V s) {
  using T = typename LaneTraits<V>::Element;
  constexpr T kLog2e = T(1.44269504088896340736);
  V zero{}, e = lane_exp2((s < zero ? s : -s) * kLog2e);  // exp(-|s|)
  switch (activation) {
    case ScoreActivation::sigmoid: return (s < zero ? e : zero + T(1)) / (e + T(1));
    case ScoreActivation::relu: return s > zero ? s : zero;
    case ScoreActivation::elu1: return s > zero ? s + T(1) : e;
    case ScoreActivation::taylor2: return s * (s * T(0.5) + T(1)) + T(1);
    case ScoreActivation::none: break;
  }
  return s;
}
template <class V>
[[gnu::always_inline]] WEFT_HD V activation_slope(ScoreActivation activation, V s) {
  using T = typename LaneTraits<V>::Element;
  constexpr T kLog2e = T(1.44269504088896340736);
  V zero{}, one = zero + T(1), e = lane_exp2((s < zero ? s : -s) * kLog2e);
  switch (activation) {
    case ScoreActivation::sigmoid: return e / ((e + T(1)) * (e + T(1)));
    case ScoreActivation::relu: return s > zero ? one : zero;
    case ScoreActivation::elu1: return s > zero ? one : e;
    case ScoreActivation::taylor2: return s + one;
    case ScoreActivation::none: break;
  }
  return one;
}

}  // namespace core

// Soft cap, ALiBi, shift and activation, each if it is set. One functor chooses at run time: the choice is the same for all pairs and costs
// little, while an instance for every combination would make the program much larger.
template <bool kActivates>
struct ModifiedScore {
  SoftcapScore softcap;  // cap 0: none
  AlibiScore alibi;      // null: none
  double shift = 0;
  ScoreActivation activation = ScoreActivation::none;

  explicit ModifiedScore(const AttentionScore& score)
      : softcap{score.softcap},
        alibi{score.alibi_slopes.defined() ? score.alibi_slopes.data<float>() : nullptr},
        shift(score.shift),
        activation(score.activation) {}

  template <class V, class I>
  [[gnu::always_inline]] WEFT_HD V bare(V s, int64_t row, int64_t head, Token<I> q, Token<I> k) const {
    using T = typename core::LaneTraits<V>::Element;
    if (softcap.cap > 0) s = softcap.value(s, row, head, q, k);
    if (alibi.slopes) s = alibi.value(s, row, head, q, k);
    if constexpr (kActivates) s += T(shift);
    return s;
  }
  template <class V, class I>
  [[gnu::always_inline]] WEFT_HD V value(V s, int64_t row, int64_t head, Token<I> q, Token<I> k) const {
    V x = bare(s, row, head, q, k);
    if constexpr (kActivates) return core::activated(activation, x);
    else return x;
  }
  template <class V, class I>
  [[gnu::always_inline]] WEFT_HD V slope(V s, int64_t row, int64_t head, Token<I> q, Token<I> k) const {
    using T = typename core::LaneTraits<V>::Element;
    V slope = V{} + T(1);
    if (softcap.cap > 0) slope = softcap.slope(s, row, head, q, k);
    if constexpr (kActivates) slope *= core::activation_slope(activation, bare(s, row, head, q, k));
    return slope;
  }
};

// ModifiedScore with the sum of a pair's biases, before the activation.
template <bool kActivates>
struct BiasedScore {
  static constexpr bool kTakesBias = true;
  ModifiedScore<kActivates> modified;

  explicit BiasedScore(const AttentionScore& score) : modified(score) {}

  template <class V, class I>
  [[gnu::always_inline]] WEFT_HD V value(V s, V bias, int64_t row, int64_t head, Token<I> q, Token<I> k) const {
    V x = modified.bare(s, row, head, q, k) + bias;
    if constexpr (kActivates) return core::activated(modified.activation, x);
    else return x;
  }
  template <class V, class I>
  [[gnu::always_inline]] WEFT_HD V bias_slope(V s, V bias, int64_t row, int64_t head, Token<I> q, Token<I> k) const {
    using T = typename core::LaneTraits<V>::Element;
    if constexpr (kActivates)
      return core::activation_slope(modified.activation, V(modified.bare(s, row, head, q, k) + bias));
    else return V{} + T(1);
  }
  template <class V, class I>
  [[gnu::always_inline]] WEFT_HD V slope(V s, int64_t row, int64_t head, Token<I> q, Token<I> k) const {
    using T = typename core::LaneTraits<V>::Element;
    return modified.softcap.cap > 0 ? modified.softcap.slope(s, row, head, q, k) : V{} + T(1);
  }
};

template <class Score>
constexpr bool is_identity_score() {
  if constexpr (requires { Score::kIsIdentity; }) return Score::kIsIdentity;
  else return false;
}

}  // namespace weft::ops
