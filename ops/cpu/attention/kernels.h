// The attention core's compiled instances, one set per instruction set (ops/cpu/isa.h).
#pragma once

#include "ops/cpu/isa.h"
#include "weft/ops/attention.h"
#include "weft/ops/attention/problem.h"

namespace weft::cpu {

template <Isa I>
struct AttentionKernels {
  static void forward(const ops::core::Problem& problem, const ops::AttentionOptions& options);
  static void backward(const ops::core::Problem& problem, const ops::AttentionOptions& options);
  static void column_mass(const ops::core::Problem& problem, const ops::AttentionOptions& options);
  // delta[b, t, h] = dout . out - dlse (contiguous, may be null), in the computing type.
  static void delta(const ops::core::Problem& problem, const ops::core::Operand& out, const void* dlse, void* delta);
};

}  // namespace weft::cpu
