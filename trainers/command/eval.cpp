// weft eval RUN [path=value]... [--lengths 1024,4096] [--by-position] [--ranks N]: validation loss of a run's checkpoint, over several lengths
// and by position with a picture.
// weft eval RUN --tasks mqar,copy [--lengths 64,256]: what it recalls.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/command/stored_result.h"
#include "trainers/config/config_error.h"
#include "trainers/config/row_bound.h"
#include "trainers/console/console.h"
#include "trainers/run/address.h"
#include "trainers/run/evaluate.h"
#include "trainers/run/named_tasks.h"
#include "trainers/run/rank_launch.h"
#include "trainers/run/run_mesh.h"
#include "trainers/run/session.h"
#include "trainers/run/team.h"
#include "trainers/run/value_pictures.h"
#include "weft/core/error.h"
#include "weft/trainers/cli.h"
#include "weft/training/recall_score.h"

namespace weft::cli {

namespace {

struct Options {
  ConfigArguments run;
  std::vector<int64_t> lengths;
  std::optional<int> ranks = {};
  bool by_position = false, by_row = false;
  std::vector<std::string> tasks;
  int64_t rows = 256;
};

nlohmann::ordered_json to_json(const Evaluation& e, int64_t length) {
  nlohmann::ordered_json row{{"length", length}};
  if (e.has_targets()) row["loss"] = e.loss();
  if (e.has_targets() && !std::isnan(e.standard_error)) row["loss_se"] = e.standard_error;
  if (e.has_targets()) row["ppl"] = e.perplexity();
  if (e.num_bytes > 0) row["bpb"] = e.bits_per_byte();
  row["targets"] = e.num_targets;
  return row;
}

// Losses by how much the model has seen, in groups that double: 0, 1, 2-3, 4-7, ...
struct SeenGroup {
  int64_t from = 0, to = 0;
  Evaluation::AtPosition sum = {};
};
std::vector<SeenGroup> by_tokens_seen(const Evaluation& e) {
  std::vector<SeenGroup> groups;
  for (int64_t seen = 0; seen < static_cast<int64_t>(e.positions.size()); ++seen) {
    if (seen == 0 || std::has_single_bit(static_cast<uint64_t>(seen))) groups.push_back({.from = seen});
    groups.back().to = seen;
    groups.back().sum.nats += e.positions[static_cast<size_t>(seen)].nats;
    groups.back().sum.targets += e.positions[static_cast<size_t>(seen)].targets;
  }
  std::erase_if(groups, [](const SeenGroup& group) { return group.sum.targets == 0; });
  return groups;
}

void add_positions(const Evaluation& e, nlohmann::ordered_json& row, std::string& text, train::LengthLosses& drawn) {
  row["by_position"] = nlohmann::ordered_json::array();
  for (const SeenGroup& group : by_tokens_seen(e)) {
    const double loss = group.sum.nats / static_cast<double>(group.sum.targets);
    row["by_position"].push_back(
        {{"from", group.from}, {"to", group.to}, {"loss", loss}, {"targets", group.sum.targets}});
    drawn.by_seen.emplace_back(0.5 * static_cast<double>(group.from + group.to), loss);
    const std::string range = group.to > group.from ? fmt::format("{}-{}", group.from, group.to) : str(group.from);
    text += fmt::format("  after {:>13} tokens: {:.4f} ({} targets)\n", range, loss, group.sum.targets);
  }
}

nlohmann::ordered_json to_json(const RecallScore& score, const std::string& name, const data::RecallTask& task,
                               int64_t size, bool by_row) {
  nlohmann::ordered_json row{{"task", name}, {"length", task.context()}};
  if (size > 0) row[task.size_name()] = size;
  row.update({{"rows", score.rows}, {"accuracy", score.all.share()}});
  if (!std::isnan(score.standard_error)) row["accuracy_se"] = score.standard_error;
  row.update({{"whole_rows", static_cast<double>(score.whole_rows) / static_cast<double>(score.rows)},
              {"loss", score.nats},
              {"targets", score.all.targets}});
  for (const auto& [name, count] : score.groups)
    row["groups"].push_back({{"group", name}, {"accuracy", count.share()}, {"targets", count.targets}});
  if (by_row)
    for (const HitCount& count : score.by_row)
      row["row_hits"].push_back(count.hits), row["row_targets"].push_back(count.targets);
  return row;
}

std::string to_text(const RecallScore& score, const std::string& name, const data::RecallTask& task, int64_t size) {
  std::string text =
      fmt::format("{} of {} tokens{}: accuracy {:.4f}{}, whole rows {:.4f}, loss {:.4f} ({} rows)\n", name,
                  task.context(), size > 0 ? fmt::format(", {} {}", size, task.size_name()) : "", score.all.share(),
                  std::isnan(score.standard_error) ? "" : fmt::format(" +- {:.4f}", score.standard_error),
                  static_cast<double>(score.whole_rows) / static_cast<double>(score.rows), score.nats, score.rows);
  if (score.groups.size() < 2) return text;
  for (const auto& [name, count] : score.groups)
    text += fmt::format("  {:<24} {:.4f} ({} targets)\n", name, count.share(), count.targets);
  return text;
}

void score_tasks(const Options& options, train::LoadedRun& run, const std::vector<int64_t>& lengths,
                 nlohmann::ordered_json& rows, std::string& text) {
  const int64_t vocab = run.model->options().vocab;
  std::vector<std::pair<std::string, data::RecallTask>> tasks;  // each is known to fit before any is computed
  for (const std::string& name : options.tasks)
    for (int64_t length : lengths) try {
        const data::RecallOptions task = train::named_task(name, run.config.experiment.data(), vocab);
        tasks.emplace_back(name, train::rows_of(name, task, length));
      } catch (const config::ConfigError& e) {
        throw config::ConfigError(e.problem(), fmt::format("{} The model has {} ids.", e.fix(), vocab));
      }
  for (const auto& [name, task] : tasks)
    for (int64_t size : task.sizes()) {
      const data::RecallTask sized = task.with_size(size);
      const RecallScore score = score_recall(*run.model, sized, options.rows);
      rows.push_back(to_json(score, name, sized, size, options.by_row));
      text += to_text(score, name, sized, size);
    }
}

void check(const Options& options, const config::Loaded& config) {
  const config::Experiment& e = config.experiment;
  for (const std::string& name : options.tasks) config::check_choice("--tasks", name, train::task_names(), "task");
  const std::string bound = config::bound_of_rows(e.model());
  for (int64_t length : options.lengths) {
    constexpr int64_t kLongest = (int64_t{1} << 31) - 1;  // as model.context
    if (length < 1 || length > kLongest)
      throw config::ConfigError(fmt::format("--lengths {}: not a length.", length),
                                fmt::format("Use lengths of 1 to {} tokens.", kLongest));
    if (!bound.empty() && length > e.model().context())
      throw config::ConfigError(
          fmt::format("--lengths {}: the model {} for {} tokens.", length, bound, e.model().context()),
          "Use lengths between 1 and the training context.");
  }
  for (const std::string& name : options.tasks)
    for (int64_t length : options.lengths.empty() ? std::vector<int64_t>{e.model().context()} : options.lengths)
      train::rows_of(name, train::named_task(name, e.data(), train::kUnknownVocab), length);
}

// A shorter text would give the loss of shorter rows. Each token but the last has a target.
void check_rows(const std::vector<int64_t>& lengths, const train::RunData& data) {
  for (int64_t length : lengths)
    if (!data.task && data.validation->num_tokens() <= length)
      throw config::ConfigError(
          fmt::format("--lengths {}: the validation text has {} tokens, so no row of {} with its targets.", length,
                      data.validation->num_tokens(), length),
          fmt::format("Use lengths up to {}, or a longer text, data.val.path=FILE.",
                      data.validation->num_tokens() - 1));
}

// On every rank; the first one speaks.
int evaluate_run(const Options& options, const config::Loaded& config, dist::Communicator* world, Console& console) {
  std::optional<train::Team> team;
  if (world) team.emplace(*world, train::run_choice(config, options.run.overrides(), *world));
  const bool speaks = !team || team->leads();
  Console silent(Verbosity::quiet, false);
  train::LoadedRun run =
      train::load_on_ranks(options.run.file(), options.run.overrides(), speaks ? console : silent, config, world);
  const auto& e = run.config.experiment;
  std::vector<int64_t> lengths = options.lengths.empty() ? std::vector<int64_t>{e.model().context()} : options.lengths;
  auto rows = nlohmann::ordered_json::array();
  std::string text;
  std::vector<train::LengthLosses> drawn;
  if (!options.tasks.empty()) score_tasks(options, run, lengths, rows, text);
  WEFT_CHECK(run.data.validation || !options.tasks.empty(), "eval: the run's config names no validation data",
             "add data.val.path=FILE after the run");
  if (options.tasks.empty()) check_rows(options.lengths, run.data);
  for (int64_t length : options.tasks.empty() ? lengths : std::vector<int64_t>()) {
    const Evaluation result =
        train::validate(*run.model, run.data,
                        {.length = length,
                         .batch = std::max<int64_t>(1, e.train().micro_batch() * e.model().context() / length),
                         .by_position = options.by_position,
                         .attention = train::attention_backend(e)},
                        team ? &*team : nullptr);
    rows.push_back(to_json(result, length));
    text += fmt::format("length {}: {} ({} targets)\n", length, result.text(), result.num_targets);
    drawn.push_back({.length = length});
    drawn.back().loss = result.has_targets() ? result.loss() : NAN;
    drawn.back().standard_error = result.standard_error;
    if (options.by_position) add_positions(result, rows.back(), text, drawn.back());
  }
  if (!speaks) return kSuccess;
  nlohmann::ordered_json out{
      {"run", run.folder}, {"step", run.step}, {options.tasks.empty() ? "validation" : "tasks", rows}};
  if (!run.warning.empty()) out["warning"] = run.warning;
  std::vector<std::string> arguments = options.run.overrides();
  if (lengths != std::vector<int64_t>{e.model().context()})
    arguments.push_back(fmt::format("--lengths {}", fmt::join(lengths, ",")));
  if (options.by_position) arguments.push_back("--by-position");
  if (!options.tasks.empty())
    arguments.push_back(fmt::format("--tasks {} --rows {}", fmt::join(options.tasks, ","), options.rows));
  if (options.by_row) arguments.push_back("--by-row");
  const std::string name = result_name(fmt::format("step-{:08}", run.step), arguments);
  const std::string picture = draw_result(train::loss_pictures(drawn), run.folder, name, console);
  if (!picture.empty()) out["picture"] = picture;
  print_and_store(console, std::move(out), text, run.folder, name, arguments);
  return kSuccess;
}

int run(const Options& options, Console& console, const Extensions& extensions) {
  config::Loaded config;
  auto prepare = [&] {
    config = train::config_of_run(options.run.file(), options.run.overrides(), extensions);
    check(options, config);
    return train::RankLaunch{.config = &config,
                             .folder = train::find_run(options.run.file()).folder + "/eval",
                             .check = [&](int ranks, const std::string& started_by) {
                               if (ranks > 1) train::run_mesh(config, ranks, started_by);
                             }};
  };
  return train::run_on_ranks(console, options.ranks, prepare,
                             [&](dist::Communicator* world) { return evaluate_run(options, config, world, console); });
}

}  // namespace

Action define_eval(Arguments& app) {
  auto options = std::make_shared<Options>();
  options->run.add_run(app);
  app.add_option("--lengths", options->lengths, "Lengths of the windows; default the training context")
      .delimiter(',')
      .type_name("N,N")
      .takes_size();
  const Argument ranks =
      app.add_option("--ranks", options->ranks, "Ranks that share the windows, as threads").type_name("N");
  const Argument by_position =
      app.add_flag("--by-position", options->by_position, "Also the loss by how many tokens the model has seen");
  app.add_option(
         "--tasks", options->tasks,
         fmt::format("Accuracy on tasks of recall in place of the validation loss: {}. The run's own task is as "
                     "its config says; 'data={{task{{mqar{{pairs:4,updates:2}}}}}}' behind RUN gives another",
                     fmt::join(train::task_names(), ", ")))
      .delimiter(',')
      .type_name("TASK,TASK")
      .excludes(by_position)
      .excludes(ranks);
  app.add_option("--rows", options->rows, "--tasks: test rows of each length and size")
      .range(int64_t{1}, int64_t{1000000})
      .capture_default_str()
      .type_name("N");
  app.add_flag("--by-row", options->by_row, "--tasks: --json also has the hits of every row");
  return [options](Console& console, const Extensions& extensions) { return run(*options, console, extensions); };
}

}  // namespace weft::cli
