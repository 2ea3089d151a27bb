// Kernels of rotary position embedding.
#pragma once

#include "ops/cpu/isa.h"
#include "ops/cpu/norm_rows.h"

namespace weft::cpu {

template <class T>
struct RotaryArgs {
  Rows x_rows = {};     // rows are heads: count = tokens * heads, width = K
  int64_t heads = 1;    // consecutive rows that share an angle
  int64_t rotated = 0;  // channels that are rotated, even; the rest is copied
  const T* x = nullptr;
  const float* cos = nullptr;  // [tokens, rotated / 2]
  const float* sin = nullptr;
  double direction = 1;  // -1: the inverse rotation
  T* y = nullptr;        // [tokens, heads, K]
};

// Heads (rows) [begin, end).
template <Isa I, class T>
struct RotaryKernels {
  static void half(const RotaryArgs<T>& args, int64_t begin, int64_t end);         // pairs (m, m + rotated / 2)
  static void interleaved(const RotaryArgs<T>& args, int64_t begin, int64_t end);  // pairs (2 m, 2 m + 1)
};

}  // namespace weft::cpu
