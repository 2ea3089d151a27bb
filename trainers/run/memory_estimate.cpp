#include "trainers/run/memory_estimate.h"

#include <fmt/format.h>

#include <algorithm>

#include "trainers/config/check.h"
#include "trainers/run/session.h"
#include "weft/core/dry_run.h"
#include "weft/core/memory.h"

namespace weft::train {

std::string size_text(int64_t bytes) {
  const auto size = static_cast<double>(bytes);
  if (bytes < 1 << 20) return fmt::format("{:.1f} KiB", size / 1024);
  return bytes < 1 << 30 ? fmt::format("{:.1f} MiB", size / 1048576) : fmt::format("{:.2f} GiB", size / 1073741824);
}

namespace {

// What a rank sends at the end of a step for the buffers: all ranks add their sums and counts in f64.
int64_t buffers_sent(const LanguageModel& model, int ranks) {
  int64_t numbers = 0;
  for (const NamedBuffer& b : model.buffers()) numbers += b.buffer->value().num_elements() + 1;
  return 2 * numbers * static_cast<int64_t>(size_of(kF64)) * (ranks - 1) / ranks;
}

// Two steps of the training, of two micro-batches if there are several: the second step finds what the first one left.
MemoryEstimate dry_steps(const MemorySubject& s, int64_t micro_batch) {
  DryRun dry;
  const Device device = default_device();
  const int64_t micro_batches = std::clamp<int64_t>(s.rows_per_step / (micro_batch * s.parallel.data), 1, 2);
  TrialTraining training(s, micro_batch, micro_batches, std::vector<int32_t>(static_cast<size_t>(s.model.context) + 1));
  MemoryEstimate estimate{.num_params = training.model().num_params(),
                          .weights_bytes = dry.memory(device).current_bytes};
  estimate.gradients_bytes = 4 * training.num_trained();
  training.start();
  estimate.optimizer_bytes = dry.memory(device).current_bytes - estimate.weights_bytes;
  training.step();
  const int64_t sent = training.bytes_sent();
  training.step();
  estimate.sent_bytes = (training.bytes_sent() - sent) / micro_batches;
  estimate.buffers_sent_bytes = buffers_sent(training.model(), s.parallel.ranks());

  const MemoryStats stats = dry.memory(device);
  estimate.peak_bytes = stats.peak_bytes;
  estimate.reserved_bytes = stats.reserved_bytes;
  const int64_t kept = estimate.weights_bytes + estimate.optimizer_bytes + estimate.gradients_bytes;
  estimate.activations_bytes = std::max<int64_t>(stats.peak_bytes - kept, 0);
  return estimate;
}

int64_t along(int64_t low, int64_t high, double steps) {
  return high + static_cast<int64_t>(steps * static_cast<double>(high - low));
}

}  // namespace

std::string MemoryEstimate::text() const {
  return fmt::format("{} (weights {}, gradients {}, optimiser {}, activations and the rest {})", size_text(peak_bytes),
                     size_text(weights_bytes), size_text(gradients_bytes), size_text(optimizer_bytes),
                     size_text(activations_bytes));
}

const MemoryEstimate& MemoryEstimator::dry_run(int64_t micro_batch) {
  auto known = known_.find(micro_batch);
  if (known == known_.end()) known = known_.emplace(micro_batch, dry_steps(subject_, micro_batch)).first;
  return known->second;
}

MemoryEstimate MemoryEstimator::of(int64_t micro_batch) {
  const int64_t most = std::max<int64_t>(kMostTokens * subject_.parallel.context / subject_.model.context, 2);
  if (micro_batch <= most) return dry_run(micro_batch);
  const int64_t half = most / 2;
  const MemoryEstimate &low = dry_run(half), &high = dry_run(2 * half);
  const double steps = static_cast<double>(micro_batch - 2 * half) / static_cast<double>(half);
  MemoryEstimate estimate = high;
  estimate.activations_bytes = along(low.activations_bytes, high.activations_bytes, steps);
  estimate.peak_bytes = along(low.peak_bytes, high.peak_bytes, steps);
  estimate.reserved_bytes = along(low.reserved_bytes, high.reserved_bytes, steps);
  estimate.sent_bytes = along(low.sent_bytes, high.sent_bytes, steps);
  return estimate;
}

int64_t MemoryEstimator::largest_micro_batch(const MemoryRoom& room, int64_t most) {
  int64_t fits = 0, too_large = most + 1;
  while (too_large - fits > 1) {
    const int64_t middle = fits + (too_large - fits) / 2;
    (room.holds(of(middle)) ? fits : too_large) = middle;
  }
  return fits;
}

int64_t count_params(const LanguageModelOptions& options) {
  DryRun dry;
  return LanguageModel(options, Rng(0)).num_params();
}

MemoryEstimate check_memory(const config::Loaded& config, int64_t num_ids, bool keeps_documents_apart, int ranks_here,
                            const std::string& source) {
  const config::Experiment& e = config.experiment;
  const MemorySubject subject = memory_subject(config, num_ids, keeps_documents_apart, source);
  check_size(subject.model);
  MemoryEstimator estimator(subject);
  const int64_t asked = e.train().micro_batch();
  const MemoryRoom room{.reserved_bytes = available_bytes(default_device()) / ranks_here - kOutsideBytes,
                        .peak_bytes = memory_limit(e)};
  const MemoryEstimate estimate = estimator.of(asked);
  if (room.holds(estimate)) return estimate;

  const bool is_limited = estimate.peak_bytes > room.peak_bytes;
  const std::string field = is_limited ? "train.memory_gib" : "train.micro_batch";
  const std::string problem =
      is_limited
          ? fmt::format("is {}: the tensors of a rank take {} at their peak, in steps with train.micro_batch {}.",
                        e.train().memory_gib(), estimate.text(), asked)
          : fmt::format("is {}: a step takes {} of memory, {}, and {} are left on {}{}.", asked,
                        size_text(estimate.reserved_bytes), "at its peak " + estimate.text(),
                        size_text(std::max<int64_t>(room.reserved_bytes, 0)), to_string(default_device()),
                        ranks_here > 1 ? fmt::format(" for each of {} ranks", ranks_here) : "");
  std::string others = e.train().recompute() == config::Recompute::blocks ? "" : "train.recompute=blocks, ";
  if (is_limited) others += "more ranks for each sequence (parallel.context), ";
  const int64_t largest = estimator.largest_micro_batch(room, asked - 1);
  if (largest == 0)
    config::refuse(config, field, problem,
                   str("Not even 1 fits: use ", others, "a shorter model.context or a smaller model."));
  std::string fix = str("Use train.micro_batch=", largest, ", the largest that fits");
  const int64_t rows = step_sizes(e).rows_per_step / e.parallel().data();  // of a data rank
  int64_t divisor = largest;
  while (rows % divisor != 0) --divisor;
  if (divisor != largest)
    fix += str(" (", divisor, " if train.tokens_per_step stays at ", e.train().tokens_per_step(), ")");
  config::refuse(config, field, problem,
                 fix + (others.empty() ? "." : ", or " + others.substr(0, others.size() - 2) + "."));
}

}  // namespace weft::train
