#include "trainers/run/session.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "trainers/config/check.h"
#include "trainers/console/console.h"
#include "trainers/run/address.h"
#include "trainers/run/checkpoint.h"
#include "trainers/run/facts.h"
#include "trainers/run/rank_launch.h"
#include "weft/core/allocator.h"
#include "weft/core/dry_run.h"
#include "weft/core/error.h"
#include "weft/core/memory.h"
#include "weft/core/parallel.h"
#include "weft/core/rng.h"
#include "weft/core/stream.h"
#include "weft/io/files.h"
#include "weft/io/report.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/matmul.h"

namespace weft::train {

void apply_process_settings(const config::Experiment& experiment) {
  if (experiment.train().has_threads()) set_num_threads(static_cast<int>(experiment.train().threads()));
  apply_rank_settings(experiment);
}

void apply_rank_settings(const config::Experiment& experiment) {
  set_anomaly_mode(experiment.train().anomaly());
  config::DeviceChoice::Value choice = experiment.train().device();
  if (choice == config::DeviceChoice::cuda && num_cuda_devices() == 0)
    throw config::ConfigError("train.device=cuda: " + cuda_problem(), "Use train.device=cpu or auto.");
  static_assert(config::DeviceChoice::Value_ARRAYSIZE == 4, "another choice is translated here");
  bool is_cuda = choice == config::DeviceChoice::cuda ||
                 (choice == config::DeviceChoice::auto_ && num_cuda_devices() > 0 && !has_emulated_cuda());
  set_default_device(is_cuda ? Device::cuda() : Device::cpu());
}

namespace {

// Without norms and biases, which are small; doubles, since no product overflows them.
double table_and_ffn_elements(const LanguageModelOptions& o) {
  auto dim = static_cast<double>(o.dim);
  double elements = static_cast<double>(o.vocab) * dim * (o.has_tied_embedding ? 1 : 2);
  if (o.position == PositionKind::learned) elements += static_cast<double>(o.context) * dim;
  if (!o.has_ffn) return elements;
  FfnOptions ffn = o.ffn;
  ffn.dim = o.dim;
  if (o.own_ffn) {
    DryRun dry;
    return elements + static_cast<double>(o.layers) *
                          static_cast<double>(o.own_ffn({.dim = o.dim, .layers = o.layers}, Rng(0))->num_params());
  }
  double hidden = static_cast<double>(ffn_hidden(ffn)), matrices = ffn.kind == FfnKind::swiglu ? 3 : 2;
  return elements + static_cast<double>(o.layers) * matrices * dim * hidden;
}

// Makes one mixer of each kind, without its memory, to count it.
double mixer_elements(const LanguageModelOptions& o) {
  DryRun dry;
  std::vector<double> layers(o.mixers.size());  // that have each mixer
  const size_t period = o.pattern.empty() ? o.mixers.size() : o.pattern.size();
  for (size_t layer = 0; layer < static_cast<size_t>(o.layers); ++layer)
    ++layers[o.pattern.empty() ? layer % period : static_cast<size_t>(o.pattern[layer % period])];
  double elements = 0;
  for (size_t m = 0; m < o.mixers.size(); ++m)
    if (layers[m] > 0) elements += layers[m] * static_cast<double>(o.mixers[m](mixer_args(o, 0), Rng(0))->num_params());
  return elements;
}

void check_elements(double elements) {
  double bytes = 4 * elements, memory = static_cast<double>(limit_bytes(default_device()));
  if (bytes > memory)
    throw config::ConfigError(str("model: its matrices alone need ", io::rounded(bytes / 1073741824), " GiB, and ",
                                  default_device(), " has ", io::rounded(memory / 1073741824), " GiB"),
                              "lower dim, layers, hidden or vocab");
}

// The first tokens of the training text, if a mixer reads them; 0 where there are none, for a checkpoint to fill in.
std::vector<int32_t> fixed_text(const config::Loaded& config, const RunData& data,
                                const LanguageModelOptions& options) {
  std::vector<int32_t> ids;
  for (const config::Mixer& mixer : config.experiment.model().mixer())
    if (mixer.deconstructed().kind() == config::DeconstructedKind::fixed_text)
      ids.resize(static_cast<size_t>(options.context));
  if (!ids.empty() && data.train && data.train->num_tokens() >= options.context)
    data.train->read(0, ids, options.vocab);
  return ids;
}

// The run's own shards; texts that an override names become shards in a folder of their own.
PrepareOptions data_of(const config::Loaded& config, const std::string& folder,
                       const std::vector<std::string>& overrides) {
  PrepareOptions options{.keeps_shards = true};
  for (const std::string& override : overrides) {
    if (override.starts_with("data.tokenizer"))
      throw config::ConfigError(override + ": a trained model keeps its tokenizer.",
                                "Leave data.tokenizer as the run has it.");
    if (!override.starts_with("data")) continue;
    options.keeps_shards = false;
    size_t name = std::hash<std::string>{}(config.experiment.data().SerializeAsString());
    options.shards = str(folder, "/eval/data-", name);
  }
  return options;
}

}  // namespace

void check_size(const LanguageModelOptions& options) {
  double elements = table_and_ffn_elements(options);
  check_elements(elements);  // first, so that no mixer of absurd size is made to count it
  check_elements(elements + mixer_elements(options));
}

std::unique_ptr<LanguageModel> make_model(const config::Loaded& config, const RunData& data) {
  MemoryTag tag("parameters");
  LanguageModelOptions options = model_options(config, data.num_ids());
  options.fixed_text = fixed_text(config, data, options);
  check_size(options);
  auto model = std::make_unique<LanguageModel>(options, Rng(static_cast<uint64_t>(config.experiment.seed()))["model"]);
  model->set_compute(compute_dtype(config.experiment));
  return model;
}

namespace {

// `messages`: of damaged checkpoints that were passed over.
io::Checkpoint open_checkpoint(const RunAddress& address, std::vector<std::string>& messages) {
  if (!address.checkpoint.empty()) return io::load_checkpoint(address.checkpoint);
  auto checkpoint = io::load_latest_checkpoint(address.folder + "/checkpoints", messages);
  WEFT_CHECK(checkpoint, str(address.folder, " holds no checkpoint"), "continue the run until it saves one");
  return std::move(*checkpoint);
}

// A training that goes on may save another meanwhile, or remove this one.
io::Checkpoint checkpoint_of_first(int rank, const std::string& path) {
  try {
    return io::load_checkpoint(path);
  } catch (const Error& error) {
    fail(str("rank ", rank, " cannot load the checkpoint that rank 0 has: ", error.problem()),
         str("name one that stays, RUN@STEP, in a folder that every rank sees; ", error.fix()));
  }
}

}  // namespace

// An override of all of `data` may leave the tokenizer out. Ids of another one are another text to the model.
static void check_tokenizer(const config::Experiment& now, const std::string& path,
                            const std::vector<std::string>& overrides) {
  if (now.data().has_task()) return;
  if (std::ranges::none_of(overrides, [](const std::string& o) { return o.starts_with("data"); })) return;
  const config::Data before = config::load(path, {}).experiment.data();
  if (!before.has_task() && brief(before.tokenizer()) == brief(now.data().tokenizer())) return;
  const std::string was = before.has_task() ? "ids of a task" : brief(before.tokenizer());
  throw config::ConfigError(str("data: a trained model keeps its tokenizer; that of the run is ", was,
                                ", with these overrides it is ", brief(now.data().tokenizer()), "."),
                            before.has_task() ? "Give another task, data.task={..}."
                                              : "Name the text alone: data.val.path=FILE, or data.val={..}.");
}

config::Loaded config_of_run(const std::string& reference, const std::vector<std::string>& overrides,
                             const cli::Extensions& own) {
  const std::string path = find_run(reference).folder + "/config.txtpb";
  config::Loaded config = config::load(path, overrides);
  check_tokenizer(config.experiment, path, overrides);
  config.own = own;
  return config;
}

LoadedRun load_on_ranks(const std::string& reference, const std::vector<std::string>& overrides, cli::Console& console,
                        config::Loaded config, dist::Communicator* world) {
  const bool is_first = !world || world->rank() == 0;
  LoadedRun run;
  std::vector<std::string> warnings;
  run.config = std::move(config);
  io::Checkpoint checkpoint;
  if (is_first) {
    const RunAddress found = find_run(reference);
    run.folder = found.folder;
    run.data = prepare_data(run.config, run.folder, data_of(run.config, run.folder, overrides));
    checkpoint = open_checkpoint(found, warnings);
    if (world) first_text(*world, run.folder), first_text(*world, checkpoint.info.path);
  } else {
    run.folder = first_text(*world, {});
    checkpoint = checkpoint_of_first(world->rank(), first_text(*world, {}));
    run.data = prepare_data(run.config, run.folder, data_of(run.config, run.folder, overrides));
  }
  const std::string& folder = run.folder;
  run.model = make_model(run.config, run.data);
  load_model(*run.model, checkpoint.model);
  run.checkpoint = checkpoint.info.path;
  run.step = checkpoint.info.step;
  if (!is_first) return run;
  console.message(str("checkpoint: step ", run.step, " of ", folder));
  if (const std::string warning = finite_warning(checkpoint.info, folder + "/checkpoints"); !warning.empty())
    warnings.push_back(warning);
  for (const std::string& warning : warnings) console.message(warning);
  run.warning = config::join(warnings, "; ");
  return run;
}

LoadedRun load_run(const std::string& reference, const std::vector<std::string>& overrides, cli::Console& console,
                   const cli::Extensions& own) {
  config::Loaded config = config_of_run(reference, overrides, own);
  apply_process_settings(config.experiment);
  return load_on_ranks(reference, overrides, console, std::move(config), nullptr);
}

std::vector<int32_t> prompt_ids(const RunData& data, const std::string& text) {
  std::vector<int32_t> ids = data.tokenizer->encode(text);
  if (!ids.empty()) return ids;
  if (data.end_of_text && *data.end_of_text < data.tokenizer->vocab_size()) return {*data.end_of_text};
  const std::optional<data::Dataset>& source = data.validation ? data.validation : data.train;
  WEFT_CHECK(source, "sample: no prompt and no data to take one from", "give --prompt TEXT");
  ids.resize(static_cast<size_t>(std::min<int64_t>(source->num_tokens(), 32)));
  source->read(0, ids, data.tokenizer->vocab_size());
  return ids;
}

void forget_peak(Device device) {
  allocator(device).trim();
  allocator(device).reset_peak();
}

double measured_peak_flops(DType dtype) {
  const Device device = default_device();
  // A GPU shows its rate with long products, several of them in its queue, of numbers that differ: constants let its clock rise.
  const bool is_gpu = device.is_cuda() && !has_emulated_cuda();
  const int64_t n = is_gpu ? 8192 : 1024, repeats = is_gpu ? 10 : 1;
  double best_s = 1e30, total_s = 0;
  {
    Tensor a = Tensor::full({n, n}, 0.5, dtype), b = Tensor::full({n, n}, 0.25, dtype);
    if (is_gpu) ops::fill_uniform_(a, Rng(1), -1, 1), ops::fill_uniform_(b, Rng(2), -1, 1);
    synchronize(device);
    for (int i = 0; i < 3 || (total_s < 0.5 && i < 100); ++i) {
      auto begin = std::chrono::steady_clock::now();
      for (int64_t repeat = 0; repeat < repeats; ++repeat) ops::matmul(a, b, {.transpose_b = true});
      synchronize(device);
      double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      best_s = std::min(best_s, s);
      total_s += s;
    }
  }
  return 2.0 * static_cast<double>(repeats * n * n * n) / best_s;
}

}  // namespace weft::train
