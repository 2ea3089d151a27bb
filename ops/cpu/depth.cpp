// Mixture over depth, compiled once per instruction set; equations in weft/ops/depth.h. Backward, with z_i = direction . v_i:
//   da_i = dout . v_i;  ds_i = a_i (da_i - sum_j a_j da_j) of softmax, da_i a_i (1 - a_i) of sigmoid
//   dv_i = a_i dout + ds_i scale_i direction,  dscale_i = ds_i z_i,  ddirection = sum over rows and i of ds_i scale_i v_i
// and with several queries, sums of that over them.
#include "ops/cpu/depth.h"

#include <cmath>
#include <vector>

#include "ops/cpu/norm_lanes.h"

namespace weft::cpu {

using namespace HWY_NAMESPACE;

namespace {

// Returns the log of the sum of exponentials.
template <class C>
C softmax(C* s, int64_t n) {
  C top = s[0], sum = 0;
  for (int64_t i = 1; i < n; ++i) top = s[i] > top ? s[i] : top;
  for (int64_t i = 0; i < n; ++i) sum += s[i] = std::exp(s[i] - top);
  for (int64_t i = 0; i < n; ++i) s[i] /= sum;
  return top + std::log(sum);
}

}  // namespace

template <Isa I, class T, class C>
void DepthKernels<I, T, C>::mix(const DepthArgs<T, C>& args, int64_t begin, int64_t end) {
  const int64_t N = args.sources, D = args.width, S = args.queries;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t q = 0; q < S; ++q) {
      C* a = args.weights + (row * S + q) * N;
      const C* direction = args.directions + q * D;
      for (int64_t i = 0; i < N; ++i) {
        if (i == 0 && args.first_scores) {
          a[0] = args.first_scores[row * S + q];
          continue;
        }
        const T* v = args.values[i] + row * D;
        C dot = reduce_row<C>(D, Sum<C>{}, [&](Sum<C>& sum, int64_t c, auto count) {
                  sum.value = fused(load(v + c, count), load(direction + c, count), sum.value);
                }).total();
        a[i] = args.scales ? dot * args.scales[i][row] : dot;
      }
      if (args.is_sigmoid) {
        for (int64_t i = 0; i < N; ++i) a[i] = C(1) / (C(1) + std::exp(-a[i]));
      } else {
        C lse = softmax(a, N);
        if (args.lse) args.lse[row * S + q] = lse;
      }
      T* out = args.outs[q] + row * D;
      for_row<C>(D, [&](int64_t c, auto count) {
        Pack<C> sum(C(0));
        for (int64_t i = 0; i < N; ++i) sum = fused(Pack<C>(a[i]), load(args.values[i] + row * D + c, count), sum);
        store(sum, out + c, count);
      });
    }
  }
}

template <Isa I, class T, class C>
void DepthKernels<I, T, C>::mix_backward(const DepthArgs<T, C>& args, int64_t begin, int64_t end, C* ddirections) {
  const int64_t N = args.sources, D = args.width, S = args.queries;
  std::vector<C> da(static_cast<size_t>(N)), z(da), pull(static_cast<size_t>(S * N));
  for (int64_t row = begin; row < end; ++row) {
    const C* weights = args.weights + row * S * N;
    for (int64_t i = 0; args.dscales && i < N; ++i) args.dscales[i][row] = C(0);
    for (int64_t q = 0; q < S; ++q) {
      const C *a = weights + q * N, *direction = args.directions + q * D;
      const T* dout = args.douts[q] + row * D;
      C total = 0;
      for (int64_t i = 0; i < N; ++i) {
        const T* v = args.values[i] + row * D;
        TwoSums<C> sums = reduce_row<C>(D, TwoSums<C>{}, [&](TwoSums<C>& sum, int64_t c, auto count) {
          Pack<C> x = load(v + c, count);
          sum.a.value = fused(x, load(dout + c, count), sum.a.value);
          sum.b.value = fused(x, load(direction + c, count), sum.b.value);
        });
        auto at = static_cast<size_t>(i);
        da[at] = sums.a.total(), z[at] = sums.b.total();
        total += a[i] * da[at];
      }
      if (args.totals) total = args.totals[row * S + q];
      for (int64_t i = 0; i < N; ++i) {
        auto at = static_cast<size_t>(i);
        C ds = args.is_sigmoid ? da[at] * a[i] * (C(1) - a[i]) : a[i] * (da[at] - total);
        if (args.dscales) args.dscales[i][row] += ds * z[at];
        pull[static_cast<size_t>(q * N + i)] = args.scales ? ds * args.scales[i][row] : ds;
      }
    }
    for_row<C>(D, [&](int64_t c, auto count) {
      for (int64_t i = 0; i < N; ++i) {
        Pack<C> v = load(args.values[i] + row * D + c, count), dv(C(0));
        for (int64_t q = 0; q < S; ++q) {
          Pack<C> p(pull[static_cast<size_t>(q * N + i)]);
          dv = fused(Pack<C>(weights[q * N + i]), load(args.douts[q] + row * D + c, count), dv);
          dv = fused(p, load(args.directions + q * D + c, count), dv);
          C* dw = ddirections + q * D + c;
          store(fused(p, v, load(dw, count)), dw, count);
        }
        store(dv, args.dvalues[i] + row * D + c, count);
      }
    });
  }
}

template struct DepthKernels<kThisIsa, float, float>;
template struct DepthKernels<kThisIsa, BFloat16, float>;
template struct DepthKernels<kThisIsa, double, double>;

}  // namespace weft::cpu
