// Matrix products of CPU tensors: strides to operands, batches to as few products as possible, then the route per dtype.
#pragma once

#include "weft/core/tensor.h"

namespace weft::cpu {

// out = a b + bias + beta out. a [.., M, K] and b [.., K, N] with any strides, leading dimensions broadcast to those of
// out [.., M, N], which is row-major; bias [N] or undefined. Sizes and dtypes are checked by the caller.
void matmul(Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bias, double beta);

}  // namespace weft::cpu
