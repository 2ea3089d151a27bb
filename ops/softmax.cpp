// Softmax, log_softmax and logsumexp: checks, then kernels over rows if the dimension is the last one, else over columns.
#include "ops/cpu/softmax.h"

#include <algorithm>

#include "ops/cuda/softmax.h"
#include "ops/norm_input.h"
#include "src/core/cuda_build.h"
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

// The dimension in which x is [outer, n, inner] with inner > 1, or -1 if it is the last one. `x` loses sizes of 1 behind it.
int column_dim(Tensor& x, int64_t dim, std::string_view op) {
  int d = wrap_dim(dim, x.num_dims(), op);
  while (x.num_dims() - 1 > d && x.shape().back() == 1) x = x.squeeze(-1);
  return d == x.num_dims() - 1 ? -1 : d;
}

using cpu::SoftmaxStep;

Shape without(const Shape& shape, int dim) {
  Shape result = shape;
  result.erase(dim);
  return result;
}

// What the kernels over columns take; what is not given stays undefined. All row-major.
struct ColumnTensors {
  Tensor x = {}, dy = {}, dl = {}, l = {}, y = {}, l_out = {};
};
void run_columns(SoftmaxStep step, ColumnTensors t, int dim, std::string_view op) {
  with_floating(t.x, op, [&]<class T, class C>() {
    cpu::SoftmaxColumns<T, C> args{.n = t.x.size(dim),
                                   .x = t.x.data<T>(),
                                   .dy = t.dy.defined() ? t.dy.data<T>() : nullptr,
                                   .dl = t.dl.defined() ? t.dl.data<C>() : nullptr,
                                   .l = t.l.defined() ? t.l.data<C>() : nullptr,
                                   .y = t.y.defined() ? t.y.mutable_data<T>() : nullptr,
                                   .l_out = t.l_out.defined() ? t.l_out.mutable_data<C>() : nullptr};
    for (int d = 0; d < dim; ++d) args.outer *= t.x.size(d);
    for (int d = dim + 1; d < t.x.num_dims(); ++d) args.inner *= t.x.size(d);
    if (args.outer * args.inner == 0) return;
    if constexpr (kCuda) {
      if (t.x.is_cuda()) return cuda::SoftmaxColumnKernels<T, C>::run(step, args, t.x.device());
    }
    const int64_t strips = (args.inner + cpu::kSoftmaxStrip - 1) / cpu::kSoftmaxStrip;
    parallel_for(args.outer * strips, grain_of(args.n * std::min(args.inner, cpu::kSoftmaxStrip)),
                 [&](int64_t begin, int64_t end) {
                   cpu::with_isa([&]<Isa I>() { cpu::SoftmaxColumnKernels<I, T, C>::run(step, args, begin, end); });
                 });
  });
}

Tensor run_forward(const Tensor& given, int64_t dim, SoftmaxStep step, std::string_view op) {
  check_floating_rows(given, "x", op);
  Tensor x = given;
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  if (const int d = column_dim(x, dim, op); d >= 0) {
    run_columns(step, {.x = contiguous(x), .y = y}, d, op);
    return y;
  }
  RowsOf input(x);
  with_args(input, op, [&]<class T, class C>(cpu::SoftmaxArgs<T, C>& args) {
    const bool is_log = step == SoftmaxStep::log_softmax;
    args.y = y.mutable_data<T>();
    if constexpr (kCuda) {
      using Kernels = cuda::SoftmaxKernels<T, C>;
      if (x.is_cuda()) return (is_log ? Kernels::log_softmax : Kernels::softmax)(args, x.device());
    }
    for_rows(input.rows, [&]<Isa I>(int64_t begin, int64_t end) {
      using Kernels = cpu::SoftmaxKernels<I, T, C>;
      (is_log ? Kernels::log_softmax : Kernels::softmax)(args, begin, end);
    });
  });
  return y;
}

Tensor run_backward(const Tensor& given_dy, const Tensor& given_y, int64_t dim, SoftmaxStep step, std::string_view op) {
  check_floating_rows(given_y, "y", op);
  check_like(given_dy, "dy", given_y, "y", op);
  Tensor y = given_y, dy = given_dy;
  Tensor dx = Tensor::empty(y.shape(), y.dtype(), y.device());
  column_dim(dy, dim, op);
  if (const int d = column_dim(y, dim, op); d >= 0) {
    run_columns(step, {.x = contiguous(y), .dy = contiguous(dy), .y = dx}, d, op);
    return dx;
  }
  RowsOf output(y), upstream(dy);
  with_args(output, op, [&]<class T, class C>(cpu::SoftmaxArgs<T, C>& args) {
    const bool is_log = step == SoftmaxStep::log_softmax_backward;
    args.dy_rows = upstream.rows;
    args.dy = upstream.tensor.data<T>();
    args.y = dx.mutable_data<T>();
    if constexpr (kCuda) {
      using Kernels = cuda::SoftmaxKernels<T, C>;
      if (y.is_cuda()) return (is_log ? Kernels::log_softmax_backward : Kernels::softmax_backward)(args, y.device());
    }
    for_rows(output.rows, [&]<Isa I>(int64_t begin, int64_t end) {
      using Kernels = cpu::SoftmaxKernels<I, T, C>;
      (is_log ? Kernels::log_softmax_backward : Kernels::softmax_backward)(args, begin, end);
    });
  });
  return dx;
}

}  // namespace

Tensor softmax(const Tensor& x, int64_t dim) { return run_forward(x, dim, SoftmaxStep::softmax, "softmax"); }
Tensor softmax_backward(const Tensor& dy, const Tensor& y, int64_t dim) {
  return run_backward(dy, y, dim, SoftmaxStep::softmax_backward, "softmax_backward");
}
Tensor log_softmax(const Tensor& x, int64_t dim) {
  return run_forward(x, dim, SoftmaxStep::log_softmax, "log_softmax");
}
Tensor log_softmax_backward(const Tensor& dy, const Tensor& y, int64_t dim) {
  return run_backward(dy, y, dim, SoftmaxStep::log_softmax_backward, "log_softmax_backward");
}

Tensor logsumexp(const Tensor& given, int64_t dim) {
  check_floating_rows(given, "x", "logsumexp");
  Tensor x = given;
  Tensor l =
      Tensor::empty(without(x.shape(), wrap_dim(dim, x.num_dims(), "logsumexp")), statistics_dtype(x), x.device());
  if (const int d = column_dim(x, dim, "logsumexp"); d >= 0) {
    run_columns(SoftmaxStep::logsumexp, {.x = contiguous(x), .l_out = l}, d, "logsumexp");
    return l;
  }
  RowsOf input(x);
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

Tensor logsumexp_backward(const Tensor& dl, const Tensor& given, const Tensor& l, int64_t dim) {
  check_floating_rows(given, "x", "logsumexp_backward");
  Tensor upstream = dl.defined() ? contiguous(dl) : dl, kept = l.defined() ? contiguous(l) : l, x = given;
  for (auto [t, name] : {std::pair(&upstream, "dl"), {&kept, "l"}})
    WEFT_CHECK(t->defined() && t->shape() == without(x.shape(), wrap_dim(dim, x.num_dims(), "logsumexp_backward")) &&
                   t->dtype() == statistics_dtype(x) && t->device() == x.device(),
               str("logsumexp_backward: ", name, " is ", *t, ", x is ", x, ", dim is ", dim),
               str("pass the ", name, " that belongs to the forward of this x"));
  Tensor dx = Tensor::empty(x.shape(), x.dtype(), x.device());
  if (const int d = column_dim(x, dim, "logsumexp_backward"); d >= 0) {
    run_columns(SoftmaxStep::logsumexp_backward, {.x = contiguous(x), .dl = upstream, .l = kept, .y = dx}, d,
                "logsumexp_backward");
    return dx;
  }
  RowsOf input(x);
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
