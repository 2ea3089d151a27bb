// Inner loops around the matrix products, compiled per instruction set: conversion of blocks and the f64 product.
#pragma once

#include <cstdint>

#include "ops/cpu/isa.h"
#include "weft/core/dtype.h"

namespace weft::cpu {

template <Isa I>
struct MatmulKernels {
  // to[r, c] = from[r, c] as f32; both row-major with a leading dimension.
  static void widen(const BFloat16* from, int64_t from_ld, int64_t rows, int64_t cols, float* to, int64_t to_ld);
  // to[r, c] = round(from[r, c] + bias[c]); bias may be null.
  static void narrow(const float* from, int64_t from_ld, const BFloat16* bias, int64_t rows, int64_t cols, BFloat16* to,
                     int64_t to_ld);
  // to[c, r] = from[r, c].
  static void transpose(const float* from, int64_t from_ld, int64_t rows, int64_t cols, float* to, int64_t to_ld);
  // c[m, n] += a[m, k] b[k, n], all row-major; each element is summed over k in ascending order.
  static void gemm_f64(const double* a, int64_t lda, const double* b, int64_t ldb, double* c, int64_t ldc, int64_t m,
                       int64_t n, int64_t k);
};

}  // namespace weft::cpu
