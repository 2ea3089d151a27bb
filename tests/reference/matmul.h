// The truth about matrix products: plain float64 loops over any strides, leading dimensions broadcast.
#pragma once

#include <cmath>
#include <vector>

#include "weft/core/tensor.h"

namespace weft::reference {

// Elements of any floating tensor as doubles, row-major.
inline std::vector<double> to_doubles(const Tensor& t) {
  std::vector<double> values;
  if (t.dtype() == kF64) return t.to_vector<double>();
  if (t.dtype() == kF32)
    for (float x : t.to_vector<float>()) values.push_back(x);
  else
    for (BFloat16 x : t.to_vector<BFloat16>()) values.push_back(static_cast<float>(x));
  return values;
}

struct Product {
  Shape shape;
  std::vector<double> values;
  std::vector<double> magnitudes;  // sum over k of |a b|, which rounding errors are in proportion to
};

// a [.., M, K] times b [.., K, N].
inline Product matmul(const Tensor& a, const Tensor& b) {
  auto leading = [](const Tensor& t) { return Shape(t.shape().span().first(static_cast<size_t>(t.num_dims() - 2))); };
  Shape lead = broadcast_shapes(leading(a), leading(b), "reference");
  int64_t m = a.size(-2), k = a.size(-1), n = b.size(-1);
  auto expanded = [&](const Tensor& t) {
    Shape shape = lead;
    shape.push_back(t.size(-2)), shape.push_back(t.size(-1));
    return to_doubles(t.expand(shape));
  };
  std::vector<double> x = expanded(a), y = expanded(b);
  Product p;
  p.shape = lead;
  p.shape.push_back(m), p.shape.push_back(n);
  for (int64_t i = 0; i < lead.num_elements(); ++i)
    for (int64_t r = 0; r < m; ++r)
      for (int64_t c = 0; c < n; ++c) {
        double sum = 0, magnitude = 0;
        for (int64_t l = 0; l < k; ++l) {
          double term = x[static_cast<size_t>((i * m + r) * k + l)] * y[static_cast<size_t>((i * k + l) * n + c)];
          sum += term;
          magnitude += std::abs(term);
        }
        p.values.push_back(sum);
        p.magnitudes.push_back(magnitude);
      }
  return p;
}

}  // namespace weft::reference
