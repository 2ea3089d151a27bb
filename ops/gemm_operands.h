// One matrix product, or a batch of them, in the form that GEMM libraries take: c = a b + bias + beta c.
// Every operand is stored row-major with a leading dimension, or is the transpose of one that is. Strided tensors become
// such a call here, for the CPU and for CUDA devices alike.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "weft/core/dtype.h"
#include "weft/core/shape.h"
#include "weft/core/tensor.h"

namespace weft::ops {

inline constexpr int kMaxBatchDims = kMaxDims - 2;

struct GemmOperand {
  const void* data = nullptr;
  bool is_transposed = false;  // stored [cols, rows]
  int64_t ld = 0;              // elements from one stored row to the next
};

struct Gemm {
  DType in = kF32, out = kF32;  // f32 -> f32, bf16 -> bf16, bf16 -> f32, f64 -> f64
  int64_t m = 0, n = 0, k = 0;  // all at least 1
  GemmOperand a, b;             // [m, k], [k, n]
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

// A product of tensors as one call. a [.., M, K] and b [.., K, N] have any strides and broadcast to out [.., M, N], which is
// row-major; all sizes are at least 1. What no GEMM takes (steps in both of the last two dimensions, or rows that overlap)
// is copied with `dense_copy`; the call keeps the copies. Batch dimensions are merged where all operands allow it.
struct GemmCall {
  GemmCall(Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bias, double beta,
           Tensor (*dense_copy)(const Tensor&));

  Gemm gemm;
  Tensor a_dense, b_dense;
};

}  // namespace weft::ops
