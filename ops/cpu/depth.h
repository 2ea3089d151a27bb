// Kernels of the mixture over depth. C is f32, or f64 for f64.
#pragma once

#include "ops/cpu/isa.h"
#include "ops/cpu/norm_rows.h"

namespace weft::cpu {

template <class T, class C>
struct DepthArgs {
  int64_t sources = 0, width = 0, queries = 1;
  const T* const* values = nullptr;  // [N] of [rows, D]
  const C* const* scales = nullptr;  // [N] of [rows], or null
  const C* directions = nullptr;     // [S, D]
  const C* first_scores = nullptr;   // [rows, S]: of source 0 instead of its own; or null
  bool is_sigmoid = false;
  C* weights = nullptr;      // [rows, S, N]; backward reads them
  C* lse = nullptr;          // [rows, S], or null
  T* const* outs = nullptr;  // [S] of [rows, D]
  // Backward.
  const T* const* douts = nullptr;  // [S] of [rows, D]
  const C* totals = nullptr;        // [rows, S]: sum_j a_j da_j over more sources than these; null: over these
  C* dscores = nullptr;             // [rows, S, N]
};

// Backward of one source: what R readings want of it.
template <class T, class C>
struct DepthSourceArgs {
  int64_t readings = 0, width = 0;
  const T* const* douts = nullptr;       // [R] of [rows, D]
  const C* const* weights = nullptr;     // [R] of this source's in row 0; the next rows' are a stride apart
  const C* const* dscores = nullptr;     // the same
  const int64_t* strides = nullptr;      // [R]
  const C* const* directions = nullptr;  // [R] of [D]
  const T* value = nullptr;              // [rows, D]
  const C* scale = nullptr;              // [rows], or null
  T* dvalue = nullptr;
  C* dscale = nullptr;  // null without a scale
};

// Rows [begin, end). The backward adds to ddirections [S, D] of its caller's block of rows.
template <Isa I, class T, class C>
struct DepthKernels {
  static void mix(const DepthArgs<T, C>& args, int64_t begin, int64_t end);
  static void mix_backward(const DepthArgs<T, C>& args, int64_t begin, int64_t end, C* ddirections);
  static void source_backward(const DepthSourceArgs<T, C>& args, int64_t begin, int64_t end);
};

}  // namespace weft::cpu
