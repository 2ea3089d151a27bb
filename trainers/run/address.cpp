#include "trainers/run/address.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>

#include "trainers/config/config_error.h"
#include "weft/io/checkpoint.h"
#include "weft/io/files.h"
#include "weft/io/metrics.h"

namespace weft::train {

namespace {

namespace fs = std::filesystem;
using config::ConfigError;

constexpr const char* kForms =
    "Name a folder that weft train made, RUN@STEP, RUN@best, RUN@latest, or a checkpoint's folder.";

bool is_run(const std::string& folder) {
  return io::file_exists(folder + "/config.txtpb") && !io::file_exists(folder + "/manifest");
}

std::string without_slashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

// "steps 5, 10, 15 (best 10)", the newest eight.
std::string steps_text(const std::string& run) {
  std::vector<int64_t> steps = io::list_checkpoints(run + "/checkpoints");
  std::string text = steps.size() > 8 ? "steps ..., " : "steps ";
  for (size_t i = steps.size() > 8 ? steps.size() - 8 : 0; i < steps.size(); ++i)
    text += str(steps[i], i + 1 < steps.size() ? ", " : "");
  auto best = best_validation(run);
  bool has_best = best && std::binary_search(steps.begin(), steps.end(), best->step);
  return text + (has_best ? str(" (best ", best->step, ")") : "");
}

void check_any(const std::string& run) {
  if (!io::list_checkpoints(run + "/checkpoints").empty()) return;
  throw ConfigError(
      str(run, ": the run has no checkpoint yet."),
      "Continue it with weft train until it saves one: on Ctrl-C, after checkpoint.every steps, or at its end.");
}

// The run around a checkpoint's folder: RUN/checkpoints/step-N, also through links.
RunAddress around(const std::string& checkpoint) {
  for (const fs::path& path : {fs::path(checkpoint), fs::canonical(checkpoint)}) {
    std::string run = path.parent_path().parent_path().string();
    if (path.parent_path().filename() == "checkpoints" && is_run(run.empty() ? "." : run))
      return {run.empty() ? "." : run, checkpoint};
  }
  throw ConfigError(
      str(checkpoint, ": the checkpoint lies outside of its run, whose config, tokenizer and data are needed."),
      "Name it where it was written, RUN/checkpoints/step-N, or copy the whole run folder.");
}

std::string best_checkpoint(const std::string& run) {
  auto best = best_validation(run);
  if (!best)
    throw ConfigError(str(run, "@best: the run has no validation loss."), str("It has ", steps_text(run), "."));
  std::string path = io::checkpoint_path(run + "/checkpoints", best->step);
  if (!io::is_folder(path))
    throw ConfigError(str(run, "@best: the best validation, ", best->loss, " nats per token, was after step ",
                          best->step, ", whose checkpoint is not kept."),
                      str("It has ", steps_text(run), "; set checkpoint.keep_best=true in runs to come."));
  return path;
}

// The part behind the @ of a run that is there.
RunAddress named(const std::string& run, const std::string& word) {
  check_any(run);
  if (word == "latest") return {run, ""};
  if (word == "best") return {run, best_checkpoint(run)};
  int64_t step = -1;
  auto [end, code] = std::from_chars(word.data(), word.data() + word.size(), step);
  if (code != std::errc() || end != word.data() + word.size() || step < 0) {
    const std::string words[] = {"best", "latest"};
    std::string near = config::nearest(word, words);
    throw ConfigError(
        str(run, "@", word, ": '", word, "' is no step", near.empty() ? "." : str(". Did you mean '", near, "'?")),
        "Write RUN@STEP, RUN@best or RUN@latest; it has " + steps_text(run) + ".");
  }
  std::string path = io::checkpoint_path(run + "/checkpoints", step);
  if (!io::is_folder(path))
    throw ConfigError(str(run, "@", step, ": the run has no checkpoint of step ", step, "."),
                      str("It has ", steps_text(run), "."));
  return {run, path};
}

[[noreturn]] void fail_no_run(const std::string& path) {
  if (io::is_folder(path + "/checkpoints") || io::file_exists(path + "/latest"))
    throw ConfigError(path + ": holds checkpoints, but is no run: it has no config.txtpb.",
                      io::file_exists(path + "/latest") ? "Name the run's folder, the one above." : kForms);
  if (io::is_folder(path))
    throw ConfigError(path + " is not a run: it has no config.txtpb, and no manifest as a checkpoint has.", kForms);
  if (io::file_exists(path))
    throw ConfigError(
        path + " is not a run but a file.",
        path.ends_with(".txtpb") ? "A config is trained first, with weft train; then name the run's folder." : kForms);
  fs::path parent = fs::path(path).parent_path();
  if (parent.filename() == "checkpoints" && is_run(parent.parent_path().string()))
    throw ConfigError(path + ": there is no such checkpoint.",
                      str("The run has ", steps_text(parent.parent_path().string()), "."));
  std::vector<std::string> runs;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(parent.empty() ? "." : parent, code))
    if (is_run(entry.path().string())) runs.push_back(entry.path().filename().string());
  std::string near = config::nearest(fs::path(path).filename().string(), runs);
  throw ConfigError(str(path, " is not a run: there is no such folder.",
                        near.empty() ? "" : str(" Did you mean '", (parent / near).string(), "'?")),
                    kForms);
}

}  // namespace

RunAddress find_run(const std::string& text) {
  std::string path = without_slashes(text);
  if (io::file_exists(path + "/manifest")) return around(path);
  if (is_run(path)) {
    check_any(path);
    return {path, ""};
  }
  size_t at = path.rfind('@');
  if (io::file_exists(path) || at == std::string::npos) fail_no_run(path);
  std::string run = without_slashes(path.substr(0, at));
  if (!is_run(run)) fail_no_run(run);
  return named(run, path.substr(at + 1));
}

std::optional<BestValidation> best_validation(const std::string& run_folder, int64_t last_step) {
  const std::string file = run_folder + "/metrics.jsonl";
  if (!io::file_exists(file)) return std::nullopt;
  std::optional<BestValidation> best;
  std::optional<double> num_targets;
  for (const io::MetricsRecord& record : io::apply_rewinds(io::read_metrics(file))) {
    auto loss = record.value("val/loss");
    if (record.kind != "val" || !loss || record.step > last_step) continue;
    double targets = record.value("val/targets").value_or(0);
    if (!num_targets) num_targets = targets;
    bool is_better = std::isfinite(*loss) && (!best || *loss < best->loss);
    if (is_better && targets == *num_targets) best = BestValidation{record.step, *loss};
  }
  return best;
}

}  // namespace weft::train
