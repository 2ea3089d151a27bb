#include "trainers/run/start_model.h"

#include <algorithm>
#include <filesystem>

#include "trainers/config/config_error.h"
#include "trainers/config/text_reader.h"
#include "trainers/run/address.h"
#include "trainers/run/state.pb.h"
#include "weft/core/error.h"
#include "weft/core/memory.h"
#include "weft/core/pattern.h"
#include "weft/io/checkpoint.h"
#include "weft/io/files.h"
#include "weft/training/training.h"

namespace weft::train {

namespace {

std::string checkpoint_of(const RunAddress& address) {
  if (!address.checkpoint.empty()) return address.checkpoint;
  std::vector<std::string> passed_over;
  auto newest = io::find_latest_checkpoint(address.folder + "/checkpoints", passed_over);
  if (!newest)
    throw config::ConfigError(str("start.from: ", address.folder, " holds no checkpoint."),
                              "Continue that run until it saves one.");
  return *newest;
}

uint64_t weights_of(const std::string& checkpoint) {
  for (const io::CheckpointInfo::File& file : io::read_checkpoint_info(checkpoint).files)
    if (file.name == "model.safetensors") return file.digest.xxh3;
  return 0;
}

std::string record_of(const std::string& run_folder) { return run_folder + "/start.txtpb"; }

StartRecord first_record(const config::Experiment& experiment) {
  const std::string checkpoint = checkpoint_of(find_run(experiment.start().from()));
  StartRecord record;
  record.set_checkpoint(std::filesystem::absolute(checkpoint).lexically_normal().string());
  record.set_weights(weights_of(checkpoint));
  return record;
}

// The first names, and how many there are.
std::string some_of(const std::vector<std::string>& names) {
  constexpr size_t kShown = 8;
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i) text += str(i > 0 ? ", " : "", names[i]);
  return names.size() > kShown ? str(text, " and ", names.size() - kShown, " more") : text;
}

std::vector<std::string> lines_of(const io::LoadReport& report, const io::Checkpoint& checkpoint, size_t targets) {
  std::vector<std::string> lines{
      str("start: ", report.loaded.size(), " of ", targets, " tensors are those of ", checkpoint.info.path)};
  if (!report.missing.empty()) lines.push_back("start: new are " + some_of(report.missing));
  if (!report.mismatched.empty())
    lines.push_back("start: of another shape, and new, are " + some_of(report.mismatched));
  if (!report.unexpected.empty()) lines.push_back("start: without a place are " + some_of(report.unexpected));
  return lines;
}

bool matches_any(const std::vector<std::string>& patterns, const std::string& name) {
  return std::any_of(patterns.begin(), patterns.end(),
                     [&](const std::string& pattern) { return matches_pattern(pattern, name); });
}

}  // namespace

std::string freeze(LanguageModel& model, const StartOptions& options) {
  const std::vector<NamedParam> params = model.params();
  for (const auto* patterns : {&options.frozen, &options.trained})
    for (const std::string& pattern : *patterns)
      if (std::none_of(params.begin(), params.end(),
                       [&](const NamedParam& p) { return matches_pattern(pattern, p.name); }))
        throw config::ConfigError(str(patterns == &options.frozen ? "start.frozen" : "start.trained",
                                      ": no parameter matches '", pattern, "'."),
                                  str("Names are such as ", params.front().name, "; * stands for any text."));
  int64_t frozen = 0, all = 0;
  for (const NamedParam& p : params) {
    all += p.param->value().num_elements();
    if (!matches_any(options.frozen, p.name) || matches_any(options.trained, p.name)) continue;
    p.param->set_frozen(true);
    frozen += p.param->value().num_elements();
  }
  if (frozen == all)
    throw config::ConfigError("start.frozen: every parameter is frozen.", "Name some in start.trained.");
  return frozen > 0 ? str("start: ", frozen, " of ", all, " parameters are frozen") : "";
}

std::optional<LanguageModelOptions> teacher_options(const config::Loaded& config, int64_t num_ids,
                                                    const std::string& source) {
  const config::Start& start = config.experiment.start();
  if (!config.experiment.has_start() || !start.has_distill()) return std::nullopt;
  const RunAddress address = find_run(source.empty() ? start.from() : source);
  config::Loaded own = config::load(address.folder + "/config.txtpb", {});
  own.own = config.own;
  LanguageModelOptions options = model_options(own, num_ids);
  options.fixed_text.resize(static_cast<size_t>(options.context));  // is in the checkpoint
  return options;
}

void check_start(const config::Experiment& experiment) {
  if (experiment.has_start()) first_record(experiment);
}

std::string recorded_start(const config::Loaded& config, const std::string& run_folder) {
  if (!config.experiment.has_start()) return {};
  const std::string path = record_of(run_folder);
  if (!io::file_exists(path)) return first_record(config.experiment).checkpoint();
  StartRecord record;
  const std::string fault = config::parse_record(record, io::read_file(path));
  WEFT_CHECK(fault.empty(), str(path, ":", fault, ": the checkpoint that the run began as cannot be read"),
             "restore the file");
  if (!io::file_exists(record.checkpoint() + "/manifest"))
    throw config::ConfigError(str("start.from: the run began as ", record.checkpoint(), ", which is gone."),
                              "Put that checkpoint back, or begin another run with --run.");
  if (weights_of(record.checkpoint()) != record.weights())
    throw config::ConfigError(
        str("start.from: the run began as ", record.checkpoint(), ", whose weights have changed since."),
        "Put the checkpoint of that time back, or begin another run with --run.");
  return record.checkpoint();
}

std::string find_start(const config::Loaded& config, const RunFolder& folder) {
  const config::Experiment& e = config.experiment;
  if (!e.has_start()) return {};
  const bool goes_on = folder.existed() && !io::list_checkpoints(folder.file("checkpoints")).empty();
  if (goes_on && !e.start().has_distill()) return {};
  if (!folder.existed() || !io::file_exists(record_of(folder.path())))
    io::write_file_atomically(record_of(folder.path()), config::to_text(first_record(e)));
  return recorded_start(config, folder.path());
}

// Rows of an embedding, and a teacher's ids, are those of one tokenizer. A task has no text, so its ids may take any rows.
static void check_same_ids(const RunData& data, const std::string& source, bool has_teacher) {
  const auto of_source = read_data_identity(find_run(source).folder);  // null for imported weights
  if (!of_source || of_source->tokenizer() == data.tokenizer->fingerprint() || (data.task && !has_teacher)) return;
  throw config::ConfigError(
      str("start.from: the run of ", source,
          " has another tokenizer, so its ids stand for other texts than those here (", data.tokenizer->name(), ", ",
          data.tokenizer->vocab_size(), " ids)."),
      "Use the tokenizer of that run; that of characters is made of the characters of its texts.");
}

StartModel make_start(const config::Loaded& config, const RunData& data, const std::string& source) {
  StartModel start{.model = make_model(config, data), .teacher = nullptr};
  const config::Experiment& e = config.experiment;
  if (!e.has_start()) return start;
  const StartOptions options = start_options(e);
  std::optional<io::Checkpoint> checkpoint;
  if (!source.empty()) {
    check_same_ids(data, source, options.distill.has_value());
    checkpoint = io::load_checkpoint(source);
    const std::vector<io::NamedTensor> targets = model_tensors(*start.model);
    const io::LoadReport report = io::load_into(checkpoint->model, targets, io::LoadRule::partial);
    if (report.loaded.empty())
      throw config::ConfigError(str("start.from: no tensor of ", source, " fits this model: ", io::to_string(report)),
                                "Give the model the sizes of that run.");
    start.lines = lines_of(report, *checkpoint, targets.size());
  }
  if (std::string line = freeze(*start.model, options); !line.empty()) start.lines.push_back(line);
  if (options.distill) {
    // As it was, by the config of its own run.
    MemoryTag tag("parameters");
    start.teacher = std::make_unique<LanguageModel>(*teacher_options(config, data.num_ids(), source), Rng(0));
    load_model(*start.teacher, checkpoint.value().model);
    start.teacher->set_compute(compute_dtype(e));
    start.lines.push_back(str("start: the loss is ", options.distill->weight,
                              " of the distance from that model, temperature ", options.distill->temperature));
  }
  return start;
}

TokenLoss start_loss(const config::Experiment& experiment, LanguageModel& model, LanguageModel* teacher) {
  const StartOptions options = start_options(experiment);
  return teacher ? distillation_loss(model, *teacher, *options.distill) : TokenLoss();
}

}  // namespace weft::train
