// Cross-entropy on CUDA devices: the arguments of ops/cpu/loss.h with pointers to memory of `device`. Targets are not known to
// the host: one that is >= V gives a NaN loss and a NaN gradient for its token, and no access outside memory.
#pragma once

#include "ops/cpu/loss.h"
#include "weft/core/device.h"

namespace weft::cuda {

template <class T, class C>
struct CrossEntropyKernels {
  static void forward(const cpu::CrossEntropyArgs<T, C>& args, Device device);
  static void backward(const cpu::CrossEntropyArgs<T, C>& args, Device device);
};

template <class T, class C>
struct KlKernels {
  static void forward(const cpu::KlArgs<T, C>& args, Device device);
  static void backward(const cpu::KlArgs<T, C>& args, Device device);
};

template <class C, class G>
struct LossChunkKernels {
  static void run(const cpu::LossChunkArgs<C, G>& args, int64_t rows, Device device);
  // *loss = factor * sum of losses [n], added in f64 and in the same order in every run.
  static void total(const C* losses, int64_t n, double factor, C* loss, Device device);
};

}  // namespace weft::cuda
