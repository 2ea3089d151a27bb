// Reduction kernels, compiled once per instruction set.
#include "ops/cpu/reduce.h"

#include "ops/cpu/pack_math.h"
#include "ops/math/elementwise.h"

namespace weft::cpu {

namespace HWY_NAMESPACE {

struct SumOf {
  template <class P>
  static HWY_INLINE P start() {
    return P(0);
  }
  template <class P>
  static HWY_INLINE P join(P a, P b) {
    return a + b;
  }
};
struct MaxOf {
  template <class P>
  static HWY_INLINE P start() {
    return P(-HUGE_VAL);
  }
  template <class P>
  static HWY_INLINE P join(P a, P b) {
    return math::Maximum{}.f(a, b);
  }
};

// One number of the lanes, in the order 0, 1, 2, ...
template <class R, class T>
HWY_INLINE T join_lanes(Pack<T> x) {
  T lanes[Pack<T>::kLanes];
  store(x, static_cast<T*>(lanes));
  T result = lanes[0];
  for (int64_t i = 1; i < Pack<T>::kLanes; ++i) {
    if constexpr (std::is_same_v<R, SumOf>) result += lanes[i];
    else result = result != result || result > lanes[i] ? result : lanes[i];
  }
  return result;
}

// Enough accumulators to hide the latency of additions, and to keep each chain of them short.
template <class P>
inline constexpr int kAccumulators = P::kLanes == 1 ? 16 : 4;

template <class R, class S>
Lane<S> reduce_run(const S* x, int64_t n) {
  using P = Pack<Lane<S>>;
  constexpr int64_t kLanes = P::kLanes, kCount = kAccumulators<P>;
  P a[kCount];
  for (P& each : a) each = R::template start<P>();
  int64_t i = 0;
  for (; i + kCount * kLanes <= n; i += kCount * kLanes)
    for (int64_t k = 0; k < kCount; ++k) a[k] = R::join(a[k], load(x + i + k * kLanes));
  for (int64_t k = 0; i < n; i += kLanes, ++k) {
    S rest = std::is_same_v<R, SumOf> ? S(0) : S(-HUGE_VALF);
    a[k] = R::join(a[k], i + kLanes <= n ? load(x + i) : load_part(x + i, n - i, rest));
  }
  for (int64_t half = kCount / 2; half > 0; half /= 2)
    for (int64_t k = 0; k < half; ++k) a[k] = R::join(a[k], a[k + half]);
  return join_lanes<R>(a[0]);
}

// y[0 .. columns) = reduction over `rows` rows of x, four rows per pass over y.
template <class R, class S>
void reduce_rows_of(const S* x, int64_t stride, int64_t rows, int64_t columns, Lane<S> scale, Lane<S>* y) {
  using P = Pack<Lane<S>>;
  Lane<S> sums[kColumnStrip];
  int64_t whole = columns / P::kLanes * P::kLanes;
  auto four = [&](int64_t c, int64_t r, auto&& get) HWY_ATTR {
    const S* at = x + r * stride + c;
    if (r + 4 <= rows)
      return R::join(R::join(get(at), get(at + stride)), R::join(get(at + 2 * stride), get(at + 3 * stride)));
    P joined = get(at);
    for (++r; r < rows; ++r) joined = R::join(joined, get(at += stride));
    return joined;
  };
  for (int64_t r = 0; r < rows; r += 4) {
    auto whole_pack = [](const S* at) HWY_ATTR { return load(at); };
    for (int64_t c = 0; c < whole; c += P::kLanes) {
      P joined = four(c, r, whole_pack);
      store(r == 0 ? joined : R::join(load(static_cast<const Lane<S>*>(sums + c)), joined), sums + c);
    }
    int64_t left = columns - whole;
    if (left == 0) continue;
    P joined = four(whole, r, [&](const S* at) HWY_ATTR { return load_part(at, left); });
    if (r != 0) joined = R::join(load_part(static_cast<const Lane<S>*>(sums + whole), left), joined);
    store_part(joined, sums + whole, left);
  }
  for (int64_t c = 0; c < whole; c += P::kLanes) store(load(static_cast<const Lane<S>*>(sums + c)) * P(scale), y + c);
  for (int64_t c = whole; c < columns; ++c) y[c] = sums[c] * scale;
}

template <class R, class S>
void rows(const ReduceJob& job, int64_t begin, int64_t end) {
  int64_t num_blocks = (job.n + kRowBlock - 1) / kRowBlock;
  auto* y = static_cast<Lane<S>*>(job.blocks);
  for (int64_t item = begin; item < end; ++item) {
    int64_t first = item % num_blocks * kRowBlock, length = job.n - first < kRowBlock ? job.n - first : kRowBlock;
    const S* x = static_cast<const S*>(job.x) + item / num_blocks * job.stride_outer + first;
    y[item] = reduce_run<R>(x, length) * static_cast<Lane<S>>(job.scale);
  }
}

template <class R, class S>
void columns(const ReduceJob& job, int64_t begin, int64_t end) {
  int64_t num_blocks = (job.n + kColumnBlock - 1) / kColumnBlock,
          num_strips = (job.inner + kColumnStrip - 1) / kColumnStrip;
  for (int64_t item = begin; item < end; ++item) {
    int64_t column = item % num_strips * kColumnStrip, block = item / num_strips;  // block: of all outer ones
    int64_t row = block % num_blocks * kColumnBlock, outer = block / num_blocks;
    int64_t num_rows = job.n - row < kColumnBlock ? job.n - row : kColumnBlock;
    int64_t num_columns = job.inner - column < kColumnStrip ? job.inner - column : kColumnStrip;
    const S* x = static_cast<const S*>(job.x) + outer * job.stride_outer + row * job.stride_n + column;
    reduce_rows_of<R>(x, job.stride_n, num_rows, num_columns, static_cast<Lane<S>>(job.scale),
                      static_cast<Lane<S>*>(job.blocks) + block * job.inner + column);
  }
}

template <class S>
double sum_of_squares(const S* x, int64_t n) {
  using P = Pack<Lane<S>>;
  Pack<double> sums[2] = {0, 0};
  auto add = [&](P values) HWY_ATTR {
    if constexpr (std::is_same_v<Lane<S>, double>) {
      sums[0] = fused(values, values, sums[0]);
    } else {
      Pack<double> halves[kHalves];
      widen(values, halves);
      for (int h = 0; h < kHalves; ++h) sums[h] = fused(halves[h], halves[h], sums[h]);
    }
  };
  int64_t i = 0;
  for (; i + P::kLanes <= n; i += P::kLanes) add(load(x + i));
  if (i < n) add(load_part(x + i, n - i));
  return join_lanes<SumOf>(sums[0] + sums[1]);
}

// x * 0 is NaN for what is not finite, and stays so in a sum.
template <class S>
bool all_finite(const S* x, int64_t n) {
  using P = Pack<Lane<S>>;
  P a = P(0), b = P(0);
  int64_t i = 0;
  for (; i + 2 * P::kLanes <= n; i += 2 * P::kLanes) {
    a = fused(load(x + i), P(0), a);
    b = fused(load(x + i + P::kLanes), P(0), b);
  }
  for (; i < n; i += P::kLanes) {
    int64_t left = n - i < P::kLanes ? n - i : P::kLanes;
    a = fused(load_part(x + i, left), P(0), a);
  }
  return join_lanes<SumOf>(a + b) == 0;
}

}  // namespace HWY_NAMESPACE

namespace simd = HWY_NAMESPACE;

template <Isa I>
void ReduceKernels<I>::rows(const ReduceJob& job, int64_t begin, int64_t end) {
  bool is_sum = job.kind == Reduction::sum;
  if (job.dtype == kF32)
    return (is_sum ? simd::rows<simd::SumOf, float> : simd::rows<simd::MaxOf, float>)(job, begin, end);
  if (job.dtype == kBF16)
    return (is_sum ? simd::rows<simd::SumOf, BFloat16> : simd::rows<simd::MaxOf, BFloat16>)(job, begin, end);
  (is_sum ? simd::rows<simd::SumOf, double> : simd::rows<simd::MaxOf, double>)(job, begin, end);
}

template <Isa I>
void ReduceKernels<I>::columns(const ReduceJob& job, int64_t begin, int64_t end) {
  bool is_sum = job.kind == Reduction::sum;
  if (job.dtype == kF32)
    return (is_sum ? simd::columns<simd::SumOf, float> : simd::columns<simd::MaxOf, float>)(job, begin, end);
  if (job.dtype == kBF16)
    return (is_sum ? simd::columns<simd::SumOf, BFloat16> : simd::columns<simd::MaxOf, BFloat16>)(job, begin, end);
  (is_sum ? simd::columns<simd::SumOf, double> : simd::columns<simd::MaxOf, double>)(job, begin, end);
}

template <Isa I>
double ReduceKernels<I>::sum_of_squares(DType dtype, const void* x, int64_t n) {
  if (dtype == kF32) return simd::sum_of_squares(static_cast<const float*>(x), n);
  if (dtype == kBF16) return simd::sum_of_squares(static_cast<const BFloat16*>(x), n);
  return simd::sum_of_squares(static_cast<const double*>(x), n);
}

template <Isa I>
bool ReduceKernels<I>::all_finite(DType dtype, const void* x, int64_t n) {
  if (dtype == kF32) return simd::all_finite(static_cast<const float*>(x), n);
  if (dtype == kBF16) return simd::all_finite(static_cast<const BFloat16*>(x), n);
  return simd::all_finite(static_cast<const double*>(x), n);
}

template struct ReduceKernels<kThisIsa>;

}  // namespace weft::cpu
