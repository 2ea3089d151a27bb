// Comparisons, logic of bools, and choices between tensors and numbers: a part of weft/ops/elementwise.h.
#include "ops/cpu/compare.h"

#include <cmath>

#include "ops/cpu/elementwise.h"
#include "ops/cuda/compare.h"
#include "ops/cuda/elementwise.h"
#include "ops/number_like.h"
#include "src/core/cuda_build.h"
#include "weft/ops/elementwise.h"

namespace weft::ops {

namespace {

using math::Comparison;

void check_pair(const Tensor& a, const Tensor& b, std::string_view op) {
  WEFT_CHECK(a.defined() && b.defined() && a.dtype() == b.dtype() && a.device() == b.device(),
             str(op, ": a is ", a, ", b is ", b), "both need the same dtype and device: cast or copy one of them");
}

Tensor compare(const Tensor& a, const Tensor& b, Comparison kind, std::string_view op) {
  check_pair(a, b, op);
  Tensor y = Tensor::empty(broadcast_shapes(a.shape(), b.shape(), op), kBool, a.device());
  if constexpr (kCuda) {
    if (a.is_cuda()) return cuda::compare(y, a, b, kind), y;
  }
  cpu::compare(y, a, b, kind);
  return y;
}

// The number as x's dtype holds it, so that the elements of Tensor::full(shape, 0.1) are equal to 0.1; too large ones stay.
double rounded(double number, DType dtype) {
  if (!is_floating(dtype) || dtype == kF64 || !is_number_of(number, dtype)) return number;
  const auto narrow = static_cast<float>(number);
  return dtype == kF32 ? narrow : static_cast<float>(BFloat16(narrow));
}

Tensor compare(const Tensor& x, double number, Comparison kind, std::string_view op) {
  WEFT_CHECK(x.defined(), str(op, ": x is ", x), "give a defined tensor");
  Tensor y = Tensor::empty(x.shape(), kBool, x.device());
  number = rounded(number, x.dtype());
  if constexpr (kCuda) {
    if (x.is_cuda()) return cuda::compare(y, x, number, kind), y;
  }
  cpu::compare(y, x, number, kind);
  return y;
}

void check_bool(const Tensor& x, std::string_view op) {
  WEFT_CHECK(x.defined() && x.dtype() == kBool, str(op, ": an input is ", x),
             "give bool tensors: compare first, such as not_equal(x, 0)");
}

}  // namespace

Tensor equal(const Tensor& a, const Tensor& b) { return compare(a, b, Comparison::equal, "equal"); }
Tensor not_equal(const Tensor& a, const Tensor& b) { return compare(a, b, Comparison::not_equal, "not_equal"); }
Tensor less(const Tensor& a, const Tensor& b) { return compare(a, b, Comparison::less, "less"); }
Tensor less_equal(const Tensor& a, const Tensor& b) { return compare(a, b, Comparison::less_equal, "less_equal"); }
Tensor greater(const Tensor& a, const Tensor& b) { return compare(a, b, Comparison::greater, "greater"); }
Tensor greater_equal(const Tensor& a, const Tensor& b) {
  return compare(a, b, Comparison::greater_equal, "greater_equal");
}

Tensor equal(const Tensor& x, double number) { return compare(x, number, Comparison::equal, "equal"); }
Tensor not_equal(const Tensor& x, double number) { return compare(x, number, Comparison::not_equal, "not_equal"); }
Tensor less(const Tensor& x, double number) { return compare(x, number, Comparison::less, "less"); }
Tensor less_equal(const Tensor& x, double number) { return compare(x, number, Comparison::less_equal, "less_equal"); }
Tensor greater(const Tensor& x, double number) { return compare(x, number, Comparison::greater, "greater"); }
Tensor greater_equal(const Tensor& x, double number) {
  return compare(x, number, Comparison::greater_equal, "greater_equal");
}

Tensor logical_and(const Tensor& a, const Tensor& b) {
  check_bool(a, "logical_and"), check_bool(b, "logical_and");
  return mul(a, b);
}
Tensor logical_or(const Tensor& a, const Tensor& b) {
  check_bool(a, "logical_or"), check_bool(b, "logical_or");
  return maximum(a, b);
}
Tensor logical_xor(const Tensor& a, const Tensor& b) {
  check_bool(a, "logical_xor"), check_bool(b, "logical_xor");
  return not_equal(a, b);
}
Tensor logical_not(const Tensor& x) {
  check_bool(x, "logical_not");
  return equal(x, 0);
}

Tensor where(const Tensor& mask, const Tensor& a, const Tensor& b) {
  WEFT_CHECK(mask.defined() && mask.dtype() == kBool && mask.device() == a.device(),
             str("where: mask is ", mask, ", a is ", a), "the mask must be bool and on the same device");
  check_pair(a, b, "where");
  Shape shape = broadcast_shapes(mask.shape(), broadcast_shapes(a.shape(), b.shape(), "where"), "where");
  Tensor y = Tensor::empty(shape, a.dtype(), a.device());
  if constexpr (kCuda) {
    if (a.is_cuda()) return cuda::where(y, mask, a, b), y;
  }
  cpu::where(y, mask, a, b);
  return y;
}
Tensor where(const Tensor& mask, const Tensor& x, double number) {
  WEFT_CHECK(x.defined(), "where: x is undefined", "give a defined tensor");
  return where(mask, x, number_like(number, x, "where"));
}
Tensor where(const Tensor& mask, double number, const Tensor& x) {
  WEFT_CHECK(x.defined(), "where: x is undefined", "give a defined tensor");
  return where(mask, number_like(number, x, "where"), x);
}

}  // namespace weft::ops
