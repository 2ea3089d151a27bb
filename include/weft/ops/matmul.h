// Matrix products. f32 and bf16 (accumulated in f32) through oneDNN, f64 by a blocked loop of our own (for gradient checks).
#pragma once

#include <optional>

#include "weft/core/tensor.h"

namespace weft::ops {

struct MatmulOptions {
  bool transpose_a = false;             // the last two dimensions
  bool transpose_b = false;
  std::optional<DType> out = {};        // bf16 inputs may give f32; default: the inputs' dtype
};

// a [..., M, K] times b [..., K, N] -> [..., M, N]. Leading dimensions broadcast. Inputs may be strided views.
Tensor matmul(const Tensor& a, const Tensor& b, MatmulOptions options = {});
// out = a b + beta * out; `out` is row-major f32 (or f64) of the product's shape: gradients are accumulated with it.
void matmul_into(Tensor& out, const Tensor& a, const Tensor& b, MatmulOptions options, double beta);

// x [..., in] times weight [out, in] transposed, plus bias [out] if defined -> [..., out].
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias = {});

}  // namespace weft::ops
