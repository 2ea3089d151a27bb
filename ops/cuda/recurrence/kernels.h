// The gated linear recurrence and the element-wise one on CUDA devices: the problems of ops/cpu/recurrence/ with pointers to memory of
// `device`. A decay above 0 or not finite, which the host does not see, makes what depends on it NaN.
#pragma once

#include "ops/cpu/recurrence/decay_scan.h"
#include "ops/cpu/recurrence/kernels.h"
#include "weft/core/tensor.h"

namespace weft::cuda {

// What cpu::RecurrenceKernels do, for T = float (f32 and bf16 tensors) or double. Values are not cut into parts (parts is 1), dq and dk are
// in the dtype of the tensors, and dlog_decay has a number per token where log_decay has one per head.
template <class T>
struct RecurrenceKernels {
  static void forward(const cpu::RecurrenceProblem& problem);
  static void backward(const cpu::RecurrenceProblem& problem, void* states);
  static cpu::RecurrenceWorkers workers(const cpu::RecurrenceProblem&) { return {}; }
  static int64_t block_to_keep(const cpu::RecurrenceProblem& problem);
  static void keep_states(const cpu::RecurrenceProblem& problem);
  static void state_gradient(const cpu::RecurrenceProblem& problem);
};

// dlog_decay has a number per token also where log_decay has one per channel.
void decay_scan_forward(const cpu::DecayScanProblem& problem, DType wide, Device device);
void decay_scan_backward(const cpu::DecayScanProblem& problem, DType wide, Device device);

// cpu::Mark of every token of documents [B, T], for which state_document [B] is defined or not.
void mark_documents(Tensor& marks, const Tensor& documents, const Tensor& state_document);

// last [B]: the document of the last token that is no padding; where there is none, that of `before` [B], or -1 if it is undefined.
void last_documents(Tensor& last, const Tensor& documents, const Tensor& before);

namespace recurrence {

inline constexpr int kRows = 64;  // tokens of a chunk at most

// The same by chunks of tokens in parallel, with the arithmetic A of product.cuh. Each instance is compiled in a file of its own.
template <class A>
struct Chunks {
  static void forward(const cpu::RecurrenceProblem& problem);
  static void backward(const cpu::RecurrenceProblem& problem);
  static void keep_states(const cpu::RecurrenceProblem& problem);
  static void state_gradient(const cpu::RecurrenceProblem& problem);
};

}  // namespace recurrence

}  // namespace weft::cuda
