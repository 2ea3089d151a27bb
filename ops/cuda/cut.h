// A tensor seen from some of its dimensions: [outer, n, inner] with one stride each, for reductions, scans and look-ups.
#pragma once

#include "ops/cuda/elementwise.h"
#include "weft/core/tensor.h"

namespace weft::cuda {

struct Cut {
  int64_t outer = 1, n = 1, inner = 1, stride_outer = 0, stride_n = 0, stride_inner = 0;
};

// Merges dimensions [begin, end) of x; false if their strides do not allow it.
inline bool merge_dims(const Tensor& x, int begin, int end, int64_t& size, int64_t& stride) {
  size = 1;
  stride = 0;
  for (int d = end - 1; d >= begin; --d) {
    if (x.shape()[d] == 1) continue;
    if (size == 1) stride = x.strides()[d];
    else if (x.strides()[d] != stride * size) return false;
    size *= x.shape()[d];
  }
  return true;
}

// n is made of dimensions [begin, end). x has elements.
inline bool cut(const Tensor& x, int begin, int end, Cut& c) {
  return merge_dims(x, 0, begin, c.outer, c.stride_outer) && merge_dims(x, begin, end, c.n, c.stride_n) &&
         merge_dims(x, end, x.num_dims(), c.inner, c.stride_inner);
}

// x itself if it is row-major, else a copy that is.
inline Tensor dense(const Tensor& x) {
  if (x.is_contiguous()) return x;
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  copy(y, x);
  return y;
}

}  // namespace weft::cuda
