// Comparisons on the CPU. Plain loops that the compiler vectorises: no op of a training step is bound by them.
#pragma once

#include "ops/math/compare.h"
#include "weft/core/tensor.h"

namespace weft::cpu {

// y is bool; a and b are of one dtype and broadcast to its shape.
void compare(Tensor& y, const Tensor& a, const Tensor& b, math::Comparison kind);
void compare(Tensor& y, const Tensor& x, double number, math::Comparison kind);

}  // namespace weft::cpu
