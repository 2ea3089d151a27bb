// Row-major memory for kernels that want it.
#pragma once

#include "ops/cpu/copy.h"

namespace weft::cpu {

inline Tensor dense_copy(const Tensor& x) {
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  copy(y, x);
  return y;
}

// x itself if it is row-major.
inline Tensor dense(const Tensor& x) { return x.is_contiguous() ? x : dense_copy(x); }

}  // namespace weft::cpu
