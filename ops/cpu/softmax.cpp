// Softmax, log_softmax and logsumexp over rows x [D], and over columns.
//   softmax:   y = exp(x - max) / sum(exp(x - max)); a row of -inf gives zeros. Backward: dx = y (dy - sum(dy y)).
//   log_softmax: y = (x - max) - log(sum(exp(x - max))), -inf for a row of -inf. Backward: dx = dy - exp(y) sum(dy).
//   logsumexp: l = max + log(sum(exp(x - max))); a row of -inf gives -inf.      Backward: dx = dl exp(x - l).
#include "ops/cpu/softmax.h"

#include "ops/cpu/softmax_row.h"

namespace weft::cpu {

using namespace HWY_NAMESPACE;

namespace {

// 0 for the sum of a row of -inf, which then stays -inf.
template <class C>
C log_of_sum(C sum) {
  return sum == 0 ? C(0) : static_cast<C>(::log(static_cast<double>(sum)));
}

// Columns [first, first + width) of one outer index, width up to kSoftmaxStrip: three passes over their n rows.
template <class T, class C>
class Strip {
 public:
  Strip(const SoftmaxColumns<T, C>& args, int64_t outer, int64_t first, int64_t width)
      : args_(args), place_(outer * args.n * args.inner + first), width_(width), at_(outer * args.inner + first) {}

  void run(SoftmaxStep step) {
    if (step == SoftmaxStep::logsumexp_backward) return pull_logsumexp();
    if (step == SoftmaxStep::softmax_backward || step == SoftmaxStep::log_softmax_backward)
      return pull(step == SoftmaxStep::log_softmax_backward);
    add_up();
    if (step == SoftmaxStep::logsumexp) {
      for (int64_t c = 0; c < width_; ++c)
        args_.l_out[at_ + c] = top_[c] + static_cast<C>(::log(static_cast<double>(sum_[c])));
      return;
    }
    bool is_log = step == SoftmaxStep::log_softmax;
    for (int64_t c = 0; c < width_; ++c) sum_[c] = is_log ? log_of_sum(sum_[c]) : sum_[c] == 0 ? C(0) : C(1) / sum_[c];
    for_each([&](int64_t at, int64_t c, auto count) {
      Pack<C> x = load(args_.x + at, count) - load(top(c), count), s = load(sum(c), count);
      store(is_log ? x - s : exp(x) * s, args_.y + at, count);
    });
  }

 private:
  const C* top(int64_t c) const { return top_ + c; }
  const C* sum(int64_t c) const { return sum_ + c; }

  // f(place in the tensor, column of the strip, count)
  template <class F>
  HWY_INLINE void for_each(F&& f) {
    for (int64_t i = 0; i < args_.n; ++i)
      for_row<C>(width_, [&](int64_t c, auto count) { f(place_ + i * args_.inner + c, c, count); });
  }

  // top_ as ExpSum::top, sum_ of exp(x - top).
  void add_up() {
    constexpr C infinity = std::numeric_limits<C>::infinity();
    for (int64_t c = 0; c < kSoftmaxStrip; ++c) top_[c] = -infinity, sum_[c] = 0;
    for_each([&](int64_t at, int64_t c, auto count) {
      store(max(load(top(c), count), load(args_.x + at, count)), top_ + c, count);
    });
    for (int64_t c = 0; c < width_; ++c)
      if (!(top_[c] > -infinity && top_[c] < infinity)) top_[c] = 0;
    for_each([&](int64_t at, int64_t c, auto count) {
      store(load(sum(c), count) + exp(load(args_.x + at, count) - load(top(c), count)), sum_ + c, count);
    });
  }

  void pull(bool is_log) {
    for (C& s : sum_) s = 0;
    for_each([&](int64_t at, int64_t c, auto count) {
      Pack<C> dy = load(args_.dy + at, count), s = load(sum(c), count);
      store(is_log ? s + dy : fused(dy, load(args_.x + at, count), s), sum_ + c, count);
    });
    for_each([&](int64_t at, int64_t c, auto count) {
      Pack<C> dy = load(args_.dy + at, count), y = load(args_.x + at, count), s = load(sum(c), count);
      store(is_log ? dy - exp(y) * s : y * (dy - s), args_.y + at, count);
    });
  }

  void pull_logsumexp() {
    for (int64_t c = 0; c < width_; ++c) {
      const bool is_empty = args_.l[at_ + c] == -std::numeric_limits<C>::infinity();  // exp(-inf - -inf) would be NaN
      top_[c] = is_empty ? C(0) : args_.l[at_ + c];
      sum_[c] = is_empty ? C(0) : args_.dl[at_ + c];
    }
    for_each([&](int64_t at, int64_t c, auto count) {
      store(load(sum(c), count) * exp(load(args_.x + at, count) - load(top(c), count)), args_.y + at, count);
    });
  }

  const SoftmaxColumns<T, C>& args_;
  int64_t place_, width_, at_;
  C top_[kSoftmaxStrip], sum_[kSoftmaxStrip];
};

}  // namespace

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
void SoftmaxKernels<I, T, C>::log_softmax(const SoftmaxArgs<T, C>& args, int64_t begin, int64_t end) {
  const int64_t width = args.x_rows.width;
  RowCursor<const T> x_row(args.x, args.x_rows, begin);
  for (int64_t row = begin; row < end; ++row, x_row.next()) {
    const T* x = x_row.get();
    T* y = args.y + row * width;
    const ExpSum<C> r = exp_sum<T, C>(x, width);
    const Pack<C> top(r.top), log_sum(log_of_sum(r.sum));
    for_row<C>(width, [&](int64_t i, auto count) { store((load(x + i, count) - top) - log_sum, y + i, count); });
  }
}

template <Isa I, class T, class C>
void SoftmaxKernels<I, T, C>::log_softmax_backward(const SoftmaxArgs<T, C>& args, int64_t begin, int64_t end) {
  const int64_t width = args.x_rows.width;
  RowCursor<const T> y_row(args.x, args.x_rows, begin), dy_row(args.dy, args.dy_rows, begin);
  for (int64_t row = begin; row < end; ++row, y_row.next(), dy_row.next()) {
    const T *y = y_row.get(), *dy = dy_row.get();
    T* dx = args.y + row * width;
    const Pack<C> sum(reduce_row<C>(width, Sum<C>{}, [&](Sum<C>& part, int64_t i, auto count) {
                        part.value += load(dy + i, count);
                      }).total());
    for_row<C>(width, [&](int64_t i, auto count) {
      store(load(dy + i, count) - exp(load(y + i, count)) * sum, dx + i, count);
    });
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

template <Isa I, class T, class C>
void SoftmaxColumnKernels<I, T, C>::run(SoftmaxStep step, const SoftmaxColumns<T, C>& args, int64_t begin,
                                        int64_t end) {
  const int64_t strips = (args.inner + kSoftmaxStrip - 1) / kSoftmaxStrip;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t first = item % strips * kSoftmaxStrip, left = args.inner - first;
    Strip<T, C>(args, item / strips, first, left < kSoftmaxStrip ? left : kSoftmaxStrip).run(step);
  }
}

template struct SoftmaxColumnKernels<kThisIsa, float, float>;
template struct SoftmaxColumnKernels<kThisIsa, BFloat16, float>;
template struct SoftmaxColumnKernels<kThisIsa, double, double>;
template struct SoftmaxKernels<kThisIsa, float, float>;
template struct SoftmaxKernels<kThisIsa, BFloat16, float>;
template struct SoftmaxKernels<kThisIsa, double, double>;

}  // namespace weft::cpu
