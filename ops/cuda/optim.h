// Optimiser kernels on CUDA devices: the same calls as ops/cpu/optim.h.
#pragma once

#include "ops/cpu/optim.h"

namespace weft::cuda {

using cpu::AdamWFactors;

void adamw(Tensor& param, const Tensor& grad, Tensor& moment1, Tensor& moment2, Tensor& working,
           const AdamWFactors& factors);
void muon_momentum(Tensor& buffer, const Tensor& grad, Tensor& update, float beta, float grad_scale, bool is_nesterov);
void muon_apply(Tensor& param, const Tensor& update, Tensor& working, float keep, float step_size);

}  // namespace weft::cuda
