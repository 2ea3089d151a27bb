// Look-ups and joins: embedding, gather, scatter-add, top-k, concatenate, stack.
#pragma once

#include <span>
#include <vector>

#include "weft/core/tensor.h"

namespace weft::ops {

// Rows of table [V, D] at ids [...] -> [..., D]. Ids are i32 or i64, 0 <= id < V. An id outside is an Error on the CPU; on a GPU its row is
// NaN.
Tensor embedding(const Tensor& table, const Tensor& ids);
Tensor embedding_backward(const Tensor& dy, const Tensor& ids,
                          int64_t num_rows);  // [V, D] f32 (f64 for f64), fixed order

// y[.., i, ..] = x[.., index[.., i, ..], ..] along `dim`; index i64 has x's shape except along dim.
Tensor gather(const Tensor& x, int64_t dim, const Tensor& index);
// Zeros of `shape`, then y[.., index[.., i, ..], ..] += x[.., i, ..] in a fixed order: the backward of gather.
Tensor scatter_add(const Shape& shape, int64_t dim, const Tensor& index, const Tensor& x);

struct TopK {
  Tensor values, indices;  // [..., k], largest first; the lowest index wins a tie; indices i64
};
TopK topk(const Tensor& x, int64_t k);  // last dimension

Tensor concatenate(std::span<const Tensor> parts, int64_t dim);
Tensor stack(std::span<const Tensor> parts,
             int64_t dim);  // parts of one shape; `dim` of the result is new and has size parts.size()
std::vector<Tensor> split(const Tensor& x, std::span<const int64_t> sizes, int64_t dim);  // views

}  // namespace weft::ops
