// Mixture over depth, compiled once per instruction set; equations in weft/ops/depth.h. Backward of a mixture, with da_i = dout . v_i:
//   ds_i = a_i (da_i - sum_j a_j da_j) of softmax, da_i a_i (1 - a_i) of sigmoid
//   ddirection = sum over rows and i of ds_i scale_i v_i
// and of a source, over its readers:
//   dv = sum of a dout + scale sum of ds direction,  dscale = v . sum of ds direction
#include "ops/cpu/depth.h"

#include <algorithm>
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

constexpr int64_t kFew = 4;

// Adds the readings q .. q + K of a row to from_outs, from_scores [D].
template <int64_t K, class T, class C>
HWY_INLINE void add_readings(const DepthSourceArgs<T, C>& args, int64_t row, int64_t q, const C* a, const C* ds,
                             C* from_outs, C* from_scores) {
  for_row<C>(args.width, [&](int64_t c, auto count) {
    Pack<C> outs = load(from_outs + c, count), scores = load(from_scores + c, count);
    for (int64_t k = q; k < q + K; ++k) {
      outs = fused(Pack<C>(a[k]), load(args.douts[k] + row * args.width + c, count), outs);
      scores = fused(Pack<C>(ds[k]), load(args.directions[k] + c, count), scores);
    }
    store(outs, from_outs + c, count);
    store(scores, from_scores + c, count);
  });
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
  std::vector<C> pull(static_cast<size_t>(N));  // ds scale
  for (int64_t row = begin; row < end; ++row)
    for (int64_t q = 0; q < S; ++q) {
      const C* a = args.weights + (row * S + q) * N;
      C* ds = args.dscores + (row * S + q) * N;
      const T* dout = args.douts[q] + row * D;
      C total = 0;
      for (int64_t i = 0; i < N; ++i) {
        const T* v = args.values[i] + row * D;
        ds[i] = reduce_row<C>(D, Sum<C>{}, [&](Sum<C>& sum, int64_t c, auto count) {
                  sum.value = fused(load(v + c, count), load(dout + c, count), sum.value);
                }).total();
        total += a[i] * ds[i];
      }
      if (args.totals) total = args.totals[row * S + q];
      for (int64_t i = 0; i < N; ++i) {
        ds[i] = args.is_sigmoid ? ds[i] * a[i] * (C(1) - a[i]) : a[i] * (ds[i] - total);
        pull[static_cast<size_t>(i)] = args.scales ? ds[i] * args.scales[i][row] : ds[i];
      }
      for_row<C>(D, [&](int64_t c, auto count) {
        C* at = ddirections + q * D + c;
        Pack<C> sum = load(at, count);
        for (int64_t i = 0; i < N; ++i)
          sum = fused(Pack<C>(pull[static_cast<size_t>(i)]), load(args.values[i] + row * D + c, count), sum);
        store(sum, at, count);
      });
    }
}

template <Isa I, class T, class C>
void DepthKernels<I, T, C>::source_backward(const DepthSourceArgs<T, C>& args, int64_t begin, int64_t end) {
  const int64_t R = args.readings, D = args.width;
  std::vector<C> a(static_cast<size_t>(R)), ds(a), from_outs(static_cast<size_t>(D)), from_scores(from_outs);
  for (int64_t row = begin; row < end; ++row) {
    std::fill(from_outs.begin(), from_outs.end(), C(0));
    std::fill(from_scores.begin(), from_scores.end(), C(0));
    for (int64_t q = 0; q < R; ++q) {
      const int64_t at = row * args.strides[q];
      a[static_cast<size_t>(q)] = args.weights[q][at], ds[static_cast<size_t>(q)] = args.dscores[q][at];
    }
    // A few readings at a time: processors fetch few streams ahead.
    int64_t q = 0;
    for (; q + kFew <= R; q += kFew)
      add_readings<kFew>(args, row, q, a.data(), ds.data(), from_outs.data(), from_scores.data());
    for (; q < R; ++q) add_readings<1>(args, row, q, a.data(), ds.data(), from_outs.data(), from_scores.data());

    const C scale = args.scale ? args.scale[row] : C(1);
    const C *outs = from_outs.data(), *scores = from_scores.data();
    Sum<C> with_directions;
    for_row<C>(D, [&](int64_t c, auto count) {
      Pack<C> s = load(scores + c, count);
      with_directions.value = fused(s, load(args.value + row * D + c, count), with_directions.value);
      store(fused(Pack<C>(scale), s, load(outs + c, count)), args.dvalue + row * D + c, count);
    });
    if (args.dscale) args.dscale[row] = with_directions.total();
  }
}

template struct DepthKernels<kThisIsa, float, float>;
template struct DepthKernels<kThisIsa, BFloat16, float>;
template struct DepthKernels<kThisIsa, double, double>;

}  // namespace weft::cpu
