// Matrix products of CUDA tensors; the contract is that of cpu::matmul.
#pragma once

#include "weft/core/tensor.h"

namespace weft::cuda {

void matmul(Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bias, double beta);

// Products with more done to them in the same pass, by cuBLASLt's epilogues. Of one matrix each, row-major results, inputs of any strides.
// False, with nothing done, where cuBLASLt has no such kernel (GELU is for bf16 only): the caller then takes single ops.
//   y = gelu_tanh(inner), inner = x weight_t + bias; bias may be undefined
bool linear_gelu(Tensor& y, Tensor& inner, const Tensor& x, const Tensor& weight_t, const Tensor& bias);
//   out = (a b) * gelu_tanh'(inner)
bool matmul_gelu_backward(Tensor& out, const Tensor& a, const Tensor& b, const Tensor& inner);
//   out = a b, sums[i] = sum over k of a[i, k]
bool matmul_row_sums(Tensor& out, Tensor& sums, const Tensor& a, const Tensor& b);

}  // namespace weft::cuda
