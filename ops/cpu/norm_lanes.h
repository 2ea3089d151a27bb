// Loops over a row of numbers in packs of lanes, with a tail, and reductions of a row.
//   for_row<float>(n, [&](int64_t i, auto count) { store(load(x + i, count) * scale, y + i, count); });
// For kernel files of weft_kernels() only.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "ops/cpu/pack.h"

namespace weft::cpu::HWY_NAMESPACE {

template <class C>
using Whole = std::integral_constant<int64_t, Pack<C>::kLanes>;  // the count of a full pack

// `count` is Whole<C>, or a number below Pack<C>::kLanes: then the other lanes are zero, or not stored.
template <class S, class N>
HWY_INLINE Pack<Lane<S>> load(const S* at, N count) {
  if constexpr (std::is_same_v<N, Whole<Lane<S>>>) return load(at);
  else return load_part(at, count);
}
template <class S, class N>
HWY_INLINE void store(Pack<Lane<S>> x, S* at, N count) {
  if constexpr (std::is_same_v<N, Whole<Lane<S>>>) store(x, at);
  else store_part(x, at, count);
}
// The lanes from `count` on become `rest`.
template <class C, class N>
HWY_INLINE Pack<C> keep(Pack<C> x, N count, std::type_identity_t<C> rest) {
  if constexpr (!std::is_same_v<N, Whole<C>>) {
    typename Pack<C>::Tag d;
    x = Pack<C>(hn::IfThenElse(hn::FirstN(d, static_cast<size_t>(count)), x.v, hn::Set(d, rest)));
  }
  return x;
}
template <class C>
HWY_INLINE Pack<C> max(Pack<C> a, Pack<C> b) {
  return Pack<C>(hn::Max(a.v, b.v));
}

// Calls f(i, count) over [0, n).
template <class C, class F>
HWY_INLINE void for_row(int64_t n, F&& f) {
  int64_t i = 0;
  for (; i + Pack<C>::kLanes <= n; i += Pack<C>::kLanes) f(i, Whole<C>{});
  if (i < n) f(i, n - i);
}

// Calls f(part, i, count) over [0, n); `part` is one of four independent copies of `start`, so that one addition need
// not wait for the one before. Returns them merged.
template <class C, class Part, class F>
HWY_INLINE Part reduce_row(int64_t n, const Part& start, F&& f) {
  Part p0 = start, p1 = start, p2 = start, p3 = start;
  constexpr int64_t L = Pack<C>::kLanes;
  int64_t i = 0;
  for (; i + 4 * L <= n; i += 4 * L) {
    f(p0, i, Whole<C>{});
    f(p1, i + L, Whole<C>{});
    f(p2, i + 2 * L, Whole<C>{});
    f(p3, i + 3 * L, Whole<C>{});
  }
  for (; i + L <= n; i += L) f(p0, i, Whole<C>{});
  if (i < n) f(p1, i, n - i);
  p0.merge(p1);
  p2.merge(p3);
  p0.merge(p2);
  return p0;
}

template <class C>
struct Sum {
  Pack<C> value = C(0);
  HWY_INLINE void merge(const Sum& other) { value += other.value; }
  HWY_INLINE C total() const { return hn::GetLane(hn::SumOfLanes(typename Pack<C>::Tag(), value.v)); }
};
template <class C>
struct TwoSums {
  Sum<C> a, b;
  HWY_INLINE void merge(const TwoSums& other) { a.merge(other.a), b.merge(other.b); }
};
template <class C>
struct Max {
  Pack<C> value = -std::numeric_limits<C>::infinity();
  HWY_INLINE void merge(const Max& other) { value = max(value, other.value); }
  HWY_INLINE C total() const { return hn::GetLane(hn::MaxOfLanes(typename Pack<C>::Tag(), value.v)); }
};

}  // namespace weft::cpu::HWY_NAMESPACE
