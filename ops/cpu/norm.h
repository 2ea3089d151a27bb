// Kernels of RMSNorm and LayerNorm. C is f32, or f64 for f64: weights, statistics and their gradients are of that type.
#pragma once

#include "ops/cpu/isa.h"
#include "ops/cpu/norm_rows.h"

namespace weft::cpu {

template <class T, class C>
struct NormArgs {
  Rows x_rows = {};
  const T* x = nullptr;
  const C* weight = nullptr;  // [D] or null for ones
  const C* bias = nullptr;    // [D] or null
  double eps = 0;
  const T* added = nullptr;  // [rows, D] or null; then x + added is normed, rounded to T as it is stored in `sum`
  T* sum = nullptr;          // [rows, D]
  T* y = nullptr;            // [rows, D]
  C* mean = nullptr;         // [rows], LayerNorm only
  C* inv = nullptr;          // [rows]: 1 / rms or 1 / std
};

template <class T, class C>
struct NormBackwardArgs {
  Rows dy_rows = {}, x_rows = {};
  const T* dy = nullptr;
  const T* x = nullptr;
  const C* weight = nullptr;  // or null for ones
  const C* mean = nullptr;
  const C* inv = nullptr;
  const T* added = nullptr;  // [rows, D] or null: added to dx, after dx has been rounded to T
  T* dx = nullptr;           // [rows, D]
};

// All work on rows [begin, end). The backward adds to dweight [D] and dbias [D] of its caller's block of rows.
template <Isa I, class T, class C>
struct NormKernels {
  static void rms_norm(const NormArgs<T, C>& args, int64_t begin, int64_t end);
  static void rms_norm_backward(const NormBackwardArgs<T, C>& args, int64_t begin, int64_t end, C* dweight);
  static void layer_norm(const NormArgs<T, C>& args, int64_t begin, int64_t end);
  static void layer_norm_backward(const NormBackwardArgs<T, C>& args, int64_t begin, int64_t end, C* dweight, C* dbias);
};

}  // namespace weft::cpu
