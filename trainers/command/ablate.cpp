// weft ablate GRID [--out DIR] [--jobs N] [--only axis=arm]... [--dry-run]: a study, from its grid to its report.
// weft ablate report DIR: the report of what there is.
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <sstream>

#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/config/config_error.h"
#include "trainers/console/console.h"
#include "trainers/console/json_text.h"
#include "trainers/console/live_lines.h"
#include "trainers/console/stop_signal.h"
#include "trainers/study/arm_checks.h"
#include "trainers/study/match.h"
#include "trainers/study/study_folder.h"
#include "trainers/study/study_plan.h"
#include "trainers/study/study_report.h"
#include "trainers/study/tune.h"
#include "weft/core/parallel.h"
#include "weft/core/stream.h"
#include "weft/io/files.h"
#include "weft/trainers/cli.h"

namespace weft::cli {

namespace {

using config::ConfigError;

struct Options {
  std::string grid, out, reported;
  std::vector<std::string> only, set, devices;
  int jobs = 0;
  bool is_dry = false;
  bool has_times = true;

  bool names_runs() const {
    return !out.empty() || !only.empty() || !set.empty() || !devices.empty() || jobs > 0 || is_dry || !has_times;
  }
};

// Messages scroll above the lines while this is there.
class Attached {
 public:
  Attached(Console& console, LiveLines& lines) : console_(console) { console_.attach(&lines); }
  ~Attached() { console_.attach(nullptr); }
  Attached(const Attached&) = delete;
  Attached& operator=(const Attached&) = delete;

 private:
  Console& console_;
};

// Those cells whose arm is named by every --only axis=arm.
std::vector<study::Cell> chosen(const std::vector<study::Cell>& cells, const study::Arms& arms,
                                const std::vector<std::string>& only) {
  std::vector<study::Cell> kept;
  for (const study::Cell& cell : cells) {
    const std::string name = "," + arms.all[cell.combination].name + ",";
    if (std::ranges::all_of(only,
                            [&](const std::string& arm) { return name.find("," + arm + ",") != std::string::npos; }))
      kept.push_back(cell);
  }
  if (kept.empty())
    throw ConfigError("weft ablate: no arm has " + config::join(only, " and ") + ".",
                      "Write --only AXIS=ARM as in the grid.");
  return kept;
}

// "0-3" is 0, 1, 2, 3; other texts are as they are.
std::vector<std::string> without_ranges(const std::vector<std::string>& devices) {
  constexpr int kMost = 4096;
  std::vector<std::string> all;
  for (const std::string& text : devices) {
    const size_t dash = text.find('-');
    int first = -1, last = -1;
    const char *middle = text.data() + std::min(dash, text.size()), *end = text.data() + text.size();
    const bool is_range = dash != std::string::npos && std::from_chars(text.data(), middle, first).ptr == middle &&
                          std::from_chars(middle + 1, end, last).ptr == end && first >= 0 && first <= last &&
                          last < kMost;
    if (!is_range) all.push_back(text);
    else
      for (int gpu = first; gpu <= last; ++gpu) all.push_back(str(gpu));
  }
  return all;
}

// What CUDA_VISIBLE_DEVICES is for a run on each of the GPUs of --devices. They are numbered as this process sees them.
std::vector<std::string> gpus_of(const Options& options, const study::Arms& arms) {
  if (options.devices.empty()) return {};
  const int count = num_cuda_devices();
  for (const study::Combination& arm : arms.all)
    if (arm.experiment.train().device() == config::DeviceChoice::cpu)
      throw ConfigError(str("--devices: ", arm.name, " trains on the CPU."),
                        "Leave --devices out, or set train.device=cuda.");
  std::vector<std::string> visible;
  if (const char* text = std::getenv("CUDA_VISIBLE_DEVICES")) {
    std::istringstream list(text);
    for (std::string one; std::getline(list, one, ',');) visible.push_back(one);
  }
  const std::vector<std::string> devices = without_ranges(options.devices);
  const bool is_all = devices == std::vector<std::string>{"all"};
  std::vector<std::string> gpus;
  for (int i = 0; i < (is_all ? count : static_cast<int>(devices.size())); ++i) {
    int gpu = i;
    if (!is_all) {
      const std::string& text = devices[static_cast<size_t>(i)];
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), gpu);
      if (error != std::errc() || end != text.data() + text.size() || gpu < 0 || gpu >= count)
        throw ConfigError(str("--devices ", text, ": there are ", count, " GPUs that this program can use."),
                          count ? str("Name those of 0 to ", count - 1, ", as 0,1 or 0-1, or all.")
                                : "Run weft doctor, which says why, or leave --devices out.");
    }
    const auto place = static_cast<size_t>(gpu);
    std::string name = place < visible.size() ? visible[place] : str(gpu);
    if (std::ranges::find(gpus, name) != gpus.end())
      throw ConfigError(str("--devices names GPU ", gpu, " twice."),
                        "Name each once; --jobs says how many runs share them.");
    gpus.push_back(std::move(name));
  }
  if (gpus.empty())
    throw ConfigError("--devices all: there are 0 GPUs that this program can use.",
                      "Run weft doctor, which says why, or leave --devices out.");
  return gpus;
}

// Runs at a time: as many as have cores for all threads of all their ranks.
int jobs_of(const Options& options, const study::Grid& grid, const study::Arms& arms, size_t gpus) {
  if (options.jobs > 0) return options.jobs;
  if (gpus > 0) return static_cast<int>(gpus);
  int64_t ranks = 1;
  for (const study::Combination& arm : arms.all) ranks = std::max(ranks, study::ranks_of(arm.experiment));
  return static_cast<int>(std::max<int64_t>(1, num_threads() / (grid.threads * ranks)));
}

// Writes and prints the report of what there is.
int report(const study::StudyData& data, Console& console) {
  study::require_same_contents(data.folder, data.cells, data.results);
  const study::StudyReport report = study::report_of(data);
  io::write_file_atomically(data.folder + "/report.txt", report.text);
  io::write_file_atomically(data.folder + "/report.json", report.json);
  for (const std::string& warning : study::write_study_page(data, report)) console.message(warning);
  console.result(console.is_json() ? report.json : report.text);
  console.message("report " + data.folder + "/report.html");
  study::require_known_metrics(data);
  return report.num_lost > 0 ? kFailure : kSuccess;
}

int stopped_in_tuning(const study::Grid& grid, Console& console) {
  if (console.is_json())
    console.result(json_text(nlohmann::ordered_json{{"study", grid.name}, {"stopped", "while tuning"}}));
  return kStopped;
}

int run(const Options& options, Console& console, const Extensions& extensions) {
  if (options.grid.empty())
    throw ConfigError("weft ablate: the argument GRID is missing.",
                      "Name a grid, or write weft ablate report DIR for the report of a study that was begun.");
  study::Grid grid = study::read_grid(options.grid);
  for (const std::string& override : options.set) study::add_override(grid, override);
  const std::string folder = options.out.empty() ? "studies/" + grid.name : options.out;
  study::Arms arms = study::resolve_arms(grid, extensions);
  study::count_and_match(grid, arms, extensions);
  if (!study::holds_grid(folder, grid)) study::check_arms(grid, arms, extensions);
  if (const std::string odd = study::odd_arms(grid, arms); !odd.empty()) console.message(odd);
  std::vector<study::Cell> cells = study::cells_of(grid, arms);
  const std::vector<std::string> gpus = gpus_of(options, arms);
  const int jobs = jobs_of(options, grid, arms, gpus.size());
  if (!options.only.empty() || options.is_dry) {
    const std::vector<study::Cell> some =
        chosen(cells, arms, options.only);  // refuses a wrong name before anything runs
    if (options.is_dry) {
      const study::StudyPlan plan = study::plan_of(grid, arms, some, jobs, options.has_times, extensions);
      console.result(console.is_json() ? plan.json : plan.text);
      return kSuccess;
    }
  }
  io::make_folders(folder);
  const study::StudyLock lock(folder);
  study::claim_folder(folder, grid, cells);
  train::StopSignal signals(console.verbosity() != Verbosity::quiet);
  train::StopSignal::waits_for("saving the runs at work; the same command goes on");
  LiveLines live(live_options(console.verbosity() == Verbosity::quiet ? -1 : STDERR_FILENO));
  const Attached attached(console, live);
  study::CellRuns how{.program = "/proc/self/exe",
                      .folder = folder,
                      .jobs = jobs,
                      .gpus = gpus,
                      .metric = grid.metrics[0],
                      .evals = grid.evals,
                      .is_stopping = train::StopSignal::was_raised,
                      .say = [&](std::string_view line) { console.message(line); }};
  if (live.is_terminal())
    how.show = [&](std::vector<std::string> lines) { lines.empty() ? live.clear() : live.draw(std::move(lines)); };
  std::optional<study::Tuning> tuning;
  if (grid.tune) {
    tuning = study::tune_arms(grid, arms, how, extensions);
    if (!tuning) return stopped_in_tuning(grid, console);
    cells = study::cells_of(grid, arms);
  }
  study::take_over_complete(folder, cells);
  const std::vector<study::Cell> some = options.only.empty() ? cells : chosen(cells, arms, options.only);
  study::run_cells(grid, arms, tuning ? study::with_best_value(some, *tuning) : some, how);
  std::vector<std::optional<study::CellResult>> results;
  for (const study::Cell& cell : cells) results.push_back(study::stored_result(folder, cell));
  if (tuning) study::add_lost_arms(grid, cells, *tuning, results);
  const int code = report({.folder = folder,
                           .grid = grid,
                           .arms = arms,
                           .cells = cells,
                           .results = results,
                           .tuning = tuning ? &*tuning : nullptr},
                          console);
  return train::StopSignal::was_raised() ? kStopped : code;
}

// weft ablate report DIR: nothing is run, and a study at work goes on.
int run_report(const Options& options, Console& console, const Extensions& extensions) {
  if (!options.grid.empty() || options.names_runs())
    throw ConfigError("weft ablate report: runs nothing, and takes no grid and no options of runs.",
                      "Write weft ablate report DIR, alone or with --json.");
  const study::Grid grid = study::stored_grid(options.reported);
  study::Arms arms = study::resolve_arms(grid, extensions);
  study::count_and_match(grid, arms, extensions);
  std::optional<study::Tuning> tuning;
  if (grid.tune) {
    const study::CellRuns how{.program = {},
                              .folder = options.reported,
                              .runs_nothing = true,
                              .is_stopping = [] { return false; },
                              .say = [](std::string_view) {}};
    tuning = study::tune_arms(grid, arms, how, extensions);
    if (!tuning)
      throw ConfigError(options.reported + ": the tuning has not been run to its end, and no arm has its value.",
                        "Run weft ablate on the grid again: it goes on where it was stopped.");
  }
  std::vector<study::Cell> cells = study::cells_of(grid, arms);
  auto results = study::found_results(options.reported, cells);
  if (tuning) study::add_lost_arms(grid, cells, *tuning, results);
  return report({.folder = options.reported,
                 .grid = grid,
                 .arms = arms,
                 .cells = cells,
                 .results = results,
                 .tuning = tuning ? &*tuning : nullptr},
                console);
}

}  // namespace

Action define_ablate(Arguments& app) {
  auto options = std::make_shared<Options>();
  app.add_option("GRID", options->grid, "Grid of the study: arms x values x seeds").type_name("GRID");
  app.add_option("--out", options->out, "Folder of the study; default studies/<name>").type_name("DIR");
  app.add_option("--devices", options->devices,
                 "GPUs that the runs take in turn: 0,1 or 0-3 or all; each run sees the one that it has")
      .delimiter(',')
      .type_name("N,N");
  app.add_option("--jobs", options->jobs,
                 "Runs at a time; default: as many as the threads of their ranks have cores, or one per GPU")
      .range(int64_t{1}, int64_t{4096})
      .type_name("N");
  app.add_option("--only", options->only, "Only runs of this arm, such as gate=none; may be given several times")
      .repeated()
      .type_name("AXIS=ARM");
  app.add_option("--set", options->set, "path=value: an override for all runs, behind those of the grid")
      .repeated()
      .type_name("path=value");
  app.add_flag("--dry-run", options->is_dry, "Say what would be run");
  app.add_flag("!--no-times", options->has_times, "--dry-run without times, which take seconds of steps for each arm");
  Arguments report = app.add_subcommand("report", "The report of what a study has so far, made anew; nothing is run");
  report.add_option("DIR", options->reported, "Folder of the study").required().type_name("DIR");
  return [options, report](Console& console, const Extensions& extensions) {
    return report.is_named() ? run_report(*options, console, extensions) : run(*options, console, extensions);
  };
}

}  // namespace weft::cli
