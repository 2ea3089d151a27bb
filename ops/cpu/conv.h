// Kernels of the causal depthwise convolution. C is f32, or f64 for f64: weights and their gradients are of that type.
#pragma once

#include <cstdint>

#include "ops/cpu/isa.h"

namespace weft::cpu {

template <class T, class C>
struct ConvArgs {
  int64_t tokens = 0, dim = 0, taps = 0;  // T, D, W
  const T* x = nullptr;                   // forward: input; backward of the weight: input
  int64_t x_strides[2] = {0, 0};          // of batch and token; channels are contiguous
  const T* dy = nullptr;                  // backward only
  int64_t dy_strides[2] = {0, 0};
  const C* weight = nullptr;           // [W, D]: transposed, so that channels are contiguous
  const C* bias = nullptr;             // [D] or null
  const int32_t* documents = nullptr;  // [B, T] or null
  T* out = nullptr;                    // [B, T, D]: y, or dx
};

// Tokens [begin, end) of all B * T.
template <Isa I, class T, class C>
struct ConvKernels {
  static void forward(const ConvArgs<T, C>& args, int64_t begin, int64_t end);
  static void backward_input(const ConvArgs<T, C>& args, int64_t begin, int64_t end);
  // Adds to dweight [W, D] and, if there is one, dbias [D] of the caller's block of tokens.
  static void backward_weight(const ConvArgs<T, C>& args, int64_t begin, int64_t end, C* dweight, C* dbias);
};

}  // namespace weft::cpu
