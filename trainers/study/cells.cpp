#include "trainers/study/cells.h"

#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "src/core/file_lock.h"
#include "src/io/process.h"
#include "trainers/console/progress.h"
#include "trainers/run/recorder.h"
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
std::string run_folder(const std::string& study_folder, const Cell& cell) {
  return study_folder + "/cells/" + cell.folder;
}

void store(const std::string& study_folder, const Cell& cell, const CellResult& result) {
  Json metrics = Json::object();
  for (const auto& [key, value] : result.metrics) {
    if (std::isfinite(value)) metrics[key] = value;
    else metrics[key] = std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
  }
  const Json out{
      {"cell", cell.folder}, {"state", to_string(result.state)}, {"problem", result.problem}, {"metrics", metrics}};
  io::write_file_atomically(result_file(study_folder, cell), out.dump(1) + "\n");
}

// The last value of every key. A loss that is not finite at the end has diverged, whatever the process says.
CellResult read_run(const std::string& folder) {
  CellResult result{.state = State::complete};
  for (const io::MetricsRecord& record : io::apply_rewinds(io::read_metrics(folder + "/metrics.jsonl")))
    for (const auto& [key, value] : record.values) result.metrics[key] = value;
  for (const auto& [key, value] : result.metrics)
    if (key.ends_with("/loss") && !std::isfinite(value)) result.state = State::diverged;
  return result;
}

io::EventTime time_now() { return {.step = 0, .wall_s = train::wall_now_s()}; }

void note_hparams(const Grid& grid, const Combination& arm, const Cell& cell, bool has_result,
                  const std::string& folder) {
  std::vector<std::pair<std::string, std::string>> hparams;
  for (size_t a = 0; a < grid.axes.size(); ++a)
    hparams.emplace_back(grid.axes[a].name, grid.axes[a].arms[arm.arms[a]].name);
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
  study.hparams.push_back("seed");
  io::EventWriter events(folder, time_now().wall_s);
  events.study(study, time_now());
  events.flush();
}

std::string last_line(const std::string& messages) {
  const size_t end = messages.find_last_not_of(" \n\r");
  if (end == std::string::npos) return {};
  const size_t error = messages.rfind("error: ", end);
  const size_t begin = error != std::string::npos ? error + 7 : messages.rfind('\n', end) + 1;
  return messages.substr(begin, std::min(messages.find('\n', begin), end + 1) - begin);
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

// Unset: it was stopped.
std::optional<CellResult> run_cell(const Grid& grid, const Cell& cell, const CellRuns& how) {
  const std::string folder = run_folder(how.folder, cell);
  std::vector<std::string> arguments{how.program, "train", grid.base};
  arguments.insert(arguments.end(), cell.overrides.begin(), cell.overrides.end());
  for (const std::string& last :
       {std::string("--quiet"), str("--with-parent=", int64_t{::getpid()}), str("--run=", folder)})
    arguments.push_back(last);
  constexpr double kNoLimit_s = 1e8, kGrace_s = 30;
  CellResult failed;
  if (!wait_until_free(folder, how)) return {};
  for (int attempt = 0; attempt < 2; ++attempt) {
    const io::ProcessResult ended =
        io::run_process(arguments, "", {kNoLimit_s, how.is_stopping, kGrace_s}, "reinstall weft");
    if (ended.end == io::ProcessEnd::stopped || how.is_stopping()) return {};
    if (ended.exit_code == cli::kSuccess) return read_run(folder);
    failed.problem = str("exit code ", ended.exit_code, ": ", last_line(ended.messages));
    if (ended.exit_code == cli::kUsageError) break;  // it would say the same again
  }
  return failed;
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

std::optional<CellResult> stored_result(const std::string& study_folder, const Cell& cell) {
  const std::string file = result_file(study_folder, cell);
  if (!io::file_exists(file)) return {};
  const Json in = Json::parse(io::read_file(file, uint64_t{1} << 24), nullptr, false);
  CellResult result;
  const auto is_text = [&](const char* key) { return in.contains(key) && in[key].is_string(); };
  const bool is_sound =
      in.is_object() && is_text("state") && is_text("problem") && in.contains("metrics") && in["metrics"].is_object();
  WEFT_CHECK(is_sound, str(file, ": is not the result of a cell"), "remove the file, and the cell is looked at again");
  for (State state : {State::complete, State::diverged, State::failed})
    if (in["state"] == to_string(state)) result.state = state;
  result.problem = in["problem"].get<std::string>();
  for (const auto& [key, value] : in["metrics"].items())
    result.metrics[key] = value.is_number() ? value.get<double>()
                          : value == "inf"  ? INFINITY
                          : value == "-inf" ? -INFINITY
                                            : NAN;
  return result;
}

std::vector<std::optional<CellResult>> run_cells(const Grid& grid, const Arms& arms, const std::vector<Cell>& cells,
                                                 const CellRuns& how) {
  io::make_folders(how.folder + "/results");
  io::make_folders(how.folder + "/cells");
  note_study(grid, how.folder);
  std::vector<std::optional<CellResult>> results(cells.size());
  std::vector<size_t> open;
  for (size_t i = 0; i < cells.size(); ++i)
    if (!(results[i] = stored_result(how.folder, cells[i])) || results[i]->state == State::failed) open.push_back(i);
  const auto begin = std::chrono::steady_clock::now();
  std::atomic<size_t> next = 0;
  size_t num_done = 0;
  std::mutex one_at_a_time;
  std::exception_ptr error;
  const auto work = [&] {
    for (size_t i = next++; i < open.size() && !how.is_stopping(); i = next++) try {
        const Cell& cell = cells[open[i]];
        const auto cell_begin = std::chrono::steady_clock::now();
        std::optional<CellResult> result = run_cell(grid, cell, how);
        if (!result) return;
        note_hparams(grid, arms.all[cell.combination], cell, result->state == State::complete,
                     run_folder(how.folder, cell));
        store(how.folder, cell, *result);
        const auto now = std::chrono::steady_clock::now();
        const std::lock_guard lock(one_at_a_time);
        ++num_done;
        const double here_s = std::chrono::duration<double>(now - begin).count();
        const double left_s = here_s / static_cast<double>(num_done) * static_cast<double>(open.size() - num_done);
        const auto metric = result->metrics.find(grid.metrics[0]);
        how.say(fmt::format(
            "{}/{} {} {}{}, {}, about {} left", num_done + cells.size() - open.size(), cells.size(), cell.folder,
            result->state == State::complete && metric != result->metrics.end()
                ? fmt::format("{} {:.4f}", grid.metrics[0], metric->second)
                : std::string(to_string(result->state)),
            result->problem.empty() ? "" : ": " + result->problem,
            cli::duration_text(std::chrono::duration<double>(now - cell_begin).count()), cli::duration_text(left_s)));
        results[open[i]] = std::move(result);
      } catch (...) {
        const std::lock_guard lock(one_at_a_time);
        if (!error) error = std::current_exception();
        return;
      }
  };
  std::vector<std::thread> workers;
  for (int i = 1; i < how.jobs; ++i) workers.emplace_back(work);
  work();
  for (std::thread& worker : workers) worker.join();
  if (error) std::rethrow_exception(error);
  return results;
}

}  // namespace weft::study
