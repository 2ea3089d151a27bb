// Softmax, log_softmax and logsumexp over rows x [D].
//   softmax:   y = exp(x - max) / sum(exp(x - max)); a row of -inf gives zeros. Backward: dx = y (dy - sum(dy y)).
//   log_softmax: y = (x - max) - log(sum(exp(x - max))), -inf for a row of -inf. Backward: dx = dy - exp(y) sum(dy).
//   logsumexp: l = max + log(sum(exp(x - max))); a row of -inf gives -inf.      Backward: dx = dl exp(x - l).
#include "ops/cuda/softmax.h"
#include "ops/cuda/softmax_row.cuh"

namespace weft::cuda {

namespace {

template <class L>
using Args = cpu::SoftmaxArgs<typename L::T, typename L::C>;

template <class L>
__global__ void __launch_bounds__(L::threads) softmax_forward(Args<L> args) {
  using C = typename L::C;
  constexpr int W = L::W;
  const int64_t width = args.x_rows.width;
  for_team_rows<L>(args.x_rows.count, [&](int64_t row, bool is_there) {
    const Row<L> x(args.x + offset_of(args.x_rows, row), is_there ? width : 0);
    const ExpSum<C> r = exp_sum(x);
    const C share = r.sum == 0 ? C(0) : C(1) / r.sum;
    x.each([&](const C(&v)[W], int64_t i) {
      C y[W];
#pragma unroll
      for (int k = 0; k < W; ++k) y[k] = math::exp(v[k] - r.top) * share;
      store_group(args.y + row * width + i, y);
    });
  });
}

template <class L>
__global__ void __launch_bounds__(L::threads) softmax_backward(Args<L> args) {
  using C = typename L::C;
  constexpr int W = L::W;
  const int64_t width = args.x_rows.width;
  for_team_rows<L>(args.x_rows.count, [&](int64_t row, bool is_there) {
    const int64_t here = is_there ? width : 0;
    const Row<L> y(args.x + offset_of(args.x_rows, row), here), dy(args.dy + offset_of(args.dy_rows, row), here);
    C sum = 0;
    y.each_with(dy, [&](const C(&v)[W], const C(&d)[W], int64_t) {
#pragma unroll
      for (int k = 0; k < W; ++k) sum += v[k] * d[k];
    });
    const C mean = team_sum<L>(sum);
    y.each_with(dy, [&](const C(&v)[W], const C(&d)[W], int64_t i) {
      C dx[W];
#pragma unroll
      for (int k = 0; k < W; ++k) dx[k] = v[k] * (d[k] - mean);
      store_group(args.y + row * width + i, dx);
    });
  });
}

template <class L>
__global__ void __launch_bounds__(L::threads) log_softmax_forward(Args<L> args) {
  using C = typename L::C;
  constexpr int W = L::W;
  const int64_t width = args.x_rows.width;
  for_team_rows<L>(args.x_rows.count, [&](int64_t row, bool is_there) {
    const Row<L> x(args.x + offset_of(args.x_rows, row), is_there ? width : 0);
    const ExpSum<C> r = exp_sum(x);
    const C log_sum = r.sum == 0 ? C(0) : static_cast<C>(math::log(static_cast<double>(r.sum)));
    x.each([&](const C(&v)[W], int64_t i) {
      C y[W];
#pragma unroll
      for (int k = 0; k < W; ++k) y[k] = (v[k] - r.top) - log_sum;
      store_group(args.y + row * width + i, y);
    });
  });
}

template <class L>
__global__ void __launch_bounds__(L::threads) log_softmax_backward(Args<L> args) {
  using C = typename L::C;
  constexpr int W = L::W;
  const int64_t width = args.x_rows.width;
  for_team_rows<L>(args.x_rows.count, [&](int64_t row, bool is_there) {
    const int64_t here = is_there ? width : 0;
    const Row<L> y(args.x + offset_of(args.x_rows, row), here), dy(args.dy + offset_of(args.dy_rows, row), here);
    C part = 0;
    dy.each([&](const C(&d)[W], int64_t) {
#pragma unroll
      for (int k = 0; k < W; ++k) part += d[k];
    });
    const C sum = team_sum<L>(part);
    y.each_with(dy, [&](const C(&v)[W], const C(&d)[W], int64_t i) {
      C dx[W];
#pragma unroll
      for (int k = 0; k < W; ++k) dx[k] = d[k] - math::exp(v[k]) * sum;
      store_group(args.y + row * width + i, dx);
    });
  });
}

template <class L>
__global__ void __launch_bounds__(L::threads) logsumexp_forward(Args<L> args) {
  for_team_rows<L>(args.x_rows.count, [&](int64_t row, bool is_there) {
    const Row<L> x(args.x + offset_of(args.x_rows, row), is_there ? args.x_rows.width : 0);
    const auto r = exp_sum(x);
    if (is_there && team_lane<L>() == 0) args.l_out[row] = r.log_sum();
  });
}

template <class L>
__global__ void __launch_bounds__(L::threads) logsumexp_backward(Args<L> args) {
  using C = typename L::C;
  constexpr int W = L::W;
  const int64_t width = args.x_rows.width;
  for_team_rows<L>(args.x_rows.count, [&](int64_t row, bool is_there) {
    if (!is_there) return;
    const Row<L> x(args.x + offset_of(args.x_rows, row), width);
    const bool is_empty = args.l[row] == -std::numeric_limits<C>::infinity();  // exp(-inf - -inf) would be NaN
    const C l = is_empty ? C(0) : args.l[row], dl = is_empty ? C(0) : args.dl[row];
    x.each([&](const C(&v)[W], int64_t i) {
      C dx[W];
#pragma unroll
      for (int k = 0; k < W; ++k) dx[k] = dl * math::exp(v[k] - l);
      store_group(args.y + row * width + i, dx);
    });
  });
}

// Calls f<L>() for the rows of x and, if there are any, of dy.
template <class T, class C, class F>
void with_rows(const cpu::SoftmaxArgs<T, C>& args, F&& f) {
  bool wide = is_wide(args.x, args.x_rows) && (!args.dy || is_wide(args.dy, args.dy_rows)) && are_aligned(args.y);
  with_layout<T>(wide, args.x_rows.width, kMostHeld, f);
}

}  // namespace

template <class T, class C>
void SoftmaxKernels<T, C>::softmax(const cpu::SoftmaxArgs<T, C>& args, Device device) {
  with_rows(args, [&]<class L>() {
    launch_rows<L>("softmax", softmax_forward<L>, args.x_rows.count, args.x_rows.width, device, args);
  });
}
template <class T, class C>
void SoftmaxKernels<T, C>::softmax_backward(const cpu::SoftmaxArgs<T, C>& args, Device device) {
  with_rows(args, [&]<class L>() {
    launch_rows<L>("softmax_backward", cuda::softmax_backward<L>, args.x_rows.count, args.x_rows.width, device, args);
  });
}
template <class T, class C>
void SoftmaxKernels<T, C>::log_softmax(const cpu::SoftmaxArgs<T, C>& args, Device device) {
  with_rows(args, [&]<class L>() {
    launch_rows<L>("log_softmax", log_softmax_forward<L>, args.x_rows.count, args.x_rows.width, device, args);
  });
}
template <class T, class C>
void SoftmaxKernels<T, C>::log_softmax_backward(const cpu::SoftmaxArgs<T, C>& args, Device device) {
  with_rows(args, [&]<class L>() {
    launch_rows<L>("log_softmax_backward", cuda::log_softmax_backward<L>, args.x_rows.count, args.x_rows.width, device,
                   args);
  });
}
template <class T, class C>
void SoftmaxKernels<T, C>::logsumexp(const cpu::SoftmaxArgs<T, C>& args, Device device) {
  with_rows(args, [&]<class L>() {
    launch_rows<L>("logsumexp", logsumexp_forward<L>, args.x_rows.count, args.x_rows.width, device, args);
  });
}
template <class T, class C>
void SoftmaxKernels<T, C>::logsumexp_backward(const cpu::SoftmaxArgs<T, C>& args, Device device) {
  with_rows(args, [&]<class L>() {
    launch_rows<L>("logsumexp_backward", cuda::logsumexp_backward<L>, args.x_rows.count, args.x_rows.width, device,
                   args);
  });
}

template struct SoftmaxKernels<float, float>;
template struct SoftmaxKernels<BFloat16, float>;
template struct SoftmaxKernels<double, double>;

}  // namespace weft::cuda
