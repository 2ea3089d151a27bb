#include "trainers/run/prediction.h"

#include <algorithm>

#include "trainers/run/mesh_plan.h"
#include "weft/core/stream.h"

namespace weft::train {

namespace {

// A calibration does some 25 times as much as one micro-batch that it times.
constexpr double kShareOfRun = 0.02 / 25, kFewestFlops = 1e8, kMostFlops = 1e10;

}  // namespace

Prediction predict(const config::Loaded& config, int64_t num_ids, const MemoryEstimate& memory) {
  const config::Experiment& e = config.experiment;
  const ParallelOptions parallel = as_said(parallel_options(e)).parallel;
  const StepSizes sizes = step_sizes(e);
  Prediction prediction{.peak_bytes = memory.peak_bytes,
                        .sent_bytes = sizes.micro_batches * memory.sent_bytes + memory.buffers_sent_bytes};
  if (has_emulated_cuda()) return prediction;  // its times are nobody's
  const double tokens = static_cast<double>(sizes.steps) * static_cast<double>(sizes.tokens_per_step);
  const double flops = 6 * static_cast<double>(memory.num_params) * tokens;
  MeshPlan plan(config, num_ids, {.name = "here", .ranks_per_node = 1 << 20, .has_engines = false},
                {.fixed = {.context = parallel.context, .micro_batch = sizes.micro_batch},
                 .calibration_flops = std::clamp(kShareOfRun * flops, kFewestFlops, kMostFlops)});
  const dist::MeshChoice choice{.data = parallel.data,
                                .context = parallel.context,
                                .micro_batch = sizes.micro_batch,
                                .recomputes = e.train().recompute() == config::Recompute::blocks,
                                .scheme = *parallel.scheme,
                                .layout = *parallel.layout,
                                .zero = parallel.zero};
  if (!plan.planner().problem(choice).empty()) return prediction;
  const dist::StepCost cost = plan.planner().cost(choice);
  prediction.step_s = cost.step_s;
  prediction.sent_bytes += static_cast<int64_t>(cost.gradients_sent);
  return prediction;
}

}  // namespace weft::train
