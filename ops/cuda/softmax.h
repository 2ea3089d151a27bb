// Softmax and logsumexp on CUDA devices: the arguments of ops/cpu/softmax.h with pointers to memory of `device`. All rows; x and
// dy may be strided, everything else is row-major.
#pragma once

#include "ops/cpu/softmax.h"
#include "weft/core/device.h"

namespace weft::cuda {

template <class T, class C>
struct SoftmaxKernels {
  static void softmax(const cpu::SoftmaxArgs<T, C>& args, Device device);
  static void softmax_backward(const cpu::SoftmaxArgs<T, C>& args, Device device);
  static void log_softmax(const cpu::SoftmaxArgs<T, C>& args, Device device);
  static void log_softmax_backward(const cpu::SoftmaxArgs<T, C>& args, Device device);
  static void logsumexp(const cpu::SoftmaxArgs<T, C>& args, Device device);
  static void logsumexp_backward(const cpu::SoftmaxArgs<T, C>& args, Device device);
};

template <class T, class C>
struct SoftmaxColumnKernels {
  static void run(cpu::SoftmaxStep step, const cpu::SoftmaxColumns<T, C>& args, Device device);
};

}  // namespace weft::cuda
