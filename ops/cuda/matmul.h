// Matrix products of CUDA tensors; the contract is that of cpu::matmul.
#pragma once

#include "weft/core/tensor.h"

namespace weft::cuda {

void matmul(Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bias, double beta);

}  // namespace weft::cuda
