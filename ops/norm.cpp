// RMSNorm and LayerNorm: checks, then kernels over blocks of rows.
#include "weft/ops/norm.h"

#include "ops/cpu/norm.h"
#include "ops/cuda/norm.h"
#include "ops/norm_input.h"
#include "ops/row_sums.h"
#include "src/core/cuda_build.h"

namespace weft::ops {

namespace {

using cpu::Isa;
using cpu::with_isa;

// weight or bias in the type of the statistics: [D] numbers, so that kernels need not exist for every pair of types.
// Undefined stays undefined.
Tensor checked_vector(const Tensor& vector, std::string_view name, const Tensor& x, std::string_view op) {
  if (!vector.defined()) return {};
  DType statistics = statistics_dtype(x);
  WEFT_CHECK(vector.num_dims() == 1 && vector.size(0) == x.shape().back() && vector.device() == x.device(),
             str(op, ": ", name, " is ", vector, ", x is ", x),
             str(name, " must be [", x.shape().back(), "], the last size of x"));
  WEFT_CHECK(vector.dtype() == statistics || vector.dtype() == x.dtype(),
             str(op, ": ", name, " is ", vector, ", x is ", x),
             str("keep ", name, " in ", statistics, " or in the dtype of x"));
  return contiguous(cast(vector, statistics));
}

template <class C>
const C* data_or_null(const Tensor& t) {
  return t.defined() ? t.data<C>() : nullptr;
}

template <class T, class C>
cpu::NormBackwardArgs<T, C> backward_args(const RowsOf& dy, const RowsOf& x, const Tensor& weight, const Tensor& inv,
                                          Tensor& dx) {
  return {.dy_rows = dy.rows,
          .x_rows = x.rows,
          .dy = dy.tensor.data<T>(),
          .x = x.tensor.data<T>(),
          .weight = data_or_null<C>(weight),
          .inv = inv.data<C>(),
          .dx = dx.mutable_data<T>()};
}

}  // namespace

RmsNorm rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  check_floating_rows(x, "x", "rms_norm");
  WEFT_CHECK(eps >= 0, str("rms_norm: eps is ", eps), "eps must not be negative");
  Tensor w = checked_vector(weight, "weight", x, "rms_norm");
  RowsOf input(x);
  RmsNorm result{Tensor::empty(x.shape(), x.dtype(), x.device()),
                 Tensor::empty(without_last(x.shape()), statistics_dtype(x), x.device())};
  with_floating(x, "rms_norm", [&]<class T, class C>() {
    cpu::NormArgs<T, C> args{.x_rows = input.rows,
                             .x = input.tensor.data<T>(),
                             .weight = data_or_null<C>(w),
                             .eps = eps,
                             .y = result.y.mutable_data<T>(),
                             .inv = result.inv_rms.mutable_data<C>()};
    if constexpr (kCuda) {
      if (x.is_cuda()) return cuda::NormKernels<T, C>::rms_norm(args, x.device());
    }
    for_rows(input.rows,
             [&]<Isa I>(int64_t begin, int64_t end) { cpu::NormKernels<I, T, C>::rms_norm(args, begin, end); });
  });
  return result;
}

RmsNormGrads rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& inv_rms) {
  check_floating_rows(x, "x", "rms_norm_backward");
  check_like(dy, "dy", x, "x", "rms_norm_backward");
  check_statistic(inv_rms, "inv_rms", x, "rms_norm_backward");
  Tensor w = checked_vector(weight, "weight", x, "rms_norm_backward");
  RowsOf input(x), upstream(dy);
  const int64_t rows = input.rows.count, width = input.rows.width;
  RmsNormGrads grads{Tensor::empty(x.shape(), x.dtype(), x.device()), {}};
  if (w.defined()) grads.dweight = Tensor::empty({width}, w.dtype(), x.device());
  with_floating(x, "rms_norm_backward", [&]<class T, class C>() {
    auto args = backward_args<T, C>(upstream, input, w, inv_rms, grads.dx);
    if constexpr (kCuda) {
      if (x.is_cuda()) {
        C* dweight = w.defined() ? grads.dweight.mutable_data<C>() : nullptr;
        return cuda::NormKernels<T, C>::rms_norm_backward(args, dweight, x.device());
      }
    }
    auto kernel = [&](int64_t begin, int64_t end, C* dweight) {
      with_isa([&]<Isa I>() { cpu::NormKernels<I, T, C>::rms_norm_backward(args, begin, end, dweight); });
    };
    if (w.defined()) {
      sum_row_blocks<C>(rows, width, {&grads.dweight}, kernel);
    } else {
      parallel_for(rows, grain_of(width), [&](int64_t begin, int64_t end) { kernel(begin, end, nullptr); });
    }
  });
  return grads;
}

LayerNorm layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  check_floating_rows(x, "x", "layer_norm");
  WEFT_CHECK(eps >= 0, str("layer_norm: eps is ", eps), "eps must not be negative");
  Tensor w = checked_vector(weight, "weight", x, "layer_norm"), b = checked_vector(bias, "bias", x, "layer_norm");
  RowsOf input(x);
  Shape lead = without_last(x.shape());
  DType statistics = statistics_dtype(x);
  LayerNorm result{Tensor::empty(x.shape(), x.dtype(), x.device()), Tensor::empty(lead, statistics, x.device()),
                   Tensor::empty(lead, statistics, x.device())};
  with_floating(x, "layer_norm", [&]<class T, class C>() {
    cpu::NormArgs<T, C> args{.x_rows = input.rows,
                             .x = input.tensor.data<T>(),
                             .weight = data_or_null<C>(w),
                             .bias = data_or_null<C>(b),
                             .eps = eps,
                             .y = result.y.mutable_data<T>(),
                             .mean = result.mean.mutable_data<C>(),
                             .inv = result.inv_std.mutable_data<C>()};
    if constexpr (kCuda) {
      if (x.is_cuda()) return cuda::NormKernels<T, C>::layer_norm(args, x.device());
    }
    for_rows(input.rows,
             [&]<Isa I>(int64_t begin, int64_t end) { cpu::NormKernels<I, T, C>::layer_norm(args, begin, end); });
  });
  return result;
}

LayerNormGrads layer_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& mean,
                                   const Tensor& inv_std) {
  check_floating_rows(x, "x", "layer_norm_backward");
  check_like(dy, "dy", x, "x", "layer_norm_backward");
  check_statistic(mean, "mean", x, "layer_norm_backward");
  check_statistic(inv_std, "inv_std", x, "layer_norm_backward");
  Tensor w = checked_vector(weight, "weight", x, "layer_norm_backward");
  RowsOf input(x), upstream(dy);
  const int64_t rows = input.rows.count, width = input.rows.width;
  LayerNormGrads grads{Tensor::empty(x.shape(), x.dtype(), x.device()), {}, {}};
  grads.dbias = Tensor::empty({width}, inv_std.dtype(), x.device());
  if (w.defined()) grads.dweight = Tensor::empty({width}, w.dtype(), x.device());
  with_floating(x, "layer_norm_backward", [&]<class T, class C>() {
    auto args = backward_args<T, C>(upstream, input, w, inv_std, grads.dx);
    args.mean = mean.data<C>();
    if constexpr (kCuda) {
      if (x.is_cuda()) {
        C* dweight = w.defined() ? grads.dweight.mutable_data<C>() : nullptr;
        return cuda::NormKernels<T, C>::layer_norm_backward(args, dweight, grads.dbias.mutable_data<C>(), x.device());
      }
    }
    auto kernel = [&](int64_t begin, int64_t end, C* dbias, C* dweight) {
      with_isa([&]<Isa I>() { cpu::NormKernels<I, T, C>::layer_norm_backward(args, begin, end, dweight, dbias); });
    };
    if (w.defined()) {
      sum_row_blocks<C>(rows, width, {&grads.dweight, &grads.dbias},
                        [&](int64_t begin, int64_t end, C* sums) { kernel(begin, end, sums + width, sums); });
    } else {
      sum_row_blocks<C>(rows, width, {&grads.dbias},
                        [&](int64_t begin, int64_t end, C* sums) { kernel(begin, end, sums, nullptr); });
    }
  });
  return grads;
}

}  // namespace weft::ops
