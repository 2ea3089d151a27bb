// Reductions on the CPU. A tensor is seen as [outer, n, inner] and reduced over n in blocks whose size is fixed: inside a block
// the sum is f32 (f64 for f64) in several accumulators, the block sums are added in f64 in order. So a result depends on the
// instruction set, never on the number of threads.
#pragma once

#include "ops/cpu/isa.h"
#include "weft/core/tensor.h"
#include "weft/ops/reduce.h"

namespace weft::cpu {

enum class Reduction { sum, max };

inline constexpr int64_t kRowBlock = 1024;     // elements of a contiguous run that make one block
inline constexpr int64_t kColumnBlock = 128;   // rows of one block when whole rows are added
inline constexpr int64_t kColumnStrip = 1024;  // columns that one work item handles

// Strides in elements. `blocks` holds [outer, number of blocks, inner] results in the lane type: f32, or f64 for f64.
struct ReduceJob {
  const void* x;
  DType dtype;
  Reduction kind;
  int64_t outer, n, inner, stride_outer, stride_n;
  void* blocks;
  double scale;  // multiplies each block's result
};

template <Isa I>
struct ReduceKernels {
  static void rows(const ReduceJob& job, int64_t begin,
                   int64_t end);  // items: outer x blocks; inner is 1, stride_n is 1
  static void columns(const ReduceJob& job, int64_t begin,
                      int64_t end);  // items: outer x blocks x strips; inner has stride 1
  static double sum_of_squares(DType dtype, const void* x, int64_t n);  // in f64
  static bool all_finite(DType dtype, const void* x, int64_t n);
};

// out has the shape of x without the dimensions in `reduced` (bit d for dimension d), any floating dtype; scaled for means.
void reduce(Tensor& out, const Tensor& x, unsigned reduced, Reduction kind, double scale);
void argmax(Tensor& out, const Tensor& x, int dim);  // out: i64, row-major, without `dim`
double sum_of_squares(const Tensor& x);              // x is row-major
bool all_finite(const Tensor& x);
void cumsum(Tensor& y, const Tensor& x, int dim, const ops::CumsumOptions& options);
void windowed_sum(Tensor& y, const Tensor& x, int dim, const ops::CumsumOptions& options);  // windowed_sum.cpp

}  // namespace weft::cpu
