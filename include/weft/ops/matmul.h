// Matrix products. On the CPU, oneDNN computes f32 and bf16 (with f32 sums), and a loop of our own f64 (for gradient checks). The same call
// gives the same bits in every run. With another number of threads the last bits of f32 and bf16 may differ, because oneDNN splits the inner
// size among threads where the result is small (64x64x64, 64x16384x64). f64 does not change.
#pragma once

#include <optional>

#include "weft/core/tensor.h"

namespace weft::ops {

struct MatmulOptions {
  bool transpose_a = false;  // the last two dimensions
  bool transpose_b = false;
  std::optional<DType> out = {};  // bf16 inputs may give f32; default: the inputs' dtype
};

// a [..., M, K] times b [..., K, N] -> [..., M, N]. Leading dimensions broadcast. Inputs may be strided views.
Tensor matmul(const Tensor& a, const Tensor& b, MatmulOptions options = {});
// out = a b + beta * out, for sums of gradients. `out` has the product's shape and is row-major, f32 or f64.
void matmul_into(Tensor& out, const Tensor& a, const Tensor& b, MatmulOptions options, double beta);

// x [..., in] times weight [out, in] transposed, plus bias [out] if defined -> [..., out].
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias = {});

// Fused products of a feed-forward network with the tanh form of GELU. On a GPU each is one call of cuBLASLt where that has the kernel.
// Results differ from those of the single ops by the roundings that the fusion leaves out.
struct LinearGelu {
  Tensor y;  // gelu_tanh(inner)
  Tensor
      inner;  // for the backward: linear(x, weight, bias); on the CPU in f32 and f64 gelu_tanh'() of that, which costs little beside y
};
LinearGelu linear_gelu(const Tensor& x, const Tensor& weight, const Tensor& bias = {});
// (dy weight) * gelu_tanh'(inner): from dy [N, out] of linear(gelu_tanh(inner), weight) to the gradient of inner [N, in].
Tensor linear_gelu_backward(const Tensor& dy, const Tensor& weight, const Tensor& inner);
// Gradients of linear's parameters from dy [N, out] and x [N, in], f32 (f64 of f64): dy^T x, and dy summed over its rows.
struct LinearGrads {
  Tensor dweight, dbias;
};
LinearGrads linear_backward(const Tensor& dy, const Tensor& x, bool has_bias);

}  // namespace weft::ops
