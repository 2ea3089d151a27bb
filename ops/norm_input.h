// What the ops over the last dimension (norms, softmax, losses) share: checks of their inputs, and tensors as rows.
#pragma once

#include <string_view>
#include <type_traits>

#include "ops/cpu/isa.h"
#include "ops/cpu/norm_rows.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"
#include "weft/core/tensor.h"
#include "weft/ops/elementwise.h"

namespace weft::ops {

// A tensor whose rows kernels can walk over: the tensor itself, or a row-major copy where its strides do not allow
// that.
struct RowsOf {
  Tensor tensor;
  cpu::Rows rows;
  explicit RowsOf(const Tensor& x) : tensor(x) {
    if (cpu::make_rows(tensor, rows)) return;
    tensor = contiguous(x);
    cpu::make_rows(tensor, rows);
  }
};

inline DType statistics_dtype(const Tensor& x) { return x.dtype() == kF64 ? kF64 : kF32; }

inline Shape without_last(const Shape& shape) {
  Shape result = shape;
  result.erase(shape.num_dims() - 1);
  return result;
}

// Rows for one thread to be worth its start: about 16 Ki elements.
inline int64_t grain_of(int64_t width) { return 1 + 16384 / (width > 0 ? width : 1); }

// Calls f<T, C>() with the type of x and the type that it is computed in.
template <class F>
void with_floating(const Tensor& x, std::string_view op, F&& f) {
  with_type<float, BFloat16, double>(x.dtype(), op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    f.template operator()<T, std::conditional_t<std::is_same_v<T, double>, double, float>>();
  });
}

// Calls f<isa>(begin, end) for pieces of the rows, on all threads.
template <class F>
void for_rows(const cpu::Rows& rows, F&& f) {
  parallel_for(rows.count, grain_of(rows.width), [&](int64_t begin, int64_t end) {
    cpu::with_isa([&]<cpu::Isa I>() { f.template operator()<I>(begin, end); });
  });
}

inline void check_floating_rows(const Tensor& x, std::string_view name, std::string_view op) {
  WEFT_CHECK(x.defined() && x.num_dims() >= 1 && is_floating(x.dtype()), str(op, ": ", name, " is ", x),
             str(name, " must be an f32, bf16 or f64 tensor [..., D]"));
}
inline void check_like(const Tensor& t, std::string_view name, const Tensor& x, std::string_view of,
                       std::string_view op) {
  WEFT_CHECK(t.defined() && t.shape() == x.shape() && t.dtype() == x.dtype() && t.device() == x.device(),
             str(op, ": ", name, " is ", t, ", ", of, " is ", x),
             str(name, " must have the shape, dtype and device of ", of));
}
// A statistic of every row: x.shape without its last size, f32 (f64 for f64).
inline void check_statistic(const Tensor& t, std::string_view name, const Tensor& x, std::string_view op) {
  WEFT_CHECK(t.defined() && t.shape() == without_last(x.shape()) && t.dtype() == statistics_dtype(x) &&
                 t.is_contiguous() && t.device() == x.device(),
             str(op, ": ", name, " is ", t, ", x is ", x),
             str("pass the ", name, " that the forward returned for this x"));
}

}  // namespace weft::ops
