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
                                          const Tensor& added, Tensor& dx) {
  return {.dy_rows = dy.rows,
          .x_rows = x.rows,
          .dy = dy.tensor.data<T>(),
          .x = x.tensor.data<T>(),
          .weight = data_or_null<C>(weight),
          .inv = inv.data<C>(),
          .added = data_or_null<T>(added),
          .dx = dx.mutable_data<T>()};
}

// What is added to x before its norm, row-major, and where the sum goes.
struct AddedTerm {
  Tensor term, sum;
  AddedTerm(const Tensor& x, const Tensor& added, std::string_view op)
      : term((check_like(added, "added", x, "x", op), contiguous(added))),
        sum(Tensor::empty(x.shape(), x.dtype(), x.device())) {}
  template <class T, class C>
  void bind(cpu::NormArgs<T, C>& args) {
    args.added = term.data<T>();
    args.sum = sum.mutable_data<T>();
  }
};

// What is added to dx behind the backward of a norm: row-major, or undefined.
Tensor checked_dsum(const Tensor& dsum, const Tensor& x, std::string_view op) {
  if (!dsum.defined()) return {};
  check_like(dsum, "dsum", x, "x", op);
  return contiguous(dsum);
}

RmsNorm rms_norm_of(std::string_view op, const Tensor& x, AddedTerm* added, const Tensor& weight, double eps) {
  WEFT_CHECK(eps >= 0, str(op, ": eps is ", eps), "eps must not be negative");
  Tensor w = checked_vector(weight, "weight", x, op);
  RowsOf input(x);
  RmsNorm result{Tensor::empty(x.shape(), x.dtype(), x.device()),
                 Tensor::empty(without_last(x.shape()), statistics_dtype(x), x.device())};
  with_floating(x, op, [&]<class T, class C>() {
    cpu::NormArgs<T, C> args{.x_rows = input.rows,
                             .x = input.tensor.data<T>(),
                             .weight = data_or_null<C>(w),
                             .eps = eps,
                             .y = result.y.mutable_data<T>(),
                             .inv = result.inv_rms.mutable_data<C>()};
    if (added) added->bind(args);
    if constexpr (kCuda) {
      if (x.is_cuda()) return cuda::NormKernels<T, C>::rms_norm(args, x.device());
    }
    for_rows(input.rows,
             [&]<Isa I>(int64_t begin, int64_t end) { cpu::NormKernels<I, T, C>::rms_norm(args, begin, end); });
  });
  return result;
}

LayerNorm layer_norm_of(std::string_view op, const Tensor& x, AddedTerm* added, const Tensor& weight,
                        const Tensor& bias, double eps) {
  WEFT_CHECK(eps >= 0, str(op, ": eps is ", eps), "eps must not be negative");
  Tensor w = checked_vector(weight, "weight", x, op), b = checked_vector(bias, "bias", x, op);
  RowsOf input(x);
  Shape lead = without_last(x.shape());
  DType statistics = statistics_dtype(x);
  LayerNorm result{Tensor::empty(x.shape(), x.dtype(), x.device()), Tensor::empty(lead, statistics, x.device()),
                   Tensor::empty(lead, statistics, x.device())};
  with_floating(x, op, [&]<class T, class C>() {
    cpu::NormArgs<T, C> args{.x_rows = input.rows,
                             .x = input.tensor.data<T>(),
                             .weight = data_or_null<C>(w),
                             .bias = data_or_null<C>(b),
                             .eps = eps,
                             .y = result.y.mutable_data<T>(),
                             .mean = result.mean.mutable_data<C>(),
                             .inv = result.inv_std.mutable_data<C>()};
    if (added) added->bind(args);
    if constexpr (kCuda) {
      if (x.is_cuda()) return cuda::NormKernels<T, C>::layer_norm(args, x.device());
    }
    for_rows(input.rows,
             [&]<Isa I>(int64_t begin, int64_t end) { cpu::NormKernels<I, T, C>::layer_norm(args, begin, end); });
  });
  return result;
}
}  // namespace

RmsNorm rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  check_floating_rows(x, "x", "rms_norm");
  return rms_norm_of("rms_norm", x, nullptr, weight, eps);
}

AddedRmsNorm add_rms_norm(const Tensor& x, const Tensor& added, const Tensor& weight, double eps) {
  constexpr std::string_view op = "add_rms_norm";
  check_floating_rows(x, "x", op);
  if (x.is_cuda()) {
    check_like(added, "added", x, "x", op);
    Tensor sum = add(x, added);
    return {sum, rms_norm_of(op, sum, nullptr, weight, eps)};
  }
  AddedTerm term(x, added, op);
  RmsNorm norm = rms_norm_of(op, x, &term, weight, eps);
  return {term.sum, norm};
}

RmsNormGrads rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& inv_rms,
                               const Tensor& dsum) {
  check_floating_rows(x, "x", "rms_norm_backward");
  check_like(dy, "dy", x, "x", "rms_norm_backward");
  check_statistic(inv_rms, "inv_rms", x, "rms_norm_backward");
  Tensor w = checked_vector(weight, "weight", x, "rms_norm_backward"),
         more = checked_dsum(dsum, x, "rms_norm_backward");
  RowsOf input(x), upstream(dy);
  const int64_t rows = input.rows.count, width = input.rows.width;
  RmsNormGrads grads{Tensor::empty(x.shape(), x.dtype(), x.device()), {}};
  if (w.defined()) grads.dweight = Tensor::empty({width}, w.dtype(), x.device());
  with_floating(x, "rms_norm_backward", [&]<class T, class C>() {
    auto args = backward_args<T, C>(upstream, input, w, inv_rms, more, grads.dx);
    if constexpr (kCuda) {
      if (x.is_cuda()) {
        C* dweight = w.defined() ? grads.dweight.mutable_data<C>() : nullptr;
        cuda::NormKernels<T, C>::rms_norm_backward(args, dweight, x.device());
        if (more.defined()) add_(grads.dx, more);
        return;
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
  return layer_norm_of("layer_norm", x, nullptr, weight, bias, eps);
}

AddedLayerNorm add_layer_norm(const Tensor& x, const Tensor& added, const Tensor& weight, const Tensor& bias,
                              double eps) {
  constexpr std::string_view op = "add_layer_norm";
  check_floating_rows(x, "x", op);
  if (x.is_cuda()) {
    check_like(added, "added", x, "x", op);
    Tensor sum = add(x, added);
    return {sum, layer_norm_of(op, sum, nullptr, weight, bias, eps)};
  }
  AddedTerm term(x, added, op);
  LayerNorm norm = layer_norm_of(op, x, &term, weight, bias, eps);
  return {term.sum, norm};
}

LayerNormGrads layer_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& mean,
                                   const Tensor& inv_std, const Tensor& dsum) {
  check_floating_rows(x, "x", "layer_norm_backward");
  check_like(dy, "dy", x, "x", "layer_norm_backward");
  check_statistic(mean, "mean", x, "layer_norm_backward");
  check_statistic(inv_std, "inv_std", x, "layer_norm_backward");
  Tensor w = checked_vector(weight, "weight", x, "layer_norm_backward"),
         more = checked_dsum(dsum, x, "layer_norm_backward");
  RowsOf input(x), upstream(dy);
  const int64_t rows = input.rows.count, width = input.rows.width;
  LayerNormGrads grads{Tensor::empty(x.shape(), x.dtype(), x.device()), {}, {}};
  grads.dbias = Tensor::empty({width}, inv_std.dtype(), x.device());
  if (w.defined()) grads.dweight = Tensor::empty({width}, w.dtype(), x.device());
  with_floating(x, "layer_norm_backward", [&]<class T, class C>() {
    auto args = backward_args<T, C>(upstream, input, w, inv_std, more, grads.dx);
    args.mean = mean.data<C>();
    if constexpr (kCuda) {
      if (x.is_cuda()) {
        C* dweight = w.defined() ? grads.dweight.mutable_data<C>() : nullptr;
        cuda::NormKernels<T, C>::layer_norm_backward(args, dweight, grads.dbias.mutable_data<C>(), x.device());
        if (more.defined()) add_(grads.dx, more);
        return;
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
