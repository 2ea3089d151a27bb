// A number as a tensor that broadcasts: of another tensor's dtype, on its device.
#pragma once

#include <cmath>
#include <limits>

#include "weft/core/error.h"
#include "weft/core/tensor.h"

namespace weft::ops {

// Whether `number` is one of the dtype's, up to the rounding of floating ones.
inline bool is_number_of(double number, DType dtype) {
  auto is_between = [&](double low, double high) { return low <= number && number <= high; };
  const double largest = dtype == kBF16 ? 0x1.fep127 : static_cast<double>(std::numeric_limits<float>::max());
  switch (dtype) {
    case DType::float64: return true;
    case DType::float32:
    case DType::bfloat16: return !std::isfinite(number) || is_between(-largest, largest);
    case DType::int64: return number == std::floor(number) && -0x1p63 <= number && number < 0x1p63;
    case DType::int32: return number == std::floor(number) && is_between(-0x1p31, 0x1p31 - 1);
    case DType::uint8: return number == std::floor(number) && is_between(0, 255);
    case DType::boolean: break;
  }
  return number == 0 || number == 1;
}

inline Tensor number_like(double number, const Tensor& x, std::string_view op) {
  WEFT_CHECK(is_number_of(number, x.dtype()), str(op, ": the number ", number, " is no ", x.dtype(), ", x is ", x),
             "give a number that the dtype of x holds, or cast x");
  return Tensor::full({}, number, x.dtype(), x.device());
}

}  // namespace weft::ops
