// Copies between strided views of one dtype, for kernels that want plain memory or write into a part of a tensor.
#pragma once

#include "weft/core/tensor.h"

namespace weft::cpu {

// to = from, element by element: equal shapes and dtypes, any strides, no overlap.
void copy_elements(Tensor& to, const Tensor& from);
// x itself if it is row-major, else a row-major copy.
Tensor dense(const Tensor& x);
Tensor dense_copy(const Tensor& x);

}  // namespace weft::cpu
