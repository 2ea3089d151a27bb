// Tensors as plain numbers: what the float64 references compute with.
#pragma once

#include <cmath>
#include <functional>
#include <vector>

#include "weft/core/tensor.h"

namespace weft::reference {

// Elements in row-major order, any dtype and strides.
inline std::vector<double> values(const Tensor& t) {
  std::vector<double> out;
  with_type<float, BFloat16, double, int64_t, int32_t, uint8_t, bool>(t.dtype(), "values", [&](auto tag) {
    using T = typename decltype(tag)::type;
    for (T x : t.to_vector<T>()) {
      if constexpr (std::same_as<T, BFloat16>) out.push_back(static_cast<float>(x));
      else out.push_back(static_cast<double>(x));
    }
  });
  return out;
}

// A row-major tensor of these numbers, rounded to `dtype`.
inline Tensor make(const Shape& shape, const std::vector<double>& numbers, DType dtype = kF32) {
  Tensor t = Tensor::empty(shape, dtype);
  with_type<float, BFloat16, double, int64_t, int32_t, uint8_t, bool>(dtype, "make", [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* to = t.mutable_data<T>();
    for (size_t i = 0; i < numbers.size(); ++i) {
      if constexpr (std::same_as<T, BFloat16>) to[i] = BFloat16(static_cast<float>(numbers[i]));
      else to[i] = static_cast<T>(numbers[i]);
    }
  });
  return t;
}

// f over the elements of a and b broadcast to `shape`, in row-major order. Plain index arithmetic.
inline std::vector<double> broadcast(const Tensor& a, const Tensor& b, const Shape& shape,
                                     const std::function<double(double, double)>& f) {
  std::vector<double> x = values(a), y = values(b), out;
  auto at = [&](const Tensor& t, int64_t flat) {
    int64_t index = 0, stride = 1;
    for (int d = shape.num_dims() - 1, e = t.num_dims() - 1; e >= 0; --d, --e) {
      int64_t i = flat % shape[d];
      flat /= shape[d];
      if (t.shape()[e] != 1) index += i * stride;
      stride *= t.shape()[e];
    }
    return static_cast<size_t>(index);
  };
  for (int64_t i = 0; i < shape.num_elements(); ++i) out.push_back(f(x[at(a, i)], y[at(b, i)]));
  return out;
}

// Relative rounding error of a dtype: half a unit in the last place.
inline double epsilon(DType dtype) {
  return dtype == kF64 ? 0x1p-53 : dtype == kBF16 ? 0x1p-8 : dtype == kF32 ? 0x1p-24 : 0;
}

}  // namespace weft::reference
