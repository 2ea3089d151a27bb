// Softmax and logsumexp over rows x [D].
//   softmax:   y = exp(x - max) / sum(exp(x - max)); a row of -inf gives zeros. Backward: dx = y (dy - sum(dy y)).
//   logsumexp: l = max + log(sum(exp(x - max))); a row of -inf gives -inf.      Backward: dx = dl exp(x - l).
#include "ops/cpu/softmax.h"

#include "ops/cpu/softmax_row.h"

namespace weft::cpu {

using namespace HWY_NAMESPACE;

template <Isa I, class T, class C>
void SoftmaxKernels<I, T, C>::softmax(const SoftmaxArgs<T, C>& args, int64_t begin, int64_t end) {
  const int64_t width = args.x_rows.width;
  RowCursor<const T> x_row(args.x, args.x_rows, begin);
  for (int64_t row = begin; row < end; ++row, x_row.next()) {
    const T* x = x_row.get();
    T* y = args.y + row * width;
    constexpr bool keeps =
        std::is_same_v<T, C>;  // bf16 has no place for exp in f32: it is computed twice, and rounded once
    C* kept = nullptr;
    if constexpr (keeps) kept = y;
    const ExpSum<C> r = exp_sum<T, C>(x, width, kept);
    const Pack<C> top(r.top), share(r.sum == 0 ? C(0) : C(1) / r.sum);
    for_row<C>(width, [&](int64_t i, auto count) {
      if constexpr (keeps) store(load(static_cast<const T*>(y) + i, count) * share, y + i, count);
      else store(exp(load(x + i, count) - top) * share, y + i, count);
    });
  }
}

template <Isa I, class T, class C>
void SoftmaxKernels<I, T, C>::softmax_backward(const SoftmaxArgs<T, C>& args, int64_t begin, int64_t end) {
  const int64_t width = args.x_rows.width;
  RowCursor<const T> y_row(args.x, args.x_rows, begin), dy_row(args.dy, args.dy_rows, begin);
  for (int64_t row = begin; row < end; ++row, y_row.next(), dy_row.next()) {
    const T *y = y_row.get(), *dy = dy_row.get();
    T* dx = args.y + row * width;
    const Pack<C> mean(reduce_row<C>(width, Sum<C>{}, [&](Sum<C>& part, int64_t i, auto count) {
                         part.value = fused(load(dy + i, count), load(y + i, count), part.value);
                       }).total());
    for_row<C>(width,
               [&](int64_t i, auto count) { store(load(y + i, count) * (load(dy + i, count) - mean), dx + i, count); });
  }
}

template <Isa I, class T, class C>
void SoftmaxKernels<I, T, C>::logsumexp(const SoftmaxArgs<T, C>& args, int64_t begin, int64_t end) {
  RowCursor<const T> x_row(args.x, args.x_rows, begin);
  for (int64_t row = begin; row < end; ++row, x_row.next())
    args.l_out[row] = exp_sum<T, C>(x_row.get(), args.x_rows.width).log_sum();
}

template <Isa I, class T, class C>
void SoftmaxKernels<I, T, C>::logsumexp_backward(const SoftmaxArgs<T, C>& args, int64_t begin, int64_t end) {
  const int64_t width = args.x_rows.width;
  RowCursor<const T> x_row(args.x, args.x_rows, begin);
  for (int64_t row = begin; row < end; ++row, x_row.next()) {
    const T* x = x_row.get();
    T* dx = args.y + row * width;
    const bool is_empty = args.l[row] == -std::numeric_limits<C>::infinity();  // exp(-inf - -inf) would be NaN
    const Pack<C> l(is_empty ? C(0) : args.l[row]), dl(is_empty ? C(0) : args.dl[row]);
    for_row<C>(width, [&](int64_t i, auto count) { store(dl * exp(load(x + i, count) - l), dx + i, count); });
  }
}

template struct SoftmaxKernels<kThisIsa, float, float>;
template struct SoftmaxKernels<kThisIsa, BFloat16, float>;
template struct SoftmaxKernels<kThisIsa, double, double>;

}  // namespace weft::cpu
