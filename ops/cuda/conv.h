// The causal depthwise convolution on CUDA devices: the arguments of ops/cpu/conv.h with pointers to memory of `device`.
#pragma once

#include "ops/cpu/conv.h"
#include "weft/core/tensor.h"

namespace weft::cuda {

// All tokens of `batch` rows of args.tokens.
template <class T, class C>
struct ConvKernels {
  static void forward(const cpu::ConvArgs<T, C>& args, int64_t batch, Device device);
  static void backward_input(const cpu::ConvArgs<T, C>& args, int64_t batch, Device device);
  // Writes sums over tokens, in the same order in every run: dweight [W, D] and, where it is defined, dbias [D].
  static void backward_weight(const cpu::ConvArgs<T, C>& args, int64_t batch, Tensor& dweight, Tensor& dbias);
};

}  // namespace weft::cuda
