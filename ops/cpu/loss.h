// Kernels of cross-entropy over rows of logits. C is f32, or f64 for f64; targets below 0 are ignored.
#pragma once

#include "ops/cpu/isa.h"
#include "ops/cpu/norm_rows.h"

namespace weft::cpu {

template <class T, class C>
struct CrossEntropyArgs {
  Rows logits_rows = {};
  const T* logits = nullptr;
  const int32_t* targets = nullptr;  // [N], each below V
  C* losses = nullptr;               // [N]
  C* lse = nullptr;                  // [N]; the backward reads it
  const C* dlosses = nullptr;        // [N], backward
  T* dlogits = nullptr;              // [N, V], backward
  C smoothing = 0;                   // of labels
  const C* weights = nullptr;        // [V] or null for ones
  const C* total_weight = nullptr;   // their sum, where the weights are
  bool is_plain() const { return smoothing == 0 && !weights; }
};

// KL(softmax(t) || softmax(x)) of rows.
template <class T, class C>
struct KlArgs {
  Rows x_rows = {}, t_rows = {};
  const T *x = nullptr, *t = nullptr;
  C* losses = nullptr;             // [N]; the backward reads them
  const C* dlosses = nullptr;      // [N], backward
  T *dx = nullptr, *dt = nullptr;  // row-major, backward; null: not wanted
};

// One chunk of linear_cross_entropy. G, the type of the gradient, is C or bf16; it may be the memory of the logits if
// it is C.
template <class C, class G>
struct LossChunkArgs {
  int64_t vocabulary = 0;
  C* logits = nullptr;               // [n, V], overwritten by what the gradient needs
  const int32_t* targets = nullptr;  // [n]
  C* losses = nullptr;               // [n]
  G* dlogits = nullptr;              // [n, V] or null: factor * d loss / d logits before the cap
  C factor = 1;
  C softcap = 0;  // 0: off
};

// Rows [begin, end).
template <Isa I, class T, class C>
struct CrossEntropyKernels {
  static void forward(const CrossEntropyArgs<T, C>& args, int64_t begin, int64_t end);
  static void backward(const CrossEntropyArgs<T, C>& args, int64_t begin, int64_t end);
};
template <Isa I, class T, class C>
struct KlKernels {
  static void forward(const KlArgs<T, C>& args, int64_t begin, int64_t end);
  static void backward(const KlArgs<T, C>& args, int64_t begin, int64_t end);
};
template <Isa I, class C, class G>
struct LossChunkKernels {
  static void run(const LossChunkArgs<C, G>& args, int64_t begin, int64_t end);
};

}  // namespace weft::cpu
