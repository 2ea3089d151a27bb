#include "trainers/study/cells.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "src/core/file_lock.h"
#include "src/io/process.h"
#include "trainers/config/config_error.h"
#include "trainers/run/data_identity.h"
#include "trainers/run/recorder.h"
#include "trainers/study/cell_table.h"
#include "weft/core/error.h"
#include "weft/io/checkpoint.h"
#include "weft/io/events.h"
#include "weft/io/files.h"
#include "weft/io/metrics.h"
#include "weft/trainers/cli.h"

namespace weft::study {

namespace {

using Json = nlohmann::ordered_json;
using State = CellResult::State;

std::string result_file(const std::string& study_folder, const Cell& cell) {
  return study_folder + "/results/" + cell.folder + ".json";
}
// The options of the evaluations, by which it is seen that others are asked for.
std::string asked_text(const Evals& evals) {
  std::string text;
  for (const std::vector<std::string>& call : eval_calls(evals))
    for (const std::string& word : call) text += (text.empty() ? "" : " ") + word;
  return text;
}

void store(const std::string& study_folder, const Cell& cell, const CellResult& result, const std::string& asked) {
  Json metrics = Json::object();
  for (const auto& [key, value] : result.metrics) {
    if (std::isfinite(value)) metrics[key] = value;
    else metrics[key] = std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
  }
  Json out{
      {"cell", cell.folder}, {"state", to_string(result.state)}, {"problem", result.problem}, {"metrics", metrics}};
  if (!asked.empty()) out["asked"] = asked, out["answers"] = result.answers;
  // A message may quote any bytes.
  io::write_file_atomically(result_file(study_folder, cell),
                            out.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
}

io::EventTime time_now() { return {.step = 0, .wall_s = train::wall_now_s()}; }

void note_hparams(const Grid& grid, const Combination& arm, const Cell& cell, bool has_result,
                  const std::string& folder) {
  std::vector<std::pair<std::string, std::string>> hparams;
  for (size_t a = 0; a < grid.axes.size(); ++a)
    hparams.emplace_back(grid.axes[a].name, grid.axes[a].arms[arm.arms[a]].name);
  if (grid.tune) hparams.emplace_back(grid.tune->path, arm.tuned);
  hparams.emplace_back("seed", str(cell.seed));
  io::make_folders(folder);  // a run that was refused made none
  io::EventWriter events(folder, time_now().wall_s);
  events.run_of_study(hparams, arm.name, time_now());
  events.run_has_ended(has_result, time_now());
  events.flush();
}

void note_study(const Grid& grid, const std::string& folder) {
  for (const std::string& name : io::list_folder(folder))
    if (name.starts_with("events.out.tfevents.")) return;
  io::StudyHParams study{.name = grid.name, .hparams = {}, .metrics = grid.metrics};
  for (const GridAxis& axis : grid.axes) study.hparams.push_back(axis.name);
  if (grid.tune) study.hparams.push_back(grid.tune->path);
  study.hparams.push_back("seed");
  io::EventWriter events(folder, time_now().wall_s);
  events.study(study, time_now());
  events.flush();
}

// The last error with its fix, or the last line.
std::string last_message(const std::string& messages) {
  const size_t end = messages.find_last_not_of(" \n\r");
  if (end == std::string::npos) return {};
  const size_t error = messages.rfind("error: ", end);
  const size_t begin = error != std::string::npos ? error + 7 : messages.rfind('\n', end) + 1;
  const auto line_at = [&](size_t at) { return messages.substr(at, std::min(messages.find('\n', at), end + 1) - at); };
  constexpr std::string_view kFix = "\n  fix: ",
                             kIndented = "\n       ";  // as `weft` prints an Error, and a ConfigError
  if (error == std::string::npos) return line_at(begin);
  size_t fix = messages.find('\n', begin);
  if (fix != std::string::npos && messages.compare(fix, kIndented.size(), kIndented) == 0) fix += kIndented.size();
  else if (fix = messages.find(kFix, begin); fix != std::string::npos) fix += kFix.size();
  return fix == std::string::npos ? line_at(begin) : str(line_at(begin), " (fix: ", line_at(fix), ")");
}

// A run of a study that was killed may still be saving. Returns false if this one is stopped meanwhile.
bool wait_until_free(const std::string& run_folder, const CellRuns& how) {
  constexpr double kPatience_s = 0.1;  // between two looks at `is_stopping`
  if (!io::file_exists(run_folder + "/lock")) return true;
  while (!how.is_stopping()) {
    const int descriptor = open_locked(run_folder + "/lock", kPatience_s);
    if (descriptor >= 0) ::close(descriptor);
    if (descriptor >= 0 || errno != EWOULDBLOCK) return true;  // what else is wrong with it the run says
  }
  return false;
}

std::string problem_of(const std::exception& e) {
  const auto* error = dynamic_cast<const Error*>(&e);
  return error ? error->problem() : e.what();
}

constexpr double kNoLimit_s = 1e8, kGrace_s = 30;
using Environment = std::vector<std::string>;  // of a cell's processes

// Whether all questions were answered; if not, `result` says why, unless the study is stopped. Ranks share validation windows, and not the rows
// of a task.
bool evaluate(const std::string& folder, int64_t ranks, const CellRuns& how, const Environment& environment,
              CellResult& result) {
  for (const std::vector<std::string>& call : eval_calls(how.evals)) {
    std::vector<std::string> arguments{how.program, "eval", folder, "--json", "--quiet"};
    arguments.insert(arguments.end(), call.begin(), call.end());
    const bool is_of_tasks =
        std::ranges::any_of(call, [](const std::string& word) { return word.starts_with("--tasks"); });
    if (ranks > 1 && !is_of_tasks) arguments.push_back(str("--ranks=", ranks));
    const io::ProcessResult ended =
        io::run_process(arguments, "", {kNoLimit_s, how.is_stopping}, "reinstall weft", environment);
    if (ended.end == io::ProcessEnd::stopped || how.is_stopping()) return false;
    if (ended.exit_code != cli::kSuccess) {
      result.state = State::failed;
      result.problem = str("evaluation: exit code ", ended.exit_code, ": ", last_message(ended.messages));
      return false;
    }
    result.answers.push_back(ended.output);
  }
  add_metrics(scores_of(result.answers, folder), result.metrics);
  return true;
}

// Unset: it was stopped.
std::optional<CellResult> finished_cell(const std::string& folder, int64_t ranks, const CellRuns& how,
                                        const Environment& environment) {
  CellResult result = read_run(folder);
  if (result.state == State::complete && !evaluate(folder, ranks, how, environment, result) && how.is_stopping())
    return {};
  return result;
}

// In a run's folder: it is finished, and nothing trains it further.
std::string finished_mark(const std::string& folder) { return folder + "/finished"; }

// What is to be looked at of a finished run are its weights; the optimiser's state is twice as large. Checkpoints are written anew for that: if
// the disk has no room, the run keeps what it has. Returns what is wrong, or "".
std::string keep_weights_alone(const std::string& folder) {
  try {
    io::write_file_atomically(finished_mark(folder), "");
    const std::string checkpoints = folder + "/checkpoints";
    for (int64_t step : io::list_checkpoints(checkpoints)) {
      const std::string path = io::checkpoint_path(checkpoints, step);
      if (io::has_optimizer(io::read_checkpoint_info(path))) io::drop_optimizer(path);
    }
    return {};
  } catch (const Error& e) { return str(folder, " keeps the state of its optimiser: ", e.problem()); }
}

// Likewise. `is_trained`: only evaluations are missing.
std::optional<CellResult> run_cell(const Grid& grid, const Cell& cell, const CellRuns& how,
                                   const Environment& environment, bool is_trained) {
  const std::string folder = run_folder(how.folder, cell);
  std::vector<std::string> arguments{how.program, "train", grid.base};
  arguments.insert(arguments.end(), cell.overrides.begin(), cell.overrides.end());
  for (const std::string& last :
       {std::string("--quiet"), str("--with-parent=", int64_t{::getpid()}), str("--run=", folder)})
    arguments.push_back(last);
  if (cell.ranks > 1) arguments.push_back(str("--ranks=", cell.ranks));
  CellResult lost;
  if (!wait_until_free(folder, how)) return {};
  if (is_trained || io::file_exists(finished_mark(folder))) return finished_cell(folder, cell.ranks, how, environment);
  for (int attempt = 0; attempt < 2; ++attempt) {
    const io::ProcessResult ended =
        io::run_process(arguments, "", {kNoLimit_s, how.is_stopping, kGrace_s}, "reinstall weft", environment);
    if (ended.end == io::ProcessEnd::stopped || how.is_stopping()) return {};
    if (ended.exit_code == cli::kSuccess) return finished_cell(folder, cell.ranks, how, environment);
    lost.problem = str("exit code ", ended.exit_code, ": ", last_message(ended.messages));
    if (ended.exit_code == cli::kDiverged) lost.state = State::diverged;
    if (ended.exit_code == cli::kUsageError || ended.exit_code == cli::kDiverged) break;  // it would end so again
  }
  return lost;
}

std::optional<State> state_of(const std::string& name) {
  for (State state : {State::complete, State::diverged, State::failed})
    if (name == to_string(state)) return state;
  return {};
}
// As store() writes it; null is no number either.
std::optional<double> number_of(const Json& value) {
  if (value.is_number()) return value.get<double>();
  if (value.is_null() || value == "nan") return NAN;
  if (value == "inf") return INFINITY;
  if (value == "-inf") return -INFINITY;
  return {};
}

struct Stored {
  CellResult result;
  std::string asked;
};
std::optional<Stored> read_stored(const std::string& study_folder, const Cell& cell) {
  const std::string file = result_file(study_folder, cell);
  if (!io::file_exists(file)) return {};
  const Json in = Json::parse(io::read_file(file, uint64_t{1} << 26), nullptr, false);
  Stored stored;
  const auto is_text = [&](const char* key) { return in.contains(key) && in[key].is_string(); };
  const auto state = in.is_object() && is_text("state") ? state_of(in["state"].get<std::string>()) : std::nullopt;
  bool is_sound = state && is_text("problem") && in.contains("metrics") && in["metrics"].is_object() &&
                  (!in.contains("asked") || is_text("asked")) && (!in.contains("answers") || in["answers"].is_array());
  if (is_sound) {
    stored.result.state = *state;
    stored.result.problem = in["problem"].get<std::string>();
    for (const auto& [key, value] : in["metrics"].items()) {
      const std::optional<double> number = number_of(value);
      is_sound = is_sound && number;
      if (number) stored.result.metrics[key] = *number;
    }
  }
  if (is_sound && in.contains("answers"))
    for (const Json& answer : in["answers"]) {
      is_sound = is_sound && answer.is_string();
      if (answer.is_string()) stored.result.answers.push_back(answer.get<std::string>());
    }
  WEFT_CHECK(is_sound, str(file, ": is not the result of a cell"), "remove the file, and the cell is looked at again");
  if (in.contains("asked")) stored.asked = in["asked"].get<std::string>();
  return stored;
}

// Before hours go into runs that nothing can be compared with.
void require_unchanged_texts(const std::string& study_folder, const std::vector<Cell>& cells,
                             const std::vector<bool>& is_trained) {
  for (size_t i = 0; i < cells.size(); ++i) {
    if (!is_trained[i]) continue;
    const std::string folder = run_folder(study_folder, cells[i]);
    const auto identity = train::read_data_identity(folder);
    if (!identity) continue;
    if (const std::string change = train::changed_contents(*identity); !change.empty())
      throw config::ConfigError(str(folder, " has seen other texts than those that are there now: ", change, "."),
                                "Put the text back as it was, or make the study in a folder of its own (--out).");
    return;  // all runs of a study have the same texts
  }
}

}  // namespace

std::string_view to_string(State state) {
  switch (state) {
    case State::complete: return "complete";
    case State::diverged: return "diverged";
    case State::failed: return "failed";
  }
  return {};
}

std::string run_folder(const std::string& study_folder, const Cell& cell) {
  return cell.run.empty() ? study_folder + "/cells/" + cell.folder : cell.run;
}

CellResult read_run(const std::string& folder) {
  CellResult result{.state = State::complete};
  std::vector<double> speeds;
  for (const io::MetricsRecord& record : io::apply_rewinds(io::read_metrics(folder + "/metrics.jsonl")))
    for (const auto& [key, value] : record.values) {
      result.metrics[key] = value;
      if (key == "speed/tokens_per_second") speeds.push_back(value);
    }
  double mass = 0;
  int64_t heads = 0;
  for (const auto& [key, value] : result.metrics) {
    if (key.ends_with("/loss") && !std::isfinite(value)) result.state = State::diverged;
    if (key.find(".first_token_mass/") != std::string::npos) mass += value, ++heads;
  }
  if (heads > 0) result.metrics["first_token_mass"] = mass / static_cast<double>(heads);
  if (!speeds.empty()) {
    std::ranges::nth_element(speeds, speeds.begin() + static_cast<ptrdiff_t>(speeds.size() / 2));
    result.metrics["speed/tokens_per_second"] = speeds[speeds.size() / 2];
  }
  return result;
}

void require_same_contents(const std::string& study_folder, const std::vector<Cell>& cells,
                           const std::vector<std::optional<CellResult>>& results) {
  std::shared_ptr<const train::DataIdentity> first;
  std::string of_first;
  for (size_t i = 0; i < cells.size(); ++i) {
    if (!results[i] || results[i]->state != State::complete) continue;
    const std::string folder = run_folder(study_folder, cells[i]);
    const auto identity = train::read_data_identity(folder);
    if (!identity) continue;
    if (!first) first = identity, of_first = folder;
    if (const std::string other = train::other_contents(*first, *identity); !other.empty())
      throw config::ConfigError(str(of_first, " and ", folder, " have seen other texts: ", other, "."),
                                "Compare runs of one text: put it back as it was and run those again that saw another, "
                                "or run all in a folder of their own (--out, --run).");
  }
}

std::optional<CellResult> stored_result(const std::string& study_folder, const Cell& cell) {
  std::optional<Stored> stored = read_stored(study_folder, cell);
  return stored ? std::optional(std::move(stored->result)) : std::nullopt;
}

std::vector<std::optional<CellResult>> run_cells(const Grid& grid, const Arms& arms, const std::vector<Cell>& cells,
                                                 const CellRuns& how) {
  io::make_folders(how.folder + "/results");
  io::make_folders(how.folder + "/cells");
  if (how.notes_hparams) note_study(grid, how.folder);
  const std::string asked = asked_text(how.evals);
  std::vector<std::optional<CellResult>> results(cells.size());
  std::vector<size_t> open;
  std::vector<bool> is_trained(cells.size(), false);
  for (size_t i = 0; i < cells.size(); ++i) {
    const std::optional<Stored> stored = read_stored(how.folder, cells[i]);
    if (!stored) {
      open.push_back(i);
      continue;
    }
    results[i] = stored->result;
    is_trained[i] = stored->result.state == State::complete;
    const bool lacks_answers = is_trained[i] && stored->asked != asked;
    if (stored->result.state == State::failed || lacks_answers) open.push_back(i);
  }
  if (!open.empty()) require_unchanged_texts(how.folder, cells, is_trained);
  CellTable table(how.folder, arms, cells, open);
  std::atomic<size_t> next = 0;
  std::atomic<int> num_working = how.jobs;
  std::mutex one_at_a_time;  // of the table, the results and what is said
  std::exception_ptr error;
  const auto work = [&](int job) {
    Environment environment;
    if (!how.gpus.empty())
      environment.push_back("CUDA_VISIBLE_DEVICES=" + how.gpus[static_cast<size_t>(job) % how.gpus.size()]);
    for (size_t i = next++; i < open.size() && !how.is_stopping(); i = next++) try {
        const Cell& cell = cells[open[i]];
        {
          const std::lock_guard lock(one_at_a_time);
          table.begin(open[i]);
        }
        std::optional<CellResult> result;
        try {
          result = run_cell(grid, cell, how, environment, is_trained[open[i]]);
          if (!result) break;
          if (how.notes_hparams)
            note_hparams(grid, arms.all[cell.combination], cell, result->state == State::complete,
                         run_folder(how.folder, cell));
        } catch (const std::exception& e) {  // of this cell alone: the others go on
          if (!result || result->state == State::complete) result = CellResult{.problem = problem_of(e)};
        }
        std::string kept;
        if (result->state == State::complete && !grid.keeps_optimizer)
          kept = keep_weights_alone(run_folder(how.folder, cell));
        store(how.folder, cell, *result, asked);
        const std::lock_guard lock(one_at_a_time);
        if (!kept.empty()) how.say(kept);
        const auto metric = result->metrics.find(how.metric);
        how.say(table.end(open[i], (result->state == State::complete && metric != result->metrics.end()
                                        ? fmt::format("{} {:.4f}", how.metric, metric->second)
                                        : std::string(to_string(result->state))) +
                                       (result->problem.empty() ? "" : ": " + result->problem)));
        results[open[i]] = std::move(result);
      } catch (...) {
        const std::lock_guard lock(one_at_a_time);
        if (!error) error = std::current_exception();
        break;
      }
    --num_working;
  };
  std::vector<std::thread> workers;
  for (int i = 0; i < how.jobs; ++i) workers.emplace_back(work, i);
  constexpr auto kRedraw = std::chrono::milliseconds(50);
  for (int turn = 0; num_working > 0; ++turn) {
    std::this_thread::sleep_for(kRedraw);
    if (!how.show || turn % 10 != 0) continue;
    const std::lock_guard lock(one_at_a_time);
    how.show(table.lines());
  }
  for (std::thread& worker : workers) worker.join();
  if (how.show) how.show({});
  if (error) std::rethrow_exception(error);
  return results;
}

}  // namespace weft::study
