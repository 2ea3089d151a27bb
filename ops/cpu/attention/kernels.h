// The attention core's compiled instances, one set per instruction set (ops/cpu/isa.h).
#pragma once

#include "ops/cpu/isa.h"
#include "weft/ops/attention.h"
#include "weft/ops/attention/problem.h"

namespace weft::cpu {

#if defined(__x86_64__) && !defined(WEFT_BASELINE_ONLY)
inline constexpr bool kHasPairKernels = true;
#else
inline constexpr bool kHasPairKernels = false;
#endif

// T is float (f32 and bf16 tensors) or double; double exists for Isa::baseline only: gradient checks need no speed.
template <Isa I, class T>
struct AttentionKernels {
  using Number = T;
  static void forward(const ops::core::Problem& problem, const ops::AttentionOptions& options);
  static void backward(const ops::core::Problem& problem, const ops::AttentionOptions& options);
  static void statistics(const ops::core::Problem& problem, const ops::AttentionOptions& options);
  // delta[b, t, h] = dout . out - dlse (contiguous, may be null), in the computing type.
  static void delta(const ops::core::Problem& problem, const ops::core::Operand& out, const T* dlse, T* delta);
};

// The same for bf16 operands where the CPU multiplies pairs of them (weft/ops/attention/pairs.h).
struct PairKernels {
  static bool take(const ops::core::Problem& problem) {
    const bool are_bf16 = problem.q.is_bf16 && (!problem.dout.data || problem.dout.is_bf16);
    return kHasPairKernels && are_bf16 && multiplies_bf16();
  }
  static void forward(const ops::core::Problem& problem, const ops::AttentionOptions& options);
  static void backward(const ops::core::Problem& problem, const ops::AttentionOptions& options);
};

// Calls f.template operator()<Kernels>() with the kernels of the chosen instruction set for that computing type.
template <class F>
void with_attention_kernels(DType compute, F&& f) {
  if (compute == kF64) f.template operator()<AttentionKernels<Isa::baseline, double>>();
  else with_isa([&]<Isa I>() { f.template operator()<AttentionKernels<I, float>>(); });
}

}  // namespace weft::cpu
