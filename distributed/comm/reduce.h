// Sums, maxima and minima over ranks, in the order of ranks: the same bits on whatever rank and in however many parts they are taken.
#pragma once

#include <cstdint>
#include <span>

#include "weft/comm/communicator.h"

namespace weft::dist {

// to[i] of inputs[0][i], inputs[1][i], ...: one input per rank, `count` elements each. bf16 is summed in f32 and rounded once. `to` may be
// one of the inputs.
void reduce_in_order(DType dtype, Reduce reduce, std::span<const void* const> inputs, int64_t count, void* to);

}  // namespace weft::dist
