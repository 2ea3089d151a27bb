// Softmax and logsumexp over the last dimension: checks, then kernels over rows.
#include "ops/cpu/softmax.h"

#include "ops/cuda/softmax.h"
#include "ops/norm_input.h"
#include "weft/core/cuda_build.h"
#include "weft/ops/norm.h"

namespace weft::ops {

namespace {

using cpu::Isa;

// Calls f<T, C>(args) with x's rows in the arguments.
template <class F>
void with_args(const RowsOf& x, std::string_view op, F&& f) {
  with_floating(x.tensor, op, [&]<class T, class C>() {
    cpu::SoftmaxArgs<T, C> args{.x_rows = x.rows, .x = x.tensor.data<T>()};
    f.template operator()<T, C>(args);
  });
}

}  // namespace

Tensor softmax(const Tensor& x) {
  check_floating_rows(x, "x", "softmax");
  RowsOf input(x);
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  with_args(input, "softmax", [&]<class T, class C>(cpu::SoftmaxArgs<T, C>& args) {
    args.y = y.mutable_data<T>();
    if constexpr (kCuda) {
      if (x.is_cuda()) return cuda::SoftmaxKernels<T, C>::softmax(args, x.device());
    }
    for_rows(input.rows,
             [&]<Isa I>(int64_t begin, int64_t end) { cpu::SoftmaxKernels<I, T, C>::softmax(args, begin, end); });
  });
  return y;
}

Tensor softmax_backward(const Tensor& dy, const Tensor& y) {
  check_floating_rows(y, "y", "softmax_backward");
  check_like(dy, "dy", y, "y", "softmax_backward");
  RowsOf output(y), upstream(dy);
  Tensor dx = Tensor::empty(y.shape(), y.dtype(), y.device());
  with_args(output, "softmax_backward", [&]<class T, class C>(cpu::SoftmaxArgs<T, C>& args) {
    args.dy_rows = upstream.rows;
    args.dy = upstream.tensor.data<T>();
    args.y = dx.mutable_data<T>();
    if constexpr (kCuda) {
      if (y.is_cuda()) return cuda::SoftmaxKernels<T, C>::softmax_backward(args, y.device());
    }
    for_rows(output.rows, [&]<Isa I>(int64_t begin, int64_t end) {
      cpu::SoftmaxKernels<I, T, C>::softmax_backward(args, begin, end);
    });
  });
  return dx;
}

Tensor logsumexp(const Tensor& x) {
  check_floating_rows(x, "x", "logsumexp");
  RowsOf input(x);
  Tensor l = Tensor::empty(without_last(x.shape()), statistics_dtype(x), x.device());
  with_args(input, "logsumexp", [&]<class T, class C>(cpu::SoftmaxArgs<T, C>& args) {
    args.l_out = l.mutable_data<C>();
    if constexpr (kCuda) {
      if (x.is_cuda()) return cuda::SoftmaxKernels<T, C>::logsumexp(args, x.device());
    }
    for_rows(input.rows,
             [&]<Isa I>(int64_t begin, int64_t end) { cpu::SoftmaxKernels<I, T, C>::logsumexp(args, begin, end); });
  });
  return l;
}

Tensor logsumexp_backward(const Tensor& dl, const Tensor& x, const Tensor& l) {
  check_floating_rows(x, "x", "logsumexp_backward");
  Tensor upstream = dl.defined() ? contiguous(dl) : dl, kept = l.defined() ? contiguous(l) : l;
  check_statistic(upstream, "dl", x, "logsumexp_backward");
  check_statistic(kept, "l", x, "logsumexp_backward");
  RowsOf input(x);
  Tensor dx = Tensor::empty(x.shape(), x.dtype(), x.device());
  with_args(input, "logsumexp_backward", [&]<class T, class C>(cpu::SoftmaxArgs<T, C>& args) {
    args.dl = upstream.data<C>();
    args.l = kept.data<C>();
    args.y = dx.mutable_data<T>();
    if constexpr (kCuda) {
      if (x.is_cuda()) return cuda::SoftmaxKernels<T, C>::logsumexp_backward(args, x.device());
    }
    for_rows(input.rows, [&]<Isa I>(int64_t begin, int64_t end) {
      cpu::SoftmaxKernels<I, T, C>::logsumexp_backward(args, begin, end);
    });
  });
  return dx;
}

}  // namespace weft::ops
