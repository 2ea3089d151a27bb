// weft replay RUN [--steps N]: takes the first steps of a run once more and says where its records or checkpoints differ, bit for bit.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/config/config_error.h"
#include "trainers/console/console.h"
#include "trainers/console/json_text.h"
#include "trainers/run/address.h"
#include "trainers/run/checkpoint.h"
#include "trainers/run/environment.h"
#include "trainers/run/facts.h"
#include "trainers/run/session.h"
#include "trainers/run/start_model.h"
#include "trainers/run/trainer.h"
#include "weft/io/checkpoint.h"
#include "weft/io/files.h"
#include "weft/io/metrics.h"
#include "weft/trainers/cli.h"

namespace weft::cli {

namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string run;
  int64_t steps = 50;
};

struct Difference {
  int64_t step;
  std::string what, recorded, replayed;
};

struct Replay {
  int64_t steps = 0, lines = 0, checkpoints = 0;  // taken, and compared
  std::vector<Difference> differences = {};       // in the order of the steps
};

// Losses and norms of a line of metrics, as trainers/run/recorder.cpp writes them. They read back as the numbers that they were.
class Lines {
 public:
  explicit Lines(const std::string& folder) {
    for (io::MetricsRecord& record : io::apply_rewinds(io::read_metrics(folder + "/metrics.jsonl")))
      if (record.kind == "train") records_[record.step] = std::move(record);
  }

  void add(const StepResult& result, int64_t step, Replay& replay) {
    loss_ += result.loss;
    ++count_;
    const auto record = records_.find(step);
    if (record == records_.end()) return;
    ++replay.lines;
    compare(record->second, "train/loss", loss_ / static_cast<double>(count_), replay);
    compare(record->second, "train/grad_norm", result.grad_norm, replay);
    loss_ = 0, count_ = 0;
  }

 private:
  static void compare(const io::MetricsRecord& record, const char* key, double replayed, Replay& replay) {
    const auto value = record.value(key);
    if (!value || *value == replayed || (std::isnan(*value) && std::isnan(replayed))) return;
    replay.differences.push_back({record.step, key, fmt::format("{}", *value), fmt::format("{}", replayed)});
  }

  std::map<int64_t, io::MetricsRecord> records_;
  double loss_ = 0;
  int64_t count_ = 0;
};

// Weights and moments by their checksums.
void compare_checkpoints(const std::string& recorded, const std::string& replayed, int64_t step, Replay& replay) {
  ++replay.checkpoints;
  const io::CheckpointInfo a = io::read_checkpoint_info(recorded), b = io::read_checkpoint_info(replayed);
  for (const io::CheckpointInfo::StoredTensor& tensor : a.tensors) {
    const auto other = std::ranges::find_if(b.tensors, [&](const io::CheckpointInfo::StoredTensor& t) {
      return t.name == tensor.name && t.file == tensor.file;
    });
    if (other != b.tensors.end() && other->xxh3 == tensor.xxh3 && other->size == tensor.size) continue;
    replay.differences.push_back({step, tensor.name + " in " + tensor.file, fmt::format("{:016x}", tensor.xxh3),
                                  other == b.tensors.end() ? "is not there" : fmt::format("{:016x}", other->xxh3)});
    return;  // the others follow from it
  }
}

// Made for the time of a replay.
class Scratch {
 public:
  explicit Scratch(std::string path) : path_(std::move(path)) { io::make_folders(path_); }
  ~Scratch() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

Replay replay(const config::Loaded& config, const std::string& folder, int64_t steps) {
  const config::Experiment& e = config.experiment;
  const train::RunData data = train::prepare_data(config, folder, {.keeps_shards = true});
  const train::StartModel start = train::make_start(config, data, train::recorded_start(config, folder));
  train::Trainer trainer(*start.model, data.samples(),
                         train::trainer_options(e, data, train::start_loss(e, *start.model, start.teacher.get())));
  const std::vector<int64_t> saved = io::list_checkpoints(folder + "/checkpoints");
  const Scratch scratch(folder + "/replay");
  Lines lines(folder);
  Replay out{.steps = std::min(steps, trainer.sizes().steps)};
  for (int64_t step = 1; step <= out.steps; ++step) {
    lines.add(trainer.step(), step, out);
    if (std::ranges::find(saved, step) == saved.end()) continue;
    const std::string again = trainer.save(scratch.path(), "", "");
    compare_checkpoints(fmt::format("{}/checkpoints/step-{:08}", folder, step), again, step, out);
  }
  return out;
}

// What may be the reason, of the machine and the build; empty where they are the same.
std::string other_environment(const config::Experiment& e, const std::string& folder) {
  const std::string file = folder + "/environment.txtpb";
  if (!io::file_exists(file)) return {};
  const train::Facts then = train::run_facts(e, io::read_file(file)),
                     now = train::run_facts(e, train::environment_text(e.seed()));
  std::string text;
  for (size_t i = 0; i < then.size(); ++i)
    if ((then[i].first == "build" || then[i].first == "machine") && then[i] != now[i])
      text += fmt::format("{} then: {}\n{} here: {}\n", then[i].first, then[i].second, then[i].first, now[i].second);
  return text;
}

std::string text_of(const Replay& r, const std::string& other) {
  if (r.lines + r.checkpoints == 0)
    return fmt::format("{} steps replayed, and nothing is recorded of them to compare with\n", r.steps);
  std::string text = fmt::format("{} steps replayed: {} lines of metrics and {} checkpoints compared, ", r.steps,
                                 r.lines, r.checkpoints);
  if (r.differences.empty()) return text + "equal bit for bit\n";
  const Difference& first = r.differences[0];
  text += fmt::format("{} differ\nfirst at step {}: {} is {} in the run and {} here\n", r.differences.size(),
                      first.step, first.what, first.recorded, first.replayed);
  return text + other;
}

int run(const Options& options, Console& console, const Extensions& extensions) {
  const std::string folder = train::find_run(options.run).folder;
  const config::Loaded config = train::config_of_run(options.run, {}, extensions);
  const config::Experiment& e = config.experiment;
  if (const int ranks = train::parallel_options(e).ranks(); ranks > 1)
    throw config::ConfigError(fmt::format("weft replay: {} was trained on {} ranks.", options.run, ranks),
                              "Replay a run of one rank; weft parity compares ranks.");
  if (!io::file_exists(folder + "/metrics.jsonl"))
    throw config::ConfigError("weft replay: " + options.run + " has no metrics.jsonl.",
                              "Name a run that has taken steps.");
  const std::vector<int64_t> saved = io::list_checkpoints(folder + "/checkpoints");
  if (!saved.empty())
    if (const auto others = train::taken_over_by(io::checkpoint_path(folder + "/checkpoints", saved.back()));
        !others.empty())
      throw config::ConfigError(
          fmt::format("weft replay: {} went on from {}, which --resume named.", options.run, others.back()),
          "Replay a run that has taken its steps from the first one.");
  train::apply_process_settings(e);
  const Replay result = replay(config, folder, options.steps);
  const std::string other = result.differences.empty() ? "" : other_environment(e, folder);
  if (console.is_json()) {
    Json differences = Json::array();
    for (const Difference& d : result.differences)
      differences.push_back({{"step", d.step}, {"what", d.what}, {"recorded", d.recorded}, {"replayed", d.replayed}});
    console.result(json_text(Json{{"run", folder},
                                  {"steps", result.steps},
                                  {"lines", result.lines},
                                  {"checkpoints", result.checkpoints},
                                  {"differences", differences}}));
  } else {
    console.result(text_of(result, other));
  }
  return result.differences.empty() && result.lines + result.checkpoints > 0 ? kSuccess : kCheckFailed;
}

}  // namespace

Action define_replay(Arguments& app) {
  auto options = std::make_shared<Options>();
  app.add_option("RUN", options->run, "Folder of a run").type_name("RUN").required();
  app.add_option("--steps", options->steps, "Steps from the start that are taken again")
      .range(int64_t{1}, int64_t{1000000000})
      .capture_default_str()
      .type_name("N");
  return [options](Console& console, const Extensions& extensions) { return run(*options, console, extensions); };
}

}  // namespace weft::cli
