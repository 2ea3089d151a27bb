// Parameter updates in place, one pass over memory each. Parameters and moments are f32; gradients f32.
#pragma once

#include "weft/core/tensor.h"

namespace weft::ops {

// AdamW (Loshchilov & Hutter, 1711.05101), decoupled weight decay times lr; bias correction by `step` (1 for the first).
struct AdamWStep {
  double lr = 0, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0;
  int64_t step = 1;
  double grad_scale = 1;  // multiplies the gradient: clipping without a pass of its own
};
// `working`, if defined, is the bf16 copy that the next forward reads; it is written in the same pass.
void adamw_(Tensor& param, const Tensor& grad, Tensor& moment1, Tensor& moment2, Tensor& working,
            const AdamWStep& options);

// Muon: momentum, then an approximate orthogonalisation of the matrix by five quintic Newton-Schulz steps.
struct MuonStep {
  double lr = 0, momentum = 0.95, weight_decay = 0;
  bool is_nesterov = true;
  int num_iterations = 5;
  double grad_scale = 1;
};
void muon_(Tensor& param, const Tensor& grad, Tensor& momentum, Tensor& working, const MuonStep& options);  // 2-D only
Tensor newton_schulz(const Tensor& matrix, int num_iterations);

}  // namespace weft::ops
