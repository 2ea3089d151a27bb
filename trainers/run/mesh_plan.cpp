#include "trainers/run/mesh_plan.h"

#include <algorithm>

#include "tools/bench/bench.h"
#include "trainers/run/calibration.h"
#include "trainers/run/session.h"
#include "weft/core/dry_run.h"
#include "weft/core/memory.h"
#include "weft/core/parallel.h"
#include "weft/models/mixing_calls.h"

namespace weft::train {

namespace {

// Of the peak rates, in training steps and in attention (docs/performance.md).
constexpr double kReachedByProducts = 0.8, kReachedByAttention = 0.8;
constexpr double kMessageLatency = 1e-6;  // between threads
// Packed rows that are looked at: as many tokens, and no more rows.
constexpr int64_t kMostSampled = int64_t{1} << 19, kMostRows = 8;

// Equal neighbours of the list become one entry.
void add_layer(std::vector<dist::AttentionLayers>& all, dist::AttentionLayers layer) {
  for (dist::AttentionLayers& known : all)
    if (layer.layers = known.layers; known == layer) {
      ++known.layers;
      return;
    }
  layer.layers = 1;
  all.push_back(layer);
}

// Whether all that layers send is attention of the list, or states of recurrences.
bool is_all_counted(const MixingCalls& calls, const std::vector<dist::AttentionLayers>& known) {
  return !calls.gathers_tokens && std::ranges::all_of(calls.attention, [&](const AttentionCall& call) {
    return !call.is_gathered && std::ranges::any_of(known, [&](const dist::AttentionLayers& layers) {
      return layers.heads == call.heads && layers.kv_heads == call.kv_heads && layers.key_width == call.key_width &&
             layers.value_width == call.value_width && layers.window == call.window;
    });
  });
}

}  // namespace

dist::Hardware hardware_here(DType compute, int ranks) {
  const double peak = measured_peak_flops(compute) / ranks, bandwidth = bench::memory_bandwidth() / ranks;
  // A message between threads is a copy, which reads and writes.
  const dist::Link copy{.latency_s = kMessageLatency, .bytes_per_s = bandwidth / 2};
  return {.name = "here",
          .gemm_flops = kReachedByProducts * peak,
          .attention_forward_flops = kReachedByAttention * peak,
          .attention_backward_flops = kReachedByAttention * peak,
          .memory_bytes = static_cast<double>(available_bytes(default_device()) - kOutsideBytes) / ranks,
          .memory_bytes_per_s = bandwidth,
          .ranks_per_node = 1 << 20,
          .inside = copy,
          .between = copy,
          .has_engines = false};
}

dist::FixedChoices fixed_choices(const config::Loaded& config) {
  const ParallelOptions parallel = parallel_options(config.experiment);
  dist::FixedChoices fixed{.scheme = parallel.scheme, .layout = parallel.layout, .zero = parallel.zero};
  auto is_said = [&](const char* field) { return config.origins.has(str("parallel.", field)); };
  if (is_said("data")) fixed.data = parallel.data;
  if (is_said("context")) fixed.context = parallel.context;
  return fixed;
}

MeshPlan::MeshPlan(const config::Loaded& config, int64_t vocab, dist::Hardware hardware, MeshPlanOptions options)
    : options_(std::move(options)),
      subject_(memory_subject(config, vocab, !options_.documents.empty())),
      planner_(planner_of(config, std::move(hardware))) {}

dist::StepPlanner MeshPlan::planner_of(const config::Loaded& config, dist::Hardware hardware) {
  dist::TrainingShape shape = shape_of(config);
  if (const int64_t limit = memory_limit(config.experiment); limit < INT64_MAX)
    hardware.memory_bytes = std::min(hardware.memory_bytes, static_cast<double>(limit));
  if (options_.calibration_flops <= 0) return {std::move(shape), std::move(hardware)};
  MemorySubject subject = subject_;
  subject.model.recompute = Recompute::none;
  const int64_t of_row = shape.tokens / options_.fixed.context.value_or(1);
  const int64_t rows = options_.fixed.micro_batch.value_or(config.experiment.train().micro_batch());
  const int threads = num_threads(), ranks = options_.ranks_here;
  set_num_threads(std::max(threads / ranks, 1));
  const Calibration here =
      calibrate(subject, shape.attention, rows * std::max<int64_t>(of_row, 1), options_.calibration_flops);
  set_num_threads(threads);
  const double share = std::min(static_cast<double>(threads) / ranks, 1.0);  // of a thread, where ranks are more
  hardware.attention_forward_flops = share * here.attention_forward_flops;
  hardware.attention_backward_flops = share * here.attention_backward_flops;
  hardware.inside = hardware.between = {.latency_s = kMessageLatency, .bytes_per_s = share * here.copy_bytes_per_s};
  shape.matmul_params = 0;  // they are in what was timed
  shape.other_s_per_token = here.other_s_per_token / share, shape.update_s = here.update_s / share;
  return {std::move(shape), std::move(hardware)};
}

dist::TrainingShape MeshPlan::shape_of(const config::Loaded& config) {
  const LanguageModelOptions& model = subject_.model;
  const StepSizes sizes = step_sizes(config.experiment);
  dist::TrainingShape shape{.tokens = sizes.context,
                            .rows_per_step = sizes.rows_per_step,
                            .dtype = subject_.compute,
                            .block = parallel_options(config.experiment).block};
  // Rows of one long stream of documents, as packing cuts them.
  const int64_t rows = options_.documents.empty() ? 0 : std::clamp<int64_t>(kMostSampled / sizes.context, 1, kMostRows);
  for (int64_t row = 0; row < rows; ++row)
    shape.documents.push_back(data::packed_documents(
        options_.documents, sizes.context, Rng(config.experiment.seed())["plan"][static_cast<uint64_t>(row)]));
  const MixingCalls calls = mixing_calls(model, subject_.compute, sizes.context);
  for (const RecurrenceCall& call : calls.recurrences)
    shape.recurrences.push_back(
        {.layers = call.count, .shape = call.shape({}, 1, subject_.compute == kF64 ? kF64 : kF32)});
  DryRun dry;
  {
    const LanguageModel whole(model, Rng(0));
    shape.params = static_cast<double>(whole.num_params());
    shape.matmul_params = static_cast<double>(whole.num_matmul_params());
    flops_per_token_ = whole.flops_per_token();
  }
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
      add_layer(shape.attention, {.heads = softmax->heads,
                                  .kv_heads = kv_heads,
                                  .key_width = width,
                                  .value_width = width,
                                  .window = softmax->window,
                                  .share = keys / causal_keys(sizes.context, softmax->window)});
    } else if (const auto* mla = make.target<MlaOptions>()) {
      const int64_t width = mla->head_dim ? mla->head_dim : model.dim / mla->heads;
      const int64_t rotated = mla->rope_dim ? mla->rope_dim : std::max<int64_t>(width / 2 / 2 * 2, 2);
      add_layer(shape.attention, {.heads = mla->heads,
                                  .kv_heads = mla->heads,
                                  .key_width = width + rotated,
                                  .value_width = width,
                                  .latent = mla->kv_rank ? mla->kv_rank : 2 * width,
                                  .rotated = rotated});
    } else {
      ++num_other_layers_;
      shape.matmul_params += mixer->flops_per_token(keys) / 6;
    }
  }
  if (is_all_counted(calls, shape.attention)) num_other_layers_ = 0;
  return shape;
}

const MemoryEstimate& MeshPlan::memory(int context, int64_t micro_batch, bool recomputes) {
  const auto key = std::make_tuple(context, micro_batch, recomputes);
  if (auto known = known_.find(key); known != known_.end()) return known->second;
  auto estimator = estimators_.find({context, recomputes});
  if (estimator == estimators_.end()) {
    MemorySubject subject = subject_;
    subject.parallel = {};  // what ranks share and what attention over ranks takes is added by step()
    subject.model.context = (training().tokens + context - 1) / context;
    if (!subject.model.fixed_text.empty()) subject.model.fixed_text.resize(static_cast<size_t>(subject.model.context));
    subject.model.recompute = recomputes ? Recompute::blocks : Recompute::none;
    estimator = estimators_.emplace(std::make_pair(context, recomputes), MemoryEstimator(std::move(subject))).first;
  }
  return known_.emplace(key, estimator->second.of(micro_batch)).first->second;
}

PlannedStep MeshPlan::step(const dist::MeshChoice& choice) {
  PlannedStep step{.choice = choice, .cost = planner_.cost(choice)};
  const MemoryEstimate& one = memory(choice.context, choice.micro_batch, choice.recomputes);
  const int64_t shared = (choice.zero >= 1 ? one.optimizer_bytes : 0) + (choice.zero >= 2 ? one.gradients_bytes : 0);
  const int64_t more = shared / choice.ranks() - shared + static_cast<int64_t>(step.cost.context_bytes);
  step.bytes = one.reserved_bytes + more, step.peak_bytes = one.peak_bytes + more;
  step.fits = static_cast<double>(step.bytes) <= hardware().memory_bytes;
  return step;
}

std::vector<PlannedStep> MeshPlan::steps(int ranks) {
  std::vector<PlannedStep> all;
  for (const dist::MeshChoice& choice : planner_.choices(ranks, fixed())) all.push_back(step(choice));
  std::ranges::stable_sort(all, [](const PlannedStep& a, const PlannedStep& b) {
    if (a.fits != b.fits) return a.fits;
    if (a.cost.step_s != b.cost.step_s) return a.cost.step_s < b.cost.step_s;
    return a.bytes < b.bytes;
  });
  return all;
}

}  // namespace weft::train
