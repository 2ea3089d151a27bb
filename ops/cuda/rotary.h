// Rotary phases on CUDA devices: the arguments of ops/cpu/rotary.h with pointers to memory of `device`.
#pragma once

#include "ops/cpu/rotary.h"
#include "weft/core/tensor.h"

namespace weft::cuda {

template <class T>
struct RotaryKernels {
  static void half(const cpu::RotaryArgs<T>& args, Device device);         // pairs (m, m + rotated / 2)
  static void interleaved(const cpu::RotaryArgs<T>& args, Device device);  // pairs (2 m, 2 m + 1)
};

// cos and sin [B, T, M], f32, of positions [B, T], i32 or i64 and row-major, times frequencies [M] f64; both times amplitude.
void rotary_table(Tensor& cos, Tensor& sin, const Tensor& positions, const Tensor& frequencies, double amplitude);

}  // namespace weft::cuda
