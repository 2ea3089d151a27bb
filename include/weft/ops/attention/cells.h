// Functors of masks and scores where a pass evaluates them: a cell of scores is one panel of lanes by one group of rows.
#pragma once

#include <type_traits>

#include "weft/ops/attention/score.h"

namespace weft::ops::core {
namespace {

inline constexpr double kLog2e = 1.44269504088896340736;

template <class Score>
constexpr bool has_units() {
  return requires(const Score& score) { score.in_unit(1.0, int64_t{0}); };
}

// The unit in which scores leave their product: that of log2 if the normaliser wants it, unless a modifier needs natural ones first.
template <class Score, class Normaliser>
constexpr double score_unit() {
  return Normaliser::kIsBase2 && (is_identity_score<Score>() || has_units<Score>()) ? kLog2e : 1.0;
}

// Says that a product has terms. The loop over the terms of a sum that may have none keeps a second set of sums, for which there are no
// registers.
[[gnu::always_inline]] inline void expect_depth(int64_t depth) {
  if (depth < 1) __builtin_unreachable();
}

// A functor that is a few plain numbers is copied for a loop: the loop's stores then change nothing that it reads.
template <class F>
using Held = std::conditional_t<std::is_trivially_copyable_v<F> && sizeof(F) <= 64, const F, const F&>;

// The modifier of one head, for scores in score_unit().
template <class Normaliser, class Score>
[[gnu::always_inline]] inline decltype(auto) score_of_head(const Score& score, [[maybe_unused]] int64_t head) {
  if constexpr (has_units<Score>() && Normaliser::kIsBase2) return score.in_unit(kLog2e, head);
  else return static_cast<Held<Score>>(score);
}

// The modified score in the normaliser's unit, from one of score_of_head().
template <class Score, class Normaliser, class T, class Modifier>
[[gnu::always_inline]] inline Lanes<T> modified(const Modifier& modifier, Lanes<T> s, Lanes<T> bias, int64_t row,
                                                int64_t head, Token<LaneInts<T>> q, Token<LaneInts<T>> k) {
  if constexpr (is_identity_score<Score>()) return s;
  if constexpr (takes_bias<Score>()) s = modifier.value(s, bias, row, head, q, k);
  else s = score_value<T>(modifier, s, row, head, q, k);
  return Normaliser::kIsBase2 && score_unit<Score, Normaliser>() == 1.0 ? s * T(kLog2e) : s;
}

}  // namespace
}  // namespace weft::ops::core
