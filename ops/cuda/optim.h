// Optimiser kernels on CUDA devices: many tensors at a time; equations in ops/cpu/optim.h.
#pragma once

#include <span>

#include "ops/cpu/optim.h"
#include "weft/ops/optim.h"

namespace weft::cuda {

void adamw(std::span<ops::OptimTensors> group, const cpu::AdamWFactors& factors);
// Momenta and updates [N, rows, columns] of N matrices, and what the orthogonal updates do to their parameters.
void muon_momentum(std::span<ops::OptimTensors> group, Tensor& updates, float beta, float grad_scale, bool is_nesterov);
void muon_apply(std::span<ops::OptimTensors> group, const Tensor& updates, float keep, float step_size);
void schedule_free(std::span<ops::OptimTensors> group, const cpu::ScheduleFreeFactors& factors);
void lion(std::span<ops::OptimTensors> group, const cpu::LionFactors& factors);
void sgd(std::span<ops::OptimTensors> group, const cpu::SgdFactors& factors);

}  // namespace weft::cuda
