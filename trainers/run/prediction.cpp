#include "trainers/run/prediction.h"

#include <algorithm>

#include "src/training/batch.h"
#include "trainers/run/calibration.h"
#include "trainers/run/mesh_plan.h"
#include "weft/core/stream.h"

namespace weft::train {

namespace {

// Of the operations of a run. A GPU does as many more in a second.
constexpr double kShare = 0.05, kShareOfShort = 0.25, kFewFlops = 1e11, kMostFlops = 3e11, kMostFlopsOfGpu = 1e14;

double timed_flops(double of_run) {
  const double few = std::min(kShareOfShort * of_run, kFewFlops);
  return std::clamp(kShare * of_run, few, default_device().is_cuda() ? kMostFlopsOfGpu : kMostFlops);
}

// The first rows again and again, for their documents. None where an id of them is bad, which the run will tell in its time.
data::SampleSource first_rows(const RunData& data, int64_t rows) {
  try {
    return [first = data.samples()(0, rows)](int64_t, int64_t count) { return rows_of(first, 0, count); };
  } catch (const data::IdError&) { return {}; }
}

}  // namespace

Prediction predict(const config::Loaded& config, int64_t num_ids, const MemoryEstimate& memory, Team* team,
                   const RunData* data) {
  const config::Experiment& e = config.experiment;
  const ParallelOptions parallel = as_said(parallel_options(e)).parallel;
  const StepSizes sizes = step_sizes(e);
  Prediction prediction{.peak_bytes = memory.peak_bytes,
                        .sent_bytes = sizes.micro_batches * memory.sent_bytes + memory.buffers_sent_bytes};
  if (has_emulated_cuda()) return prediction;  // its times are nobody's
  const dist::Hardware here{.name = "here", .ranks_per_node = 1 << 20, .has_engines = false};
  const MeshPlanOptions fixed{.fixed = {.context = parallel.context, .micro_batch = sizes.micro_batch}};
  MeshPlan sizes_alone(config, num_ids, here, fixed);
  const dist::MeshChoice choice{.data = parallel.data,
                                .context = parallel.context,
                                .micro_batch = sizes.micro_batch,
                                .recomputes = e.train().recompute() == config::Recompute::blocks,
                                .scheme = *parallel.scheme,
                                .layout = *parallel.layout,
                                .zero = parallel.zero};
  if (!sizes_alone.planner().problem(choice).empty()) return prediction;
  prediction.sent_bytes += static_cast<int64_t>(sizes_alone.planner().cost(choice).gradients_sent);
  const double tokens = static_cast<double>(sizes.steps) * static_cast<double>(sizes.tokens_per_step);
  const double flops = timed_flops(sizes_alone.flops_per_token() * tokens / parallel.ranks());
  if (team || parallel.ranks() == 1) {
    const bool has_documents = data && data->keeps_documents_apart();
    MemorySubject subject = memory_subject(config, num_ids, has_documents);
    subject.parallel = parallel;
    prediction.step_s = time_step(subject, sizes_alone.training().attention, sizes, team, flops,
                                  has_documents ? first_rows(*data, sizes.micro_batch) : data::SampleSource());
  } else {
    MeshPlanOptions options = fixed;
    options.calibration_flops = flops, options.ranks_here = parallel.ranks();
    prediction.step_s = MeshPlan(config, num_ids, here, options).planner().cost(choice).step_s;
  }
  return prediction;
}

}  // namespace weft::train
