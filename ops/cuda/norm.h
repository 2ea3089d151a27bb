// RMSNorm and LayerNorm on CUDA devices: the arguments of ops/cpu/norm.h with pointers to memory of `device`. All rows; x and dy
// may be strided, everything else is row-major.
#pragma once

#include "ops/cpu/norm.h"
#include "weft/core/device.h"

namespace weft::cuda {

template <class T, class C>
struct NormKernels {
  static void rms_norm(const cpu::NormArgs<T, C>& args, Device device);
  static void layer_norm(const cpu::NormArgs<T, C>& args, Device device);
  // Write dweight [D] and dbias [D] unless they are null: sums over the rows, in the same order in every run.
  static void rms_norm_backward(const cpu::NormBackwardArgs<T, C>& args, C* dweight, Device device);
  static void layer_norm_backward(const cpu::NormBackwardArgs<T, C>& args, C* dweight, C* dbias, Device device);
};

}  // namespace weft::cuda
