// Mixture over depth, compiled once per instruction set; equations in weft/ops/depth.h. Backward, with z_i = direction . v_i:
//   da_i = dout . v_i;  ds_i = a_i (da_i - sum_j a_j da_j) of softmax, da_i a_i (1 - a_i) of sigmoid
//   dv_i = a_i dout + ds_i scale_i direction,  dscale_i = ds_i z_i,  ddirection = sum over rows and i of ds_i scale_i v_i
#include "ops/cpu/depth.h"

#include <cmath>
#include <vector>

#include "ops/cpu/norm_lanes.h"

namespace weft::cpu {

using namespace HWY_NAMESPACE;

namespace {

template <class C>
void softmax(C* s, int64_t n) {
  C top = s[0], sum = 0;
  for (int64_t i = 1; i < n; ++i) top = s[i] > top ? s[i] : top;
  for (int64_t i = 0; i < n; ++i) sum += s[i] = std::exp(s[i] - top);
  for (int64_t i = 0; i < n; ++i) s[i] /= sum;
}

}  // namespace

template <Isa I, class T, class C>
void DepthKernels<I, T, C>::mix(const DepthArgs<T, C>& args, int64_t begin, int64_t end) {
  const int64_t N = args.sources, D = args.width;
  for (int64_t row = begin; row < end; ++row) {
    C* a = args.weights + row * N;
    for (int64_t i = 0; i < N; ++i) {
      const T* v = args.values[i] + row * D;
      C dot = reduce_row<C>(D, Sum<C>{}, [&](Sum<C>& sum, int64_t c, auto count) {
                sum.value = fused(load(v + c, count), load(args.direction + c, count), sum.value);
              }).total();
      a[i] = args.scales ? dot * args.scales[i][row] : dot;
    }
    if (args.is_sigmoid)
      for (int64_t i = 0; i < N; ++i) a[i] = C(1) / (C(1) + std::exp(-a[i]));
    else softmax(a, N);
    T* out = args.out + row * D;
    for_row<C>(D, [&](int64_t c, auto count) {
      Pack<C> sum(C(0));
      for (int64_t i = 0; i < N; ++i) sum = fused(Pack<C>(a[i]), load(args.values[i] + row * D + c, count), sum);
      store(sum, out + c, count);
    });
  }
}

template <Isa I, class T, class C>
void DepthKernels<I, T, C>::mix_backward(const DepthArgs<T, C>& args, int64_t begin, int64_t end, C* ddirection) {
  const int64_t N = args.sources, D = args.width;
  std::vector<C> da(static_cast<size_t>(N)), z(da), pull(da);
  for (int64_t row = begin; row < end; ++row) {
    const C* a = args.weights + row * N;
    const T* dout = args.dout + row * D;
    C total = 0;
    for (int64_t i = 0; i < N; ++i) {
      const T* v = args.values[i] + row * D;
      TwoSums<C> sums = reduce_row<C>(D, TwoSums<C>{}, [&](TwoSums<C>& sum, int64_t c, auto count) {
        Pack<C> x = load(v + c, count);
        sum.a.value = fused(x, load(dout + c, count), sum.a.value);
        sum.b.value = fused(x, load(args.direction + c, count), sum.b.value);
      });
      auto at = static_cast<size_t>(i);
      da[at] = sums.a.total(), z[at] = sums.b.total();
      total += a[i] * da[at];
    }
    for (int64_t i = 0; i < N; ++i) {
      auto at = static_cast<size_t>(i);
      C ds = args.is_sigmoid ? da[at] * a[i] * (C(1) - a[i]) : a[i] * (da[at] - total);
      if (args.dscales) args.dscales[i][row] = ds * z[at];
      pull[at] = args.scales ? ds * args.scales[i][row] : ds;
    }
    for_row<C>(D, [&](int64_t c, auto count) {
      Pack<C> dy = load(dout + c, count), w = load(args.direction + c, count), dw = load(ddirection + c, count);
      for (int64_t i = 0; i < N; ++i) {
        Pack<C> p(pull[static_cast<size_t>(i)]);
        dw = fused(p, load(args.values[i] + row * D + c, count), dw);
        store(fused(Pack<C>(a[i]), dy, p * w), args.dvalues[i] + row * D + c, count);
      }
      store(dw, ddirection + c, count);
    });
  }
}

template struct DepthKernels<kThisIsa, float, float>;
template struct DepthKernels<kThisIsa, BFloat16, float>;
template struct DepthKernels<kThisIsa, double, double>;

}  // namespace weft::cpu
