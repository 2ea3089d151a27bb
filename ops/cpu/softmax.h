// Kernels of softmax and logsumexp over rows. C is f32, or f64 for f64.
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
  T* y = nullptr;         // [rows, D]: softmax, or the gradient of x
  C* l_out = nullptr;     // logsumexp, [rows]
};

// Rows [begin, end).
template <Isa I, class T, class C>
struct SoftmaxKernels {
  static void softmax(const SoftmaxArgs<T, C>& args, int64_t begin, int64_t end);
  static void softmax_backward(const SoftmaxArgs<T, C>& args, int64_t begin, int64_t end);
  static void logsumexp(const SoftmaxArgs<T, C>& args, int64_t begin, int64_t end);
  static void logsumexp_backward(const SoftmaxArgs<T, C>& args, int64_t begin, int64_t end);
};

}  // namespace weft::cpu
