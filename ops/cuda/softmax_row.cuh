// max and sum of exp(x - max) of one row: what softmax, logsumexp and the losses start with.
#pragma once

#include "ops/cuda/rows.cuh"

namespace weft::cuda {

template <class C>
struct ExpSum {
  C top = 0;  // the largest finite element, or 0 without one: so a row of -inf has sum 0, and NaN or +inf reach the sum
  C sum = 0;  // of exp(x - top); at least 1 for a row of finite numbers
  __device__ __forceinline__ C log_sum() const { return top + static_cast<C>(math::log(static_cast<double>(sum))); }
};

template <class L, class F>
__device__ __forceinline__ ExpSum<typename L::C> exp_sum(const Row<L, F>& x) {
  using C = typename L::C;
  constexpr int W = L::W;
  constexpr C infinity = std::numeric_limits<C>::infinity();
  // A row in registers takes a pass for the maximum and one for the sum. A longer one is read once: the sum is rescaled when
  // the thread's maximum rises. +inf and NaN stay out of the maximum and are added as they are.
  C top = -infinity, sum = 0, not_finite = 0;
  x.each([&](const C(&v)[W], int64_t) {
    C high = top;
#pragma unroll
    for (int k = 0; k < W; ++k) {
      if (v[k] < infinity) high = v[k] > high ? v[k] : high;
      else not_finite += v[k];
    }
    if constexpr (!L::is_held) {
      if (high > top) sum *= math::exp(top - high);
      if (high == -infinity) return;
#pragma unroll
      for (int k = 0; k < W; ++k)
        if (v[k] < infinity) sum += math::exp(v[k] - high);
    }
    top = high;
  });
  C base = team_reduce<L>(top, MaxOf{}, -infinity);
  if (base == -infinity) base = 0;
  if constexpr (L::is_held) {
    x.each([&](const C(&v)[W], int64_t) {
#pragma unroll
      for (int k = 0; k < W; ++k)
        if (v[k] < infinity) sum += math::exp(v[k] - base);
    });
  } else {
    sum *= math::exp(top - base);  // 0 if all that this thread has read is -inf
  }
  return {base, team_sum<L>(sum + not_finite)};
}

}  // namespace weft::cuda
