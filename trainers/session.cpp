#include "trainers/session.h"

#include <algorithm>
#include <chrono>

#include "trainers/check.h"
#include "trainers/console.h"
#include "trainers/run_checkpoint.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"
#include "weft/io/files.h"
#include "weft/ops/matmul.h"

namespace weft::train {

void apply_process_settings(const config::Experiment& experiment) {
  if (experiment.train().has_threads()) set_num_threads(static_cast<int>(experiment.train().threads()));
  set_anomaly_mode(experiment.train().anomaly());
  if (experiment.train().device() == config::DeviceChoice::cuda)
    throw config::ConfigError("train.device=cuda: this build has no CUDA", "use train.device=cpu or auto");
}

std::unique_ptr<LanguageModel> make_model(const config::Loaded& config, const RunData& data) {
  MemoryTag tag("parameters");
  auto model = std::make_unique<LanguageModel>(model_options(config, data.tokenizer->vocab_size()),
                                               Rng(static_cast<uint64_t>(config.experiment.seed()))["model"]);
  model->set_compute(compute_dtype(config.experiment));
  return model;
}

LoadedRun load_run(const std::string& folder, const std::vector<std::string>& overrides, cli::Console& console) {
  std::string file = folder + "/config.txtpb";
  if (!io::file_exists(file))
    throw config::ConfigError(str(folder, " is not a run: it has no config.txtpb"),
                              "name a folder that weft train made");
  LoadedRun run;
  run.config = config::load(file, overrides);
  apply_process_settings(run.config.experiment);
  run.data = prepare_data(run.config, folder, {});
  run.model = make_model(run.config, run.data);
  std::vector<std::string> messages;
  auto checkpoint = io::load_latest_checkpoint(folder + "/checkpoints", messages);
  for (const std::string& message : messages) console.message(message);
  WEFT_CHECK(checkpoint, str(folder, " holds no checkpoint"), "train it first: weft train ... --run " + folder);
  load_weights(*run.model, checkpoint->model);
  run.step = checkpoint->info.step;
  return run;
}

std::vector<int32_t> prompt_ids(const RunData& data, const std::string& text) {
  std::vector<int32_t> ids = data.tokenizer->encode(text);
  if (!ids.empty()) return ids;
  if (data.end_of_text) return {*data.end_of_text};
  const std::optional<data::Dataset>& source = data.validation ? data.validation : data.train;
  WEFT_CHECK(source, "sample: no prompt and no data to take one from", "give --prompt TEXT");
  ids.resize(static_cast<size_t>(std::min<int64_t>(source->num_tokens(), 32)));
  source->read(0, ids, data.tokenizer->vocab_size());
  return ids;
}

double measured_peak_flops(DType dtype) {
  const int64_t n = 1024;
  Tensor a = Tensor::full({n, n}, 0.5, dtype), b = Tensor::full({n, n}, 0.25, dtype);
  double best_s = 1e30, total_s = 0;
  for (int i = 0; i < 3 || (total_s < 0.5 && i < 100); ++i) {
    auto begin = std::chrono::steady_clock::now();
    Tensor c = ops::matmul(a, b, {.transpose_b = true});
    double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    best_s = std::min(best_s, s);
    total_s += s;
  }
  return 2.0 * static_cast<double>(n * n * n) / best_s;
}

}  // namespace weft::train
