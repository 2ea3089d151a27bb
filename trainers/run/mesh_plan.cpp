#include "trainers/run/mesh_plan.h"

#include <algorithm>

#include "tools/bench/bench.h"
#include "trainers/config/check.h"
#include "trainers/config/config_error.h"
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
constexpr int kMostTried = 16;            // ranks that calibrate together
constexpr double kSmallestPart = 0.85;    // of what a plan's sums say of memory that a rank may really take
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

// This thread's number of threads, for as long as it lives.
class WithThreads {
 public:
  explicit WithThreads(int threads) : before_(num_threads()) { set_num_threads(threads); }
  ~WithThreads() { set_num_threads(before_); }
  WithThreads(const WithThreads&) = delete;
  WithThreads& operator=(const WithThreads&) = delete;

 private:
  int before_;
};

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
      threads_(threads_of_rank(config)),
      subject_(planned_subject(config, vocab)),
      planner_(planner_of(config, std::move(hardware))) {
  const std::string why = config::refusal_over_ranks(config);
  if (why.empty()) return;
  if (const int context = fixed().context.value_or(1); context > 1)
    throw config::ConfigError(str("weft plan: ", context, " ranks that share each sequence: ", why, "."),
                              "Use --context 1 with this mixer.");
  if (!fixed().context) reasons_.push_back(why);
  options_.fixed.context = 1;
}

// Not those of this process, unless its ranks are planned.
int MeshPlan::threads_of_rank(const config::Loaded& config) const {
  if (options_.ranks_here == 0) return 1;
  if (config.experiment.train().has_threads()) return static_cast<int>(config.experiment.train().threads());
  return std::max(num_threads() / options_.ranks_here, 1);
}

// A teacher's run may not be here yet: then it is taken for a model of this one's sizes.
MemorySubject MeshPlan::planned_subject(const config::Loaded& config, int64_t vocab) {
  const bool has_documents = !options_.documents.empty();
  if (!config.experiment.start().has_distill()) return memory_subject(config, vocab, has_documents);
  try {
    return memory_subject(config, vocab, has_documents);
  } catch (const config::ConfigError& error) {
    config::Loaded alone = config;
    alone.experiment.mutable_start()->clear_distill();
    MemorySubject subject = memory_subject(alone, vocab, has_documents);
    subject.start = start_options(config.experiment);
    subject.teacher = subject.model;
    teacher_note_ = str("teacher    taken for a model of these sizes: ", error.what());
    return subject;
  }
}

dist::StepPlanner MeshPlan::planner_of(const config::Loaded& config, dist::Hardware hardware) {
  dist::TrainingShape shape = shape_of(config);
  if (const int64_t limit = memory_limit(config.experiment); limit < INT64_MAX)
    hardware.memory_bytes = std::min(hardware.memory_bytes, static_cast<double>(limit));
  if (options_.calibration_flops <= 0) return {std::move(shape), std::move(hardware)};
  calibrate_here(shape, hardware, options_.fixed.micro_batch.value_or(config.experiment.train().micro_batch()));
  return {std::move(shape), std::move(hardware)};
}

// Ranks calibrate at the same time, as they will work: they share cores, caches and memory. Of more than can be tried, each gets its share of
// what one reaches alone.
void MeshPlan::calibrate_here(dist::TrainingShape& shape, dist::Hardware& hardware, int64_t rows) const {
  MemorySubject subject = subject_;
  subject.parallel = {};
  subject.model.recompute = Recompute::none;
  subject.model.context = std::max<int64_t>(shape.tokens / options_.fixed.context.value_or(1), 1);
  const int threads = num_threads(), ranks = std::max(options_.ranks_here, 1);
  const bool are_tried = ranks > 1 && ranks <= kMostTried && default_device().is_cpu();
  const double flops = options_.calibration_flops / (are_tried ? std::max(1, ranks / threads) : 1);
  double share = 1;
  Calibration here;
  if (are_tried) {
    dist::run_thread_ranks(ranks, [&](dist::Communicator& world) {
      const Calibration of_rank = calibrate(subject, shape.attention, rows, flops, &world);
      if (world.rank() == 0) here = of_rank;
    });
  } else {
    share = std::min(static_cast<double>(threads) / ranks, 1.0);  // of a thread
    set_num_threads(std::max(threads / ranks, 1));
    here = calibrate(subject, shape.attention, rows, flops);
    set_num_threads(threads);
  }
  for (size_t kind = 0; kind < shape.attention.size(); ++kind) {
    shape.attention[kind].forward_flops = share * here.attention[kind].forward_flops;
    shape.attention[kind].backward_flops = share * here.attention[kind].backward_flops;
  }
  if (!shape.attention.empty()) {
    hardware.attention_forward_flops = shape.attention[0].forward_flops;
    hardware.attention_backward_flops = shape.attention[0].backward_flops;
  }
  hardware.inside = hardware.between = {.latency_s = kMessageLatency, .bytes_per_s = share * here.copy_bytes_per_s};
  if (here.other_s_per_token > 0) hardware.gemm_flops = share * 6 * shape.matmul_params / here.other_s_per_token;
  shape.matmul_params = 0;  // they are in what was timed
  shape.other_s_per_token = here.other_s_per_token / share, shape.update_s = here.update_s / share;
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
  for (const RecurrenceCall& call : calls.recurrences) {
    shape.recurrences.push_back(
        {.layers = call.count, .shape = call.shape({}, 1, subject_.compute == kF64 ? kF64 : kF32)});
    shape.recurrences.back().shape.threads = threads_;
  }
  for (const NeighbourCall& call : calls.neighbours)
    shape.neighbours.push_back(
        {.calls = call.count, .tokens = call.tokens, .numbers = call.numbers, .dtype = call.dtype});
  DryRun dry;
  {
    const LanguageModel whole(model, Rng(0));
    shape.params = static_cast<double>(whole.num_params());
    shape.matmul_params = static_cast<double>(whole.num_matmul_params());
    flops_per_token_ = whole.flops_per_token();
  }
  if (subject_.teacher) {  // a forward, of the three parts of a training
    const double forward = LanguageModel(*subject_.teacher, Rng(0)).flops_per_token() / 3;
    flops_per_token_ += forward, shape.matmul_params += forward / 6;
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
  // While micro-batches accumulate, a rank holds all of its gradients.
  const bool are_gradients_shared = choice.zero >= 2 && training().rows_per_step == choice.data * choice.micro_batch;
  const int64_t shared =
      (choice.zero >= 1 ? one.optimizer_bytes : 0) + (are_gradients_shared ? one.gradients_bytes : 0);
  const int64_t more = shared / choice.ranks() - shared + static_cast<int64_t>(step.cost.context_bytes);
  step.bytes = one.reserved_bytes + more, step.peak_bytes = one.peak_bytes + more;
  step.fits = static_cast<double>(step.bytes) <= hardware().memory_bytes;
  return step;
}

MemoryEstimate MeshPlan::dry_run(const dist::MeshChoice& choice) const {
  MemorySubject subject = subject_;
  subject.model.recompute = choice.recomputes ? Recompute::blocks : Recompute::none;
  subject.parallel.data = choice.data, subject.parallel.context = choice.context, subject.parallel.zero = choice.zero;
  subject.parallel.scheme = choice.scheme, subject.parallel.layout = choice.layout;
  const WithThreads of_rank(threads_);  // a dry run tells other ranks this thread's number
  return MemoryEstimator(std::move(subject)).of(choice.micro_batch);
}

// Bytes that states take more on the planned hardware than here, where they may travel otherwise.
double MeshPlan::more_for_states(const dist::MeshChoice& choice) const {
  if (hardware().has_engines == default_device().is_cuda()) return 0;
  dist::Hardware like_here = hardware();
  like_here.has_engines = default_device().is_cuda();
  const dist::StepPlanner here(training(), like_here);
  double more = 0;
  for (size_t kind = 0; kind < training().recurrences.size(); ++kind) {
    const dist::SchemeCost planned = planner_.carry(choice, kind), now = here.carry(choice, kind);
    more += static_cast<double>(training().recurrences[kind].layers) *
            (planned.forward_sent + planned.backward_sent - now.forward_sent - now.backward_sent);
  }
  return more * static_cast<double>(training().rows_per_step / (choice.data * choice.micro_batch));
}

PlannedStep MeshPlan::dry_step(const dist::MeshChoice& choice) {
  PlannedStep step{.choice = choice, .cost = planner_.cost(choice), .is_dry_run = true};
  const MemoryEstimate found = dry_run(choice);
  step.bytes = found.reserved_bytes, step.peak_bytes = found.peak_bytes;
  step.fits = static_cast<double>(step.bytes) <= hardware().memory_bytes;
  // What is sent beside all that is known: gathered tokens, sums of buffers. No work hides it.
  const auto micro_batches = static_cast<double>(training().rows_per_step / (choice.data * choice.micro_batch));
  const double sent =
      micro_batches * static_cast<double>(found.sent_bytes) + static_cast<double>(found.buffers_sent_bytes);
  const double more = std::max(sent - step.cost.context_sent + more_for_states(choice), 0.0);
  const dist::Link& link = choice.context <= hardware().ranks_per_node ? hardware().inside : hardware().between;
  step.cost.context_sent += more;
  step.cost.others_s += more / link.bytes_per_s;
  step.cost.step_s += more / link.bytes_per_s;
  return step;
}

std::vector<PlannedStep> MeshPlan::steps(int ranks, size_t dry_runs) {
  std::vector<PlannedStep> all;
  for (const dist::MeshChoice& choice : planner_.choices(ranks, fixed())) all.push_back(step(choice));
  // What a plan's sums say of memory may be too large: a choice just above the limit is looked at before it is given up.
  auto may_fit = [&](const PlannedStep& s) {
    const bool is_open = dry_runs > 0 && !s.is_dry_run;
    return s.fits || (is_open && kSmallestPart * static_cast<double>(s.bytes) <= hardware().memory_bytes);
  };
  auto sort = [&] {
    std::ranges::stable_sort(all, [&](const PlannedStep& a, const PlannedStep& b) {
      if (may_fit(a) != may_fit(b)) return may_fit(a);
      if (a.cost.step_s != b.cost.step_s) return a.cost.step_s < b.cost.step_s;
      return a.bytes < b.bytes;
    });
  };
  // A look may move a choice down, and others into its place.
  for (bool is_settled = false; !is_settled;) {
    sort();
    is_settled = true;
    std::vector<PlannedStep> kept;
    for (size_t i = 0; i < all.size(); ++i) {
      if (i >= dry_runs || all[i].is_dry_run) {
        kept.push_back(all[i]);
        continue;
      }
      is_settled = false;
      try {
        kept.push_back(dry_step(all[i].choice));
      } catch (const Error& error) {
        if (std::ranges::find(reasons_, error.problem()) == reasons_.end()) reasons_.push_back(error.problem());
      }
    }
    all = std::move(kept);
  }
  dry_runs = 0;  // what is open then is what its sums say
  sort();
  return all;
}

}  // namespace weft::train
