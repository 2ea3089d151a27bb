// Kernels of the element-wise recurrence y_t = a_t y_{t-1} + x_t. A piece is one row b and kPiece channels.
#pragma once

#include "ops/cpu/recurrence/kernels.h"

namespace weft::cpu {

inline constexpr int64_t kPiece = 64;         // channels
inline constexpr int64_t kScanSegment = 256;  // tokens whose y backward keeps at a time

struct DecayScanProblem {
  using Operand = ops::core::Operand;

  int64_t batch = 0, tokens = 0, dim = 0;
  Operand x, log_decay;         // [B, T, D], channels contiguous; log_decay also [D]
  const Mark* marks = nullptr;  // [B, T] or null
  const void* state = nullptr;  // contiguous [B, D] in the computing type, or null: zeros

  Operand y;
  void* last_state = nullptr;

  Operand dy;                         // no data: zeros
  const void* dlast_state = nullptr;  // or null: zeros
  Operand dx, dlog_decay;
  double* dlog_decay_of_row = nullptr;  // [B, D], in place of dlog_decay: sums over the tokens
  void* dstate = nullptr;               // or null: not wanted

  int64_t pieces() const { return batch * ((dim + kPiece - 1) / kPiece); }
};

template <Isa I, class T>
struct DecayScanKernels {
  static void forward(const DecayScanProblem& problem);
  static void backward(const DecayScanProblem& problem);
};

}  // namespace weft::cpu
