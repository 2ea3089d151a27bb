// weft ablate GRID [--out DIR] [--jobs N] [--only axis=arm]... [--dry-run]: a study, from its grid to its report.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "src/core/file_lock.h"
#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/config/config_error.h"
#include "trainers/console/console.h"
#include "trainers/console/live_lines.h"
#include "trainers/console/progress.h"
#include "trainers/console/stop_signal.h"
#include "trainers/run/memory_estimate.h"
#include "trainers/run/session.h"
#include "trainers/study/forecast.h"
#include "trainers/study/match.h"
#include "trainers/study/report_parts.h"
#include "trainers/study/tune.h"
#include "weft/core/parallel.h"
#include "weft/core/stream.h"
#include "weft/io/files.h"
#include "weft/trainers/cli.h"

namespace weft::cli {

namespace {

using config::ConfigError;

struct Options {
  std::string grid, out;
  std::vector<std::string> only, set, devices;
  int jobs = 0;
  bool is_dry = false;
  bool has_times = true;
};

// One process at a time works on a study; the lock ends with the process.
class StudyLock {
 public:
  explicit StudyLock(const std::string& folder) : descriptor_(open_locked(folder + "/lock", 0)) {
    if (descriptor_ >= 0) return;
    const std::string why = errno == EWOULDBLOCK
                                ? "another process works on this study."
                                : str("cannot be locked: ", std::string_view(std::strerror(errno)), ".");
    throw ConfigError(folder + ": " + why, "Wait for it, or give this study --out of its own.");
  }
  ~StudyLock() { ::close(descriptor_); }
  StudyLock(const StudyLock&) = delete;
  StudyLock& operator=(const StudyLock&) = delete;

 private:
  int descriptor_;
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

// A folder holds one study: its cells are known by their configs, but the report is of one grid.
void claim_folder(const std::string& folder, const study::Grid& grid) {
  const std::string file = folder + "/grid.txtpb";
  if (!io::file_exists(file)) io::write_file_atomically(file, grid.text);
  else if (io::read_file(file) != grid.text)
    throw ConfigError(str(folder, " holds the study of another grid than ", grid.file, "."),
                      "Give this one --out of its own, or write its text over " + file +
                          " to add to what is there: cells whose config "
                          "is the same are not run again.");
}

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

std::string plan_text(const study::Grid& grid, const study::Arms& arms, const std::vector<study::Cell>& cells, int jobs,
                      const Options& options, const Extensions& own) {
  std::string text = fmt::format("study {}: {} arms x {} seeds, {} runs of {} threads, {} at a time\n", grid.name,
                                 arms.all.size(), grid.seeds.size(), cells.size(), grid.threads, jobs);
  if (grid.tune)
    text +=
        fmt::format("tuning of {}: {} arms x {} values x {} seeds before them, more where the best lies at an edge\n",
                    grid.tune->path, arms.all.size(), grid.tune->values.size(), grid.tune->seeds.size());
  io::ReportTable table{.title = "",
                        .header = {"arm", "runs", "parameters", "active", "without embeddings", "ffn", "MFLOP/token",
                                   "tokens", "time", "memory", "disk", "cache", "cache/token"},
                        .rows = {}};
  double flops = 0, seconds = 0, disk = 0;
  for (size_t a = 0; a < arms.all.size(); ++a) {
    const study::Combination& arm = arms.all[a];
    const auto runs = std::ranges::count(cells, a, &study::Cell::combination);
    if (runs == 0) continue;  // left out by --only
    const study::Forecast f = study::forecast_of(grid, arm, options.has_times, own);
    const auto n = static_cast<double>(runs);
    flops += n * arm.flops_per_token * static_cast<double>(arm.experiment.train().tokens());
    seconds += n * f.seconds, disk += n * static_cast<double>(f.disk_bytes);
    table.rows.push_back({arm.name, str(runs), str(f.params), str(f.params - arm.idle_params), str(arm.params),
                          arm.matched_ffn ? str(arm.matched_ffn) : "-",
                          fmt::format("{:.3f}", arm.flops_per_token / 1e6), str(arm.experiment.train().tokens()),
                          f.seconds > 0 ? duration_text(f.seconds) : "-", train::size_text(f.memory_bytes),
                          train::size_text(f.disk_bytes), train::size_text(f.cache_bytes),
                          str(f.cache_bytes_per_token)});
  }
  text += study::text_of(table).substr(1);
  if (grid.match) text += study::match_text(grid, arms) + "\n";
  text += fmt::format("{:.3g} PFLOP without the output head, {} of checkpoints", flops / 1e15,
                      train::size_text(static_cast<int64_t>(disk)));
  if (seconds > 0)
    text += fmt::format(", about {} of training by a calibration here{}", duration_text(seconds / jobs),
                        jobs > 1 ? fmt::format(", if {} runs beside each other are as fast as one", jobs) : "");
  return text + "\n";
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
  const bool is_all = options.devices == std::vector<std::string>{"all"};
  std::vector<std::string> gpus;
  for (int i = 0; i < (is_all ? count : static_cast<int>(options.devices.size())); ++i) {
    int gpu = i;
    if (!is_all) {
      const std::string& text = options.devices[static_cast<size_t>(i)];
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), gpu);
      if (error != std::errc() || end != text.data() + text.size() || gpu < 0 || gpu >= count)
        throw ConfigError(str("--devices ", text, ": there are ", count, " GPUs that this program can use."),
                          count ? str("Name those of 0 to ", count - 1, ", separated by commas, or all.")
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

// With the overrides of the command line, which are part of what the folder holds.
study::Grid grid_of(const Options& options) {
  study::Grid grid = study::read_grid(options.grid);
  for (const std::string& override : options.set) {
    grid.set.push_back(override);
    grid.text += "# --set " + override + "\n";
  }
  return grid;
}

int run(const Options& options, Console& console, const Extensions& extensions) {
  const study::Grid grid = grid_of(options);
  study::Arms arms = study::resolve_arms(grid, extensions);
  study::count_and_match(grid, arms, extensions);
  std::vector<study::Cell> cells = study::cells_of(grid, arms);
  const std::vector<std::string> gpus = gpus_of(options, arms);
  const int places = gpus.empty() ? num_threads() / static_cast<int>(grid.threads) : static_cast<int>(gpus.size()),
            jobs = options.jobs ? options.jobs : std::max(1, places);
  if (!options.only.empty() || options.is_dry) {
    const std::vector<study::Cell> some =
        chosen(cells, arms, options.only);  // refuses a wrong name before anything runs
    if (options.is_dry) {
      console.result(plan_text(grid, arms, some, jobs, options, extensions));
      return kSuccess;
    }
  }
  const std::string folder = options.out.empty() ? "studies/" + grid.name : options.out;
  io::make_folders(folder);
  const StudyLock lock(folder);
  claim_folder(folder, grid);
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
    if (!tuning) return kStopped;
    cells = study::cells_of(grid, arms);
  }
  study::run_cells(grid, arms, options.only.empty() ? cells : chosen(cells, arms, options.only), how);
  std::vector<std::optional<study::CellResult>> results;
  for (const study::Cell& cell : cells) results.push_back(study::stored_result(folder, cell));
  study::require_same_contents(folder, cells, results);
  const study::StudyData data{.folder = folder,
                              .grid = grid,
                              .arms = arms,
                              .cells = cells,
                              .results = results,
                              .tuning = tuning ? &*tuning : nullptr};
  const study::StudyReport report = study::report_of(data);
  io::write_file_atomically(folder + "/report.txt", report.text);
  io::write_file_atomically(folder + "/report.json", report.json);
  for (const std::string& warning : study::write_study_page(data, report)) console.message(warning);
  console.result(console.is_json() ? report.json : report.text);
  console.message("report " + folder + "/report.html");
  if (train::StopSignal::was_raised()) return kStopped;
  return report.num_lost > 0 ? kFailure : kSuccess;
}

}  // namespace

Action define_ablate(Arguments& app) {
  auto options = std::make_shared<Options>();
  app.add_option("GRID", options->grid, "Grid of the study: arms x values x seeds").required().type_name("GRID");
  app.add_option("--out", options->out, "Folder of the study; default studies/<name>").type_name("DIR");
  app.add_option("--devices", options->devices,
                 "GPUs that the runs take in turn: 0,1 or all; each run sees the one that it has")
      .delimiter(',')
      .type_name("N,N");
  app.add_option("--jobs", options->jobs,
                 "Runs at a time; default: as many as their threads have cores, or one per GPU")
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
  return [options](Console& console, const Extensions& extensions) { return run(*options, console, extensions); };
}

}  // namespace weft::cli
