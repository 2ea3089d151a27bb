// Copies and conversions on the CPU.
#pragma once

#include "weft/core/tensor.h"

namespace weft::cpu {

// Converts, broadcasts `from` to the shape of `to`; any strides. Floating to integer truncates and saturates, NaN gives 0; to bool is x != 0.
void copy(Tensor& to, const Tensor& from);
void fill(Tensor& x, double value);

}  // namespace weft::cpu
