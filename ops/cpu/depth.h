// Kernels of the mixture over depth. C is f32, or f64 for f64.
#pragma once

#include "ops/cpu/isa.h"
#include "ops/cpu/norm_rows.h"

namespace weft::cpu {

template <class T, class C>
struct DepthArgs {
  int64_t sources = 0, width = 0;
  const T* const* values = nullptr;  // [N] of [rows, D]
  const C* const* scales = nullptr;  // [N] of [rows], or null
  const C* direction = nullptr;      // [D]
  bool is_sigmoid = false;
  C* weights = nullptr;  // [rows, N]; backward reads them
  T* out = nullptr;      // [rows, D]
  // Backward.
  const T* dout = nullptr;      // [rows, D]
  T* const* dvalues = nullptr;  // as values
  C* const* dscales = nullptr;  // as scales
};

// Rows [begin, end). The backward adds to ddirection [D] of its caller's block of rows.
template <Isa I, class T, class C>
struct DepthKernels {
  static void mix(const DepthArgs<T, C>& args, int64_t begin, int64_t end);
  static void mix_backward(const DepthArgs<T, C>& args, int64_t begin, int64_t end, C* ddirection);
};

}  // namespace weft::cpu
