#include "trainers/run/mesh_plan.h"

#include <algorithm>

#include "tools/bench/bench.h"
#include "trainers/run/session.h"
#include "weft/core/dry_run.h"
#include "weft/core/memory.h"
#include "weft/core/parallel.h"

namespace weft::train {

namespace {

// Of the peak rates, in training steps and in attention (docs/performance.md).
constexpr double kReachedByProducts = 0.8, kReachedByAttention = 0.8;

// Equal neighbours of the list become one entry.
void add_layer(std::vector<dist::AttentionLayers>& all, dist::AttentionLayers layer) {
  for (dist::AttentionLayers& known : all)
    if (known.heads == layer.heads && known.kv_heads == layer.kv_heads && known.width == layer.width &&
        known.share == layer.share) {
      ++known.layers;
      return;
    }
  all.push_back(layer);
}

}  // namespace

dist::Hardware hardware_here(DType compute, int ranks) {
  const double peak = measured_peak_flops(compute) / ranks, bandwidth = bench::memory_bandwidth() / ranks;
  // A message between threads is a copy, which reads and writes.
  const dist::Link copy{.latency_s = 1e-6, .bytes_per_s = bandwidth / 2};
  return {.name = "here",
          .gemm_flops = kReachedByProducts * peak,
          .attention_forward_flops = kReachedByAttention * peak,
          .attention_backward_flops = kReachedByAttention * peak,
          .memory_bytes = static_cast<double>(available_bytes(default_device()) - kOutsideBytes) / ranks,
          .memory_bytes_per_s = bandwidth,
          .ranks_per_node = 1 << 20,
          .inside = copy,
          .between = copy};
}

MeshPlan::MeshPlan(const config::Loaded& config, int64_t vocab, dist::Hardware hardware, int zero)
    : subject_(memory_subject(config, vocab, false)), hardware_(std::move(hardware)), zero_(zero) {
  const LanguageModelOptions& model = subject_.model;
  const StepSizes sizes = step_sizes(config.experiment);
  training_ = {.tokens = sizes.context, .rows_per_step = sizes.rows_per_step, .bytes = subject_.compute == kBF16 ? 2 : 4};
  DryRun dry;
  {
    const LanguageModel whole(model, Rng(0));
    training_.params = static_cast<double>(whole.num_params());
    training_.matmul_params = static_cast<double>(whole.num_matmul_params());
    flops_per_token_ = whole.flops_per_token();
  }
  const double causal_keys = (static_cast<double>(sizes.context) + 1) / 2;
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    const auto at = static_cast<size_t>(layer);
    const size_t kind = model.pattern.empty() ? at % model.mixers.size()
                                              : static_cast<size_t>(model.pattern[at % model.pattern.size()]);
    const MixerMaker& make = model.mixers[kind];
    const auto mixer = make(mixer_args(model, layer), Rng(0));
    const double keys = mixer->keys_per_query(sizes.context);
    if (const auto* softmax = make.target<SoftmaxOptions>()) {
      const int64_t kv_heads = softmax->kv_heads ? softmax->kv_heads : softmax->heads;
      const int64_t width = softmax->head_dim ? softmax->head_dim : model.dim / softmax->heads;
      add_layer(training_.attention, {1, softmax->heads, kv_heads, width, keys / causal_keys});
    } else {
      ++num_other_layers_;
      training_.matmul_params += mixer->flops_per_token(keys) / 6;
    }
  }
}

const MemoryEstimate& MeshPlan::memory(int context, int64_t micro_batch, bool recomputes) {
  const auto key = std::make_tuple(context, micro_batch, recomputes);
  if (auto known = known_.find(key); known != known_.end()) return known->second;
  auto estimator = estimators_.find({context, recomputes});
  if (estimator == estimators_.end()) {
    MemorySubject subject = subject_;
    subject.model.context = training_.tokens / context;
    if (!subject.model.fixed_text.empty()) subject.model.fixed_text.resize(static_cast<size_t>(subject.model.context));
    subject.model.recompute = recomputes ? Recompute::blocks : Recompute::none;
    estimator = estimators_.emplace(std::make_pair(context, recomputes), MemoryEstimator(std::move(subject))).first;
  }
  return known_.emplace(key, estimator->second.of(micro_batch)).first->second;
}

PlannedStep MeshPlan::step(const dist::MeshChoice& choice) {
  PlannedStep step{.choice = choice, .cost = dist::step_cost(training_, choice, hardware_)};
  const MemoryEstimate& one = memory(choice.context, choice.micro_batch, choice.recomputes);
  const int64_t shared = (zero_ >= 1 ? one.optimizer_bytes : 0) + (zero_ >= 2 ? one.gradients_bytes : 0);
  step.bytes = one.reserved_bytes - shared + shared / choice.ranks() + static_cast<int64_t>(step.cost.context_bytes);
  step.fits = static_cast<double>(step.bytes) <= hardware_.memory_bytes;
  return step;
}

std::vector<PlannedStep> MeshPlan::steps(int ranks) {
  std::vector<PlannedStep> all;
  for (const dist::MeshChoice& choice : dist::mesh_choices(training_, ranks, hardware_)) all.push_back(step(choice));
  std::ranges::stable_sort(all, [](const PlannedStep& a, const PlannedStep& b) {
    if (a.fits != b.fits) return a.fits;
    if (a.cost.step_s != b.cost.step_s) return a.cost.step_s < b.cost.step_s;
    return a.bytes < b.bytes;
  });
  return all;
}

}  // namespace weft::train
