// Look-ups and joins of CUDA tensors; the contracts are those of ops/cpu/select.h, but for index values outside their range.
// Nobody on the host reads those: a look-up gives all bits set for one (NaN; -1 for integers), and a sum leaves it out and
// then holds NaN at row 0 (embedding_backward) or in its elements at index 0 along `dim` (scatter_add). No memory outside the
// tensors is read or written.
#pragma once

#include <span>

#include "weft/core/tensor.h"

namespace weft::cuda {

void embedding(Tensor& out, const Tensor& table, const Tensor& ids);
void embedding_backward(Tensor& dtable, const Tensor& dy, const Tensor& ids);
void gather(Tensor& out, const Tensor& x, int dim, const Tensor& index);
void scatter_add(Tensor& out, int dim, const Tensor& index, const Tensor& x);
void topk(Tensor& values, Tensor& indices, const Tensor& x);
void concatenate(Tensor& out, std::span<const Tensor> parts, int dim);

}  // namespace weft::cuda
