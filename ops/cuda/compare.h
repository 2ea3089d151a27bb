// Comparisons on CUDA devices: the same calls as ops/cpu/compare.h.
#pragma once

#include "ops/math/compare.h"
#include "weft/core/tensor.h"

namespace weft::cuda {

void compare(Tensor& y, const Tensor& a, const Tensor& b, math::Comparison kind);
void compare(Tensor& y, const Tensor& x, double number, math::Comparison kind);

}  // namespace weft::cuda
