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
#include "weft/core/pattern.h"
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
  const train::RunAddress address = train::find_run(name);
  if (!address.checkpoint.empty())
    throw ConfigError(name + ": names one checkpoint, and a report is of whole runs.",
                      "Name the run: " + address.folder + ".");
  Run run{.folder = address.folder, .experiment = train::config_of_run(name, {}, own).experiment};
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

// A folder may have any bytes as its name, and a config any characters.
std::string printable(const std::string& text) {
  auto name = Json::parse(Json(text).dump(-1, ' ', false, Json::error_handler_t::replace)).get<std::string>();
  for (char& c : name)
    if (static_cast<unsigned char>(c) < ' ' || c == '\x7f') c = '?';
  return name;
}

// A cell's folder begins with the names of its arms; another run has a name or a folder of its own.
std::string name_of(const Run& run, const Arms& arms) {
  const std::string folder = printable(run.folder.substr(run.folder.find_last_of('/') + 1));
  const size_t seed = folder.find(",seed=");
  std::string name = seed != std::string::npos       ? folder.substr(0, seed)
                     : run.experiment.name().empty() ? folder
                                                     : printable(run.experiment.name());
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
  std::string text = str(row.at("task").get<std::string>(), " of ", row.at("length").get<int64_t>(), " tokens");
  if (row.size() > 2)
    if (const auto third = std::next(row.begin(), 2); third.key() != "rows")
      text += str(", ", third.value().get<int64_t>(), " ", third.key());
  return text;
}

bool is_same_answer(const Json& a, const Json& b) {
  return std::ranges::all_of(std::array{"loss", "targets", "accuracy", "rows"},
                             [&](const char* key) { return a.value(key, Json()) == b.value(key, Json()); });
}

// Of the run as it is: an override, such as of data.val or of train.compute, gives the answer of another one.
bool is_of_run(const Json& answer, int64_t step) {
  if (answer.value("step", int64_t{-1}) != step) return false;
  for (const Json& argument : answer.value("arguments", Json::array()))
    if (!argument.get<std::string>().starts_with("--")) return false;
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

// Of each metric of a task what it was asked, and of which run.
struct Asked {
  std::string run;
  std::vector<std::string> questions;
};

// A mean over other questions is another number. Where two runs were asked differently, it is taken from all of them, and refused if it is
// what is compared.
void keep_what_was_asked_alike(Comparison& c, const std::vector<Scores>& scores) {
  std::map<std::string, Asked> first;
  std::set<std::string> unlike;
  for (size_t i = 0; i < scores.size(); ++i)
    for (const auto& [key, questions] : questions_of(scores[i])) {
      const auto [at, is_new] = first.try_emplace(key, c.cells[i].run, questions);
      if (is_new || at->second.questions == questions) continue;
      for (const std::string& metric : c.grid.metrics)
        if (matches_pattern(metric, key))
          throw ConfigError(str(at->second.run, " and ", c.cells[i].run, " were asked other questions for ", key, ": ",
                                config::join(at->second.questions, "; "), " in one, ", config::join(questions, "; "),
                                " in the other."),
                            "Evaluate both with the same --tasks, --lengths and --rows, or compare another metric.");
      unlike.insert(key);
    }
  for (std::optional<CellResult>& result : c.results)
    for (const std::string& key : unlike) result->metrics.erase(key);
}

}  // namespace

Comparison compare_runs(const std::vector<std::string>& runs, const std::vector<std::string>& metrics,
                        const cli::Extensions& own) {
  Comparison c{.grid = {.file = "weft compare", .name = "comparison"}, .arms = {}, .cells = {}, .results = {}};
  c.grid.metrics = metrics.empty() ? std::vector<std::string>{"val/loss"} : metrics;
  std::set<int64_t> seeds;
  std::vector<Scores> scores;
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
    CellResult result = read_run(run.folder);
    if (const std::string evals = run.folder + "/eval"; io::is_folder(evals))
      result.answers = answers_of(evals, run.last_step);
    scores.push_back(scores_of(result.answers, run.folder));
    add_metrics(scores.back(), result.metrics);
    c.results.push_back(std::move(result));
  }
  require_same_contents("", c.cells, c.results);
  c.grid.seeds.assign(seeds.begin(), seeds.end());
  keep_what_was_asked_alike(c, scores);
  std::set<std::string> tasks;
  for (const Scores& of_run : scores)
    for (const Scores::Task& task : of_run.tasks) tasks.insert(task.name);
  c.grid.evals.tasks.assign(tasks.begin(), tasks.end());
  count_and_match(c.grid, c.arms, own);
  return c;
}

}  // namespace weft::study
