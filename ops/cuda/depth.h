// Mixture over depth on CUDA devices: the arguments of ops/cpu/depth.h; the arrays of pointers are on the host.
#pragma once

#include "ops/cpu/depth.h"
#include "weft/core/device.h"

namespace weft::cuda {

template <class T, class C>
struct DepthKernels {
  static void mix(const cpu::DepthArgs<T, C>& args, int64_t rows, Device device);
  static void mix_backward(const cpu::DepthArgs<T, C>& args, int64_t rows, C* ddirections, Device device);
  static void source_backward(const cpu::DepthSourceArgs<T, C>& args, int64_t rows, Device device);
};

}  // namespace weft::cuda
