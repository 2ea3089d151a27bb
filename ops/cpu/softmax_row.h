// max and sum of exp(x - max) of one row: what softmax, logsumexp and the losses start with. For kernel files only.
#pragma once

#include "ops/cpu/norm_lanes.h"
#include "ops/cpu/pack_math.h"

namespace weft::cpu::HWY_NAMESPACE {

template <class C>
struct ExpSum {
  C top = 0;  // the maximum, or 0 if it is not finite: so a row of -inf has sum 0, and NaN or +inf reach the sum
  C sum = 0;  // of exp(x - top); at least 1 for a row of finite numbers
  HWY_INLINE C log_sum() const { return top + static_cast<C>(::log(static_cast<double>(sum))); }
};

template <class T, class C>
HWY_INLINE C row_top(const T* x, int64_t width) {
  constexpr C infinity = std::numeric_limits<C>::infinity();
  C top = reduce_row<C>(width, Max<C>{}, [&](Max<C>& part, int64_t i, auto count) {
            part.value = max(part.value, keep(load(x + i, count), count, -infinity));
          }).total();
  return top > -infinity && top < infinity ? top : C(0);
}

// Also writes exp(x - top) to `kept`, unless that is null; it may be x.
template <class T, class C>
HWY_INLINE ExpSum<C> exp_sum(const T* x, int64_t width, C* kept = nullptr) {
  ExpSum<C> r;
  r.top = row_top<T, C>(x, width);
  r.sum = reduce_row<C>(width, Sum<C>{}, [&](Sum<C>& part, int64_t i, auto count) {
            Pack<C> e = exp(load(x + i, count) - Pack<C>(r.top));
            if (kept) store(e, kept + i, count);
            part.value += keep(e, count, 0);
          }).total();
  return r;
}

}  // namespace weft::cpu::HWY_NAMESPACE
