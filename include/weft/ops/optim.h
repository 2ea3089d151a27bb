// Parameter updates in place, one pass over memory each. Parameters and moments are f32; gradients f32. A group of parameters is one call:
// on a GPU one kernel for many of them, and one batch of matrices for those of a shape.
#pragma once

#include <span>

#include "weft/core/tensor.h"

namespace weft::ops {

// A parameter with what its update reads and writes. `working`, if defined, is the bf16 copy that the next forward reads; it is written
// in the same pass.
struct OptimTensors {
  Tensor param, grad;
  Tensor moment1;       // Muon's momentum
  Tensor moment2 = {};  // of AdamW
  Tensor working = {};
};

// AdamW (Loshchilov & Hutter, 1711.05101), decoupled weight decay times lr; bias correction by `step` (1 for the first).
struct AdamWStep {
  double lr = 0, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0;
  int64_t step = 1;
  double grad_scale = 1;  // multiplies the gradient: clipping without a pass of its own
};
void adamw_(std::span<OptimTensors> group, const AdamWStep& options);

// Muon: momentum, then an approximate orthogonalisation of the matrix by five quintic Newton-Schulz steps.
struct MuonStep {
  double lr = 0, momentum = 0.95, weight_decay = 0;
  bool is_nesterov = true;
  int num_iterations = 5;
  double grad_scale = 1;
};
void muon_(std::span<OptimTensors> group, const MuonStep& options);  // matrices only
Tensor newton_schulz(const Tensor& matrix, int num_iterations);      // [rows, columns], or a batch of those

}  // namespace weft::ops
