// Kernels of softmax, log_softmax and logsumexp over rows, or over the middle one of three dimensions. C is f32, or f64 for f64.
#pragma once

#include "ops/cpu/isa.h"
#include "ops/cpu/norm_rows.h"

namespace weft::cpu {

template <class T, class C>
struct SoftmaxArgs {
  Rows x_rows = {};       // softmax_backward: of y
  Rows dy_rows = {};      // softmax_backward only
  const T* x = nullptr;   // softmax_backward: y
  const T* dy = nullptr;  // softmax_backward
  const C* dl = nullptr;  // logsumexp_backward, [rows]
  const C* l = nullptr;   // logsumexp_backward, [rows]
  T* y = nullptr;         // [rows, D]: softmax, log_softmax, or the gradient of x
  C* l_out = nullptr;     // logsumexp, [rows]
};

// Rows [begin, end).
template <Isa I, class T, class C>
struct SoftmaxKernels {
  static void softmax(const SoftmaxArgs<T, C>& args, int64_t begin, int64_t end);
  static void softmax_backward(const SoftmaxArgs<T, C>& args, int64_t begin, int64_t end);
  static void log_softmax(const SoftmaxArgs<T, C>& args, int64_t begin, int64_t end);
  static void log_softmax_backward(const SoftmaxArgs<T, C>& args, int64_t begin, int64_t end);
  static void logsumexp(const SoftmaxArgs<T, C>& args, int64_t begin, int64_t end);
  static void logsumexp_backward(const SoftmaxArgs<T, C>& args, int64_t begin, int64_t end);
};

// x [outer, n, inner], row-major, with inner > 1: each column of n elements for itself, neighbours side by side.
template <class T, class C>
struct SoftmaxColumns {
  int64_t outer = 1, n = 0, inner = 1;
  const T* x = nullptr;   // backward of softmax and log_softmax: y
  const T* dy = nullptr;  // their backward
  const C* dl = nullptr;  // [outer, inner], logsumexp_backward
  const C* l = nullptr;   // [outer, inner], logsumexp_backward
  T* y = nullptr;         // [outer, n, inner]
  C* l_out = nullptr;     // [outer, inner], logsumexp
};

enum class SoftmaxStep { softmax, log_softmax, logsumexp, softmax_backward, log_softmax_backward, logsumexp_backward };

inline constexpr int64_t kSoftmaxStrip = 64;  // columns of one work item

// Items [begin, end) of outer x strips.
template <Isa I, class T, class C>
struct SoftmaxColumnKernels {
  static void run(SoftmaxStep step, const SoftmaxColumns<T, C>& args, int64_t begin, int64_t end);
};

}  // namespace weft::cpu
