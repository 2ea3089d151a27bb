// RMSNorm and LayerNorm over rows x [D], compiled once per instruction set.
//   RMSNorm:   y = x r w,            r = 1 / sqrt(mean(x^2) + eps)
//   LayerNorm: y = (x - m) r w + b,  m = mean(x), r = 1 / sqrt(mean((x - m)^2) + eps)
// Backward, with h = x r or (x - m) r and g = dy w:
//   RMSNorm:   dx = r (g - h mean(g h)),            dw = sum over rows of dy h
//   LayerNorm: dx = r (g - mean(g) - h mean(g h)),  dw as above, db = sum over rows of dy
// What is added (a second term of x, or of dx) is a loop of its own over a row that is in the cache: memory is passed over once, and no bit
// differs from add() before the norm or behind its backward.
#include "ops/cpu/norm.h"

#include <cmath>

#include "ops/cpu/norm_lanes.h"

namespace weft::cpu {

using namespace HWY_NAMESPACE;

namespace {

template <class C>
C inverse_root(C mean_square, double eps) {
  return static_cast<C>(1) / std::sqrt(mean_square + static_cast<C>(eps));
}

// weight[i], or 1.
template <class C, class N>
HWY_INLINE Pack<C> weight_at(const C* weight, int64_t i, N count) {
  return weight ? load(weight + i, count) : Pack<C>(1);
}

template <class C, class T>
HWY_INLINE void add_rows(const T* a, const T* b, T* sum, int64_t width) {
  for_row<C>(width, [&](int64_t i, auto count) { store(load(a + i, count) + load(b + i, count), sum + i, count); });
}

// The row that is normed: x, or x + added.
template <class T, class C>
HWY_INLINE const T* normed_row(const NormArgs<T, C>& args, const T* x, int64_t row) {
  if (!args.added) return x;
  const int64_t width = args.x_rows.width;
  T* sum = args.sum + row * width;
  add_rows<C>(x, args.added + row * width, sum, width);
  return sum;
}

}  // namespace

template <Isa I, class T, class C>
void NormKernels<I, T, C>::rms_norm(const NormArgs<T, C>& args, int64_t begin, int64_t end) {
  const int64_t width = args.x_rows.width;
  const C per_element = static_cast<C>(1) / static_cast<C>(width > 0 ? width : 1);
  RowCursor<const T> x_row(args.x, args.x_rows, begin);
  for (int64_t row = begin; row < end; ++row, x_row.next()) {
    const T* x = normed_row(args, x_row.get(), row);
    T* y = args.y + row * width;
    C squares = reduce_row<C>(width, Sum<C>{}, [&](Sum<C>& sum, int64_t i, auto count) {
                  Pack<C> v = load(x + i, count);
                  sum.value = fused(v, v, sum.value);
                }).total();
    const C inv = inverse_root(squares * per_element, args.eps);
    args.inv[row] = inv;
    for_row<C>(width, [&](int64_t i, auto count) {
      store(load(x + i, count) * Pack<C>(inv) * weight_at(args.weight, i, count), y + i, count);
    });
  }
}

template <Isa I, class T, class C>
void NormKernels<I, T, C>::rms_norm_backward(const NormBackwardArgs<T, C>& args, int64_t begin, int64_t end,
                                             C* dweight) {
  const int64_t width = args.x_rows.width;
  const C per_element = static_cast<C>(1) / static_cast<C>(width > 0 ? width : 1);
  RowCursor<const T> x_row(args.x, args.x_rows, begin), dy_row(args.dy, args.dy_rows, begin);
  for (int64_t row = begin; row < end; ++row, x_row.next(), dy_row.next()) {
    const T *x = x_row.get(), *dy = dy_row.get();
    T* dx = args.dx + row * width;
    const C inv = args.inv[row];
    C gh = reduce_row<C>(width, Sum<C>{}, [&](Sum<C>& sum, int64_t i, auto count) {
             Pack<C> h = load(x + i, count) * Pack<C>(inv), d = load(dy + i, count);
             if (dweight) store(fused(d, h, load(dweight + i, count)), dweight + i, count);
             sum.value += d * weight_at(args.weight, i, count) * h;
           }).total();
    const C pull = gh * per_element;
    for_row<C>(width, [&](int64_t i, auto count) {
      Pack<C> h = load(x + i, count) * Pack<C>(inv), g = load(dy + i, count) * weight_at(args.weight, i, count);
      store((g - h * Pack<C>(pull)) * Pack<C>(inv), dx + i, count);
    });
    if (args.added) add_rows<C>(dx, args.added + row * width, dx, width);
  }
}

template <Isa I, class T, class C>
void NormKernels<I, T, C>::layer_norm(const NormArgs<T, C>& args, int64_t begin, int64_t end) {
  const int64_t width = args.x_rows.width;
  const C per_element = static_cast<C>(1) / static_cast<C>(width > 0 ? width : 1);
  RowCursor<const T> x_row(args.x, args.x_rows, begin);
  for (int64_t row = begin; row < end; ++row, x_row.next()) {
    const T* x = normed_row(args, x_row.get(), row);
    T* y = args.y + row * width;
    C sum_x = reduce_row<C>(width, Sum<C>{}, [&](Sum<C>& sum, int64_t i, auto count) {
                sum.value += load(x + i, count);
              }).total();
    const C mean = sum_x * per_element;
    // The row is in the cache by now: a second pass costs little and loses nothing to cancellation.
    C squares = reduce_row<C>(width, Sum<C>{}, [&](Sum<C>& sum, int64_t i, auto count) {
                  Pack<C> v = keep(load(x + i, count), count, mean) - Pack<C>(mean);
                  sum.value = fused(v, v, sum.value);
                }).total();
    const C inv = inverse_root(squares * per_element, args.eps);
    args.mean[row] = mean;
    args.inv[row] = inv;
    for_row<C>(width, [&](int64_t i, auto count) {
      Pack<C> v = (load(x + i, count) - Pack<C>(mean)) * Pack<C>(inv) * weight_at(args.weight, i, count);
      store(args.bias ? v + load(args.bias + i, count) : v, y + i, count);
    });
  }
}

template <Isa I, class T, class C>
void NormKernels<I, T, C>::layer_norm_backward(const NormBackwardArgs<T, C>& args, int64_t begin, int64_t end,
                                               C* dweight, C* dbias) {
  const int64_t width = args.x_rows.width;
  const C per_element = static_cast<C>(1) / static_cast<C>(width > 0 ? width : 1);
  RowCursor<const T> x_row(args.x, args.x_rows, begin), dy_row(args.dy, args.dy_rows, begin);
  for (int64_t row = begin; row < end; ++row, x_row.next(), dy_row.next()) {
    const T *x = x_row.get(), *dy = dy_row.get();
    T* dx = args.dx + row * width;
    const C mean = args.mean[row], inv = args.inv[row];
    TwoSums<C> sums = reduce_row<C>(width, TwoSums<C>{}, [&](TwoSums<C>& sum, int64_t i, auto count) {
      Pack<C> h = (load(x + i, count) - Pack<C>(mean)) * Pack<C>(inv), d = load(dy + i, count);
      if (dweight) store(fused(d, h, load(dweight + i, count)), dweight + i, count);
      if (dbias) store(load(dbias + i, count) + d, dbias + i, count);
      Pack<C> g = d * weight_at(args.weight, i, count);  // 0 beyond the row
      sum.a.value += g;
      sum.b.value = fused(g, h, sum.b.value);
    });
    const C shift = sums.a.total() * per_element, pull = sums.b.total() * per_element;
    for_row<C>(width, [&](int64_t i, auto count) {
      Pack<C> h = (load(x + i, count) - Pack<C>(mean)) * Pack<C>(inv),
              g = load(dy + i, count) * weight_at(args.weight, i, count);
      store((g - Pack<C>(shift) - h * Pack<C>(pull)) * Pack<C>(inv), dx + i, count);
    });
    if (args.added) add_rows<C>(dx, args.added + row * width, dx, width);
  }
}

template struct NormKernels<kThisIsa, float, float>;
template struct NormKernels<kThisIsa, BFloat16, float>;
template struct NormKernels<kThisIsa, double, double>;

}  // namespace weft::cpu
