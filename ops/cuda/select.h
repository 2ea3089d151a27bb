// Look-ups and joins of CUDA tensors; the contracts are those of ops/cpu/select.h.
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
