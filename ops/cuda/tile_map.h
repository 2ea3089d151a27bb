// How Hopper's copy engine sees the memory of an attention operand: [batch, tokens, heads, width] of bf16 with any strides of whole 16
// bytes. It moves boxes of `rows` tokens x 64 channels of one head, with zeros for what is outside.
#pragma once

#ifdef WEFT_CUDA_EMULATED
#include "ops/cuda/emulator/hopper.h"
#else
#include <cuda.h>
#endif

#include "weft/ops/attention/problem.h"

namespace weft::cuda {

#ifndef WEFT_CUDA_EMULATED
using TileMap = CUtensorMap;  // a kernel takes it as a __grid_constant__ parameter
#endif

// "" or why the copy engine cannot read x.
std::string tile_map_problem(const ops::core::Operand& x, int64_t batch, int64_t tokens, int64_t heads, int64_t width);

// An operand for which that is "".
TileMap make_tile_map(const ops::core::Operand& x, int64_t batch, int64_t tokens, int64_t heads, int64_t width,
                      int rows);

}  // namespace weft::cuda
