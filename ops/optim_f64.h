// Parameter updates of f64 tensors, in elementwise ops: for comparisons of whole trainings to many digits, not for speed.
#pragma once

#include <span>

#include "weft/ops/optim.h"

namespace weft::ops {

// The formulas are in weft/ops/optim.h. The arguments have been checked; all tensors are f64, and there are no working copies.
void adamw_f64(std::span<OptimTensors> group, const AdamWStep& options);
void muon_f64(std::span<OptimTensors> group, const MuonStep& options);
void schedule_free_f64(std::span<OptimTensors> group, const ScheduleFreeStep& options);
void lion_f64(std::span<OptimTensors> group, const LionStep& options);
void sgd_f64(std::span<OptimTensors> group, const SgdStep& options);

}  // namespace weft::ops
