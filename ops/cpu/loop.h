// The loop of every elementwise kernel on the CPU. Kernels only see contiguous runs (a Chunk); the loop collapses dimensions,
// broadcasts, gathers and scatters strided operands block by block, and splits the work among threads. No heap.
//   Loop loop(y.shape());
//   loop.output(y); loop.input(a); loop.input(b);
//   loop.run(chunk, &functor);
#pragma once

#include <cstdint>

#include "weft/core/tensor.h"

namespace weft::cpu {

inline constexpr int kMaxOperands = 5;
inline constexpr int64_t kGrain = 32 * 1024;  // elements per thread below which a thread is not worth waking

// Works on n elements; operands[k] points to n contiguous elements of operand k, outputs first.
using Chunk = void (*)(const void* functor, char* const* operands, int64_t n);

class Loop {
 public:
  explicit Loop(const Shape& shape);

  // Outputs first. Shapes must broadcast to the loop's; an output must have the loop's shape. The tensors must outlive run().
  void output(Tensor& t) {
    add(static_cast<char*>(t.mutable_raw()), t);
    ++num_outputs_;
  }
  void input(const Tensor& t) { add(static_cast<char*>(const_cast<void*>(t.raw())), t); }
  // An output may also be an input (ops in place).
  void run(Chunk chunk, const void* functor);
  // Copies operand 1 to operand 0 of the same element size.
  void copy();

 private:
  struct Operand {
    char* data;
    int64_t bytes;              // of one element
    int64_t strides[kMaxDims];  // in bytes
  };
  struct Cursor;

  void add(char* data, const Tensor& t);
  void collapse();
  bool is_dense(int operand) const;
  void run_dense(Chunk chunk, const void* functor) const;
  void run_rows(Chunk chunk, const void* functor, int64_t begin, int64_t end) const;
  void run_blocks(Chunk chunk, const void* functor, int64_t begin, int64_t end) const;
  void copy_range(int64_t begin, int64_t end) const;
  void copy_transposed(int along) const;

  int64_t num_elements_ = 1;
  int num_dims_ = 0, num_operands_ = 0, num_outputs_ = 0;
  bool all_dense_ = true;  // every operand is row-major of the loop's shape
  int64_t sizes_[kMaxDims];
  Operand operands_[kMaxOperands];
};

}  // namespace weft::cpu
