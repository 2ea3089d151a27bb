#include "trainers/study/tune.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <iterator>
#include <limits>
#include <set>

#include "trainers/config/config_error.h"
#include "trainers/study/match.h"
#include "trainers/study/metric.h"
#include "weft/core/error.h"

namespace weft::study {

namespace {

double number_of(const std::string& text) {
  double value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

// Tries of all arms with these values; `arm` and `value` of each.
struct Tries {
  std::vector<Cell> cells;
  std::vector<std::pair<size_t, size_t>> of;
};

Tries tries_of(const Grid& grid, const Arms& arms, const std::vector<std::string>& values, const cli::Extensions& own) {
  const Tune& tune = *grid.tune;
  Tries tries;
  for (size_t a = 0; a < arms.all.size(); ++a) {
    const Combination& arm = arms.all[a];
    const config::Data& data = arm.experiment.data();
    for (size_t v = 0; v < values.size(); ++v) {
      std::vector<std::string> more = tune.set;
      more.push_back(data.has_task() ? str("data.task.test_from=", data.task().test_rows()) : "data.val.half=1");
      more.push_back(str(tune.path, "=", values[v]));
      const config::Loaded config = config_of(grid, arm, more, own);
      std::vector<std::string> overrides = arm.overrides;
      overrides.insert(overrides.end(), more.begin(), more.end());
      for (int64_t seed : tune.seeds) {
        tries.cells.push_back(cell_of(a, str(arm.name, ",tune=", values[v]), seed, config.experiment, overrides));
        tries.of.emplace_back(a, v);
      }
    }
  }
  return tries;
}

// Before the arms are looked at: without the metric every try would seem to be lost.
void require_metric(const Grid& grid, const std::vector<std::optional<CellResult>>& results) {
  bool is_any_complete = false;
  std::set<std::string> keys;
  for (const std::optional<CellResult>& result : results) {
    if (result->state != CellResult::State::complete) continue;
    if (result->metrics.contains(grid.tune->metric)) return;
    is_any_complete = true;
    for (const auto& [key, value] : result->metrics) keys.insert(key);
  }
  const std::vector<std::string> names(keys.begin(), keys.end());
  if (is_any_complete)
    config::check_choice(grid.file + ": tune: metric:", grid.tune->metric, names, "metric of the runs");
}

Tuning tuning_of(const Grid& grid, const Arms& arms, std::vector<std::string> values, const Tries& tries,
                 const std::vector<std::optional<CellResult>>& results) {
  require_metric(grid, results);
  Tuning tuning{.values = std::move(values), .why_lost = std::vector<std::string>(arms.all.size())};
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  tuning.tries.assign(
      arms.all.size(),
      std::vector<Tuning::Try>(tuning.values.size(), {.mean = 0, .lowest = kInfinity, .highest = -kInfinity}));
  for (size_t i = 0; i < tries.cells.size(); ++i) {
    Tuning::Try& one = tuning.tries[tries.of[i].first][tries.of[i].second];
    const auto value = results[i]->metrics.find(grid.tune->metric);
    const bool is_complete = results[i]->state == CellResult::State::complete,
               has_value = value != results[i]->metrics.end();
    if (!is_complete || !has_value || !std::isfinite(value->second)) {
      ++one.lost;
      std::string& why = tuning.why_lost[tries.of[i].first];
      if (why.empty())
        why = str(tries.cells[i].folder, " ",
                  is_complete ? str("has ", has_value ? "no finite " : "no ", grid.tune->metric)
                              : str(to_string(results[i]->state), results[i]->problem.empty() ? "" : ": ",
                                    results[i]->problem));
      continue;
    }
    one.mean += value->second, ++one.count;
    one.lowest = std::min(one.lowest, value->second), one.highest = std::max(one.highest, value->second);
  }
  const bool is_higher_better = direction_of(grid.tune->metric) == Direction::higher;
  for (size_t a = 0; a < arms.all.size(); ++a) {
    std::optional<size_t> best;
    for (size_t v = 0; v < tuning.values.size(); ++v) {
      Tuning::Try& one = tuning.tries[a][v];
      // A value with which some seed is lost is no choice.
      one.mean = one.lost > 0 ? std::numeric_limits<double>::quiet_NaN() : one.mean / static_cast<double>(one.count);
      if (std::isnan(one.mean)) continue;
      const bool is_better =
          !best || (is_higher_better ? one.mean > tuning.tries[a][*best].mean : one.mean < tuning.tries[a][*best].mean);
      if (is_better) best = v;
    }
    tuning.best.push_back(best);
  }
  WEFT_CHECK(std::ranges::any_of(tuning.best, [](const auto& best) { return best.has_value(); }),
             str("tuning: every value of ", grid.tune->path, " lost a run of every arm: ", tuning.why_lost[0]),
             "give tune other values; log.txt in the folder of that run, in tuning/cells/, says more");
  return tuning;
}

std::string lost_text(const Grid& grid, const Tuning& tuning, size_t arm) {
  return str("every value of ", grid.tune->path, " lost a run, the first of them ", tuning.why_lost[arm]);
}

// The next value beyond an edge, at the ratio of its two neighbours there.
std::string beyond(const std::string& edge, const std::string& inner) {
  return fmt::format("{:.4g}", number_of(edge) * number_of(edge) / number_of(inner));
}

}  // namespace

std::optional<Tuning> tune_arms(const Grid& grid, Arms& arms, CellRuns how, const cli::Extensions& own) {
  how.folder += "/tuning";
  how.metric = grid.tune->metric;
  how.notes_hparams = false;
  if (how.metric.find('@') == std::string::npos) how.evals = {};
  std::vector<std::string> values = grid.tune->values;
  for (int64_t lower = 0, upper = 0;;) {
    Tries tries = tries_of(grid, arms, values, own);
    if (!how.runs_nothing) take_over_complete(how.folder, tries.cells);
    const auto results =
        how.runs_nothing ? found_results(how.folder, tries.cells) : run_cells(grid, arms, tries.cells, how);
    const bool is_stopped = how.is_stopping() || std::ranges::any_of(results, [](const auto& r) { return !r; });
    if (is_stopped) return {};
    require_same_contents(how.folder, tries.cells, results);
    Tuning tuning = tuning_of(grid, arms, values, tries, results);
    const bool at_first = std::ranges::any_of(tuning.best, [](const auto& best) { return best == 0u; });
    const bool at_last = std::ranges::any_of(tuning.best, [&](const auto& best) { return best == values.size() - 1; });
    const bool goes_down = at_first && lower < grid.tune->widen, goes_up = at_last && upper < grid.tune->widen;
    if (!goes_down && !goes_up) {
      for (const Cell& cell : tries.cells)
        if (!cell.meant.empty()) tuning.taken_over.push_back(cell);
      for (size_t a = 0; a < arms.all.size(); ++a) {
        Combination& arm = arms.all[a];
        if (!tuning.best[a]) {
          how.say(str("tuning: ", arm.name, " is lost: ", lost_text(grid, tuning, a)));
          continue;
        }
        arm.tuned = values[*tuning.best[a]];
        arm.overrides.push_back(str(grid.tune->path, "=", arm.tuned));
        arm.experiment = config_of(grid, arm, {}, own).experiment;
      }
      return tuning;
    }
    const std::string low = beyond(values[0], values[1]), high = beyond(values.back(), values[values.size() - 2]);
    if (goes_down) values.insert(values.begin(), low), ++lower;
    if (goes_up) values.push_back(high), ++upper;
    how.say(fmt::format("tuning: the best {} of some arm is at the edge: {}{}{} is tried with all arms",
                        grid.tune->path, goes_down ? low : "", goes_down && goes_up ? " and " : "",
                        goes_up ? high : ""));
  }
}

std::vector<Cell> with_best_value(const std::vector<Cell>& cells, const Tuning& tuning) {
  std::vector<Cell> kept;
  std::ranges::copy_if(cells, std::back_inserter(kept),
                       [&](const Cell& cell) { return tuning.best[cell.combination].has_value(); });
  return kept;
}

void add_lost_arms(const Grid& grid, const std::vector<Cell>& cells, const Tuning& tuning,
                   std::vector<std::optional<CellResult>>& results) {
  for (size_t i = 0; i < cells.size(); ++i)
    if (!tuning.best[cells[i].combination])
      results[i] = CellResult{.problem = "not run: " + lost_text(grid, tuning, cells[i].combination)};
}

Arms tried_arms(const Grid& grid, const Arms& arms, const cli::Extensions& own) {
  Grid unmatched = grid;  // what match has set is among the overrides
  unmatched.match.reset();
  Arms tried = arms;
  for (Combination& arm : tried.all) {
    arm.overrides.insert(arm.overrides.end(), grid.tune->set.begin(), grid.tune->set.end());
    arm.experiment = config_of(grid, arm, {}, own).experiment;
  }
  count_and_match(unmatched, tried, own);
  return tried;
}

}  // namespace weft::study
