// One matrix product, or a batch of them, in the form that GEMM libraries take: c = a b + bias + beta c.
// Every operand is stored row-major with a leading dimension, or is the transpose of one that is.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "weft/core/dtype.h"
#include "weft/core/shape.h"

namespace weft::cpu {

inline constexpr int kMaxBatchDims = kMaxDims - 2;

struct Operand {
  const void* data = nullptr;
  bool is_transposed = false;  // stored [cols, rows]
  int64_t ld = 0;              // elements from one stored row to the next
};

struct Gemm {
  DType in = kF32, out = kF32;  // f32 -> f32, bf16 -> bf16, bf16 -> f32, f64 -> f64
  int64_t m = 0, n = 0, k = 0;  // all at least 1
  Operand a, b;                 // [m, k], [k, n]
  void* c = nullptr;            // [m, n]
  int64_t ldc = 0;
  const void* bias = nullptr;  // [n] of dtype `in`, or null
  double beta = 0;             // 0 never reads c
  // Batch dimensions, outermost first: size, and elements from one product to the next (0 repeats the operand).
  int num_batch_dims = 0;
  std::array<int64_t, kMaxBatchDims> batch{}, a_step{}, b_step{}, c_step{};

  int64_t num_products() const {
    int64_t count = 1;
    for (int i = 0; i < num_batch_dims; ++i) count *= batch[static_cast<size_t>(i)];
    return count;
  }
};

// The i-th product of a batch alone.
Gemm product(const Gemm& g, int64_t i);

// bf16 products on a machine where oneDNN has no bf16: panels are widened to f32 in cache and go through the f32 route.
void gemm_bf16_by_f32(const Gemm& g);  // one product
void gemm_f64(const Gemm& g);          // one product, own loop

// The f32 route, chosen by a rule on shapes: the same call always takes the same route.
void gemm_f32(const Gemm& g);

}  // namespace weft::cpu
