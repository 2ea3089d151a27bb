#include "trainers/study/comparison.h"

#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "trainers/run/address.h"
#include "trainers/run/folder.h"
#include "trainers/run/session.h"
#include "trainers/study/match.h"
#include "weft/core/error.h"
#include "weft/io/checkpoint.h"
#include "weft/io/files.h"
#include "weft/io/metrics.h"

namespace weft::study {

namespace {

using config::ConfigError;

using Json = nlohmann::ordered_json;

struct Run {
  std::string folder;
  config::Experiment experiment;
  int64_t last_step = 0;  // of its checkpoints
};

Run read(const std::string& name, const cli::Extensions& own) {
  Run run{.folder = train::find_run(name).folder, .experiment = train::config_of_run(name, {}, own).experiment};
  const std::string file = run.folder + "/metrics.jsonl";
  int64_t step = 0;
  if (io::file_exists(file))
    for (const io::MetricsRecord& record : io::apply_rewinds(io::read_metrics(file)))
      step = std::max(step, record.step);
  const config::Train& train = run.experiment.train();
  const int64_t steps = train.tokens() / train.tokens_per_step();
  if (step < steps)
    throw ConfigError(str(name, ": is not finished: it has ", step, " of ", steps, " steps."),
                      "Continue it with weft train, or leave it out.");
  const std::vector<int64_t> checkpoints = io::list_checkpoints(run.folder + "/checkpoints");
  run.last_step = checkpoints.empty() ? steps : checkpoints.back();
  return run;
}

bool is_same_arm(const config::Experiment& a, const config::Experiment& b) {
  for (const config::Difference& d : config::differences(a, b)) {
    const bool is_free = d.path == "seed" || d.path == "name" ||
                         std::ranges::any_of(train::resumable_fields(),
                                             [&](const std::string& field) { return d.path.starts_with(field); });
    if (!is_free) return false;
  }
  return true;
}

// A cell's folder begins with the names of its arms; another run has a name or a folder of its own.
std::string name_of(const Run& run, const Arms& arms) {
  const std::string folder = run.folder.substr(run.folder.find_last_of('/') + 1);
  const size_t seed = folder.find(",seed=");
  std::string name = seed != std::string::npos       ? folder.substr(0, seed)
                     : run.experiment.name().empty() ? folder
                                                     : run.experiment.name();
  const auto is_taken = [&](const std::string& text) {
    return std::ranges::any_of(arms.all, [&](const Combination& arm) { return arm.name == text; });
  };
  if (!is_taken(name)) return name;
  if (!is_taken(folder)) return folder;
  int number = 2;
  while (is_taken(str(name, "#", number))) ++number;
  return str(name, "#", number);
}

// "length 64", or "mqar of 64 tokens, 8 pairs".
std::string question_of(const Json& row) {
  if (!row.contains("task")) return str("length ", row.at("length").get<int64_t>());
  const auto second = std::next(row.begin(), 2);
  return str(row.at("task").get<std::string>(), " of ", row.at("length").get<int64_t>(), " tokens",
             second.key() == "rows" ? "" : str(", ", second.value().get<int64_t>(), " ", second.key()));
}

bool is_same_answer(const Json& a, const Json& b) {
  return std::ranges::all_of(std::array{"loss", "targets", "accuracy", "rows"},
                             [&](const char* key) { return a.value(key, Json()) == b.value(key, Json()); });
}

// Of the run as it is, and not with other data or another model.
bool is_of_run(const Json& answer, int64_t step) {
  if (answer.value("step", int64_t{-1}) != step) return false;
  for (const Json& argument : answer.value("arguments", Json::array()))
    for (const char* part : {"data.", "model.", "eval."})
      if (argument.get<std::string>().starts_with(part)) return false;
  return true;
}

// What `weft eval` has stored of the last checkpoint. A question that was asked again, such as with --by-position, counts once.
std::vector<std::string> answers_of(const std::string& folder, int64_t step) {
  struct Answer {
    std::string question, file;
    Json row;
  };
  std::map<std::string, std::vector<Answer>> kinds;
  std::vector<std::string> names = io::list_folder(folder);
  std::ranges::sort(names);
  for (const std::string& name : names) {
    if (!name.starts_with("step-") || !name.ends_with(".json")) continue;
    const std::string file = folder + "/" + name;
    try {
      const Json in = Json::parse(io::read_file(file));
      if (!is_of_run(in, step)) continue;
      for (const char* kind : {"validation", "tasks"})
        for (const Json& row : in.value(kind, Json::array())) {
          const std::string question = question_of(row);
          std::vector<Answer>& all = kinds[kind];
          const auto at = std::ranges::find(all, question, &Answer::question);
          if (at == all.end()) all.push_back({question, file, row});
          else if (!is_same_answer(at->row, row))
            throw ConfigError(str(at->file, " and ", file, " have other answers to one question: ", question, "."),
                              "Remove one of the two files.");
          else if (row.size() > at->row.size()) at->row = row;
        }
    } catch (const Json::exception& e) {
      fail(str(file, ": is not what weft eval writes: ", std::string_view(e.what())),
           "remove the file, and evaluate the run again");
    }
  }
  std::vector<std::string> answers;
  for (const auto& [kind, rows] : kinds) {
    Json list = Json::array();
    for (const Answer& answer : rows) list.push_back(answer.row);
    answers.push_back(Json{{kind, list}}.dump());
  }
  return answers;
}

CellResult result_of(const Run& run, std::set<std::string>& tasks) {
  CellResult result = read_run(run.folder);
  const std::string evals = run.folder + "/eval";
  if (!io::is_folder(evals)) return result;
  result.answers = answers_of(evals, run.last_step);
  const Scores scores = scores_of(result.answers);
  add_metrics(scores, result.metrics);
  for (const Scores::Task& task : scores.tasks) tasks.insert(task.name);
  return result;
}

}  // namespace

Comparison compare_runs(const std::vector<std::string>& runs, const std::vector<std::string>& metrics,
                        const cli::Extensions& own) {
  Comparison c{.grid = {.file = "weft compare", .name = "comparison"}, .arms = {}, .cells = {}, .results = {}};
  c.grid.metrics = metrics.empty() ? std::vector<std::string>{"val/loss"} : metrics;
  std::set<int64_t> seeds;
  std::set<std::string> tasks;
  std::vector<config::Experiment> of_arms;
  for (const std::string& name : runs) {
    Run run = read(name, own);
    c.grid.text += "# " + run.folder + "\n";
    const auto found =
        std::ranges::find_if(of_arms, [&](const auto& other) { return is_same_arm(other, run.experiment); });
    const auto arm = static_cast<size_t>(found - of_arms.begin());
    if (found == of_arms.end()) {
      c.arms.all.push_back({.arms = {},
                            .name = name_of(run, c.arms),
                            .overrides = {},
                            .base = run.folder + "/config.txtpb",
                            .experiment = run.experiment});
      of_arms.push_back(run.experiment);
      config::Experiment first = of_arms[0];
      first.set_seed(run.experiment.seed());
      if (const std::string other = other_batches(first, run.experiment); !other.empty())
        throw ConfigError(str(runs[0], " and ", name, " have seen other batches: ", other, "."),
                          "Compare runs of the same data; their seeds pair them.");
    }
    for (const Cell& cell : c.cells)
      if (cell.combination == arm && cell.seed == run.experiment.seed())
        throw ConfigError(
            str(cell.run, " and ", run.folder, " have the same config and the same seed ", cell.seed, "."),
            "Give each run once.");
    seeds.insert(run.experiment.seed());
    c.cells.push_back({.combination = arm, .seed = run.experiment.seed(), .folder = run.folder, .run = run.folder});
    c.results.push_back(result_of(run, tasks));
  }
  require_same_contents("", c.cells, c.results);
  c.grid.seeds.assign(seeds.begin(), seeds.end());
  c.grid.evals.tasks.assign(tasks.begin(), tasks.end());
  count_and_match(c.grid, c.arms, own);
  return c;
}

}  // namespace weft::study
