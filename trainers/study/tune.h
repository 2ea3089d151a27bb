// Tuning before a comparison: every arm is trained with the same values of one field, on seeds and validation data that do not count, and
// goes on with its best one.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "trainers/study/cells.h"
#include "trainers/study/grid.h"

namespace weft::study {

struct Tuning {
  std::vector<std::string> values = {};  // ascending; every arm was trained with all of them
  struct Try {
    double mean = 0, lowest = 0, highest = 0;  // of the metric over the tries' seeds; NaN where no run has it
    int64_t count = 0, lost = 0;
  };
  std::vector<std::vector<Try>> tries = {};  // [arm][value]
  // [arm]: a value; unset: every one lost a run, and the arm's runs count as lost too.
  std::vector<std::optional<size_t>> best = {};
  std::vector<std::string> why_lost = {};  // [arm]: what was wrong with its first try that was lost, or ""
  std::vector<Cell> taken_over = {};       // tries that were found with other paths or defaults: Cell::meant
  bool is_edge(size_t arm) const { return best[arm] && (*best[arm] == 0 || *best[arm] + 1 == values.size()); }
};

// Runs the tries in the folder tuning/ of the study, widens the values, and gives every arm its best one, if it has one. Unset: it was stopped,
// or CellRuns::runs_nothing and some tries have not been run. Error if no arm has one; ConfigError if no try has the metric.
std::optional<Tuning> tune_arms(const Grid& grid, Arms& arms, CellRuns how, const cli::Extensions& own);

// Runs of arms without a best value are not made, and count as lost. Of all `cells`: those that are to be run; and the results with theirs.
std::vector<Cell> with_best_value(const std::vector<Cell>& cells, const Tuning& tuning);
void add_lost_arms(const Grid& grid, const std::vector<Cell>& cells, const Tuning& tuning,
                   std::vector<std::optional<CellResult>>& results);

// The arms as they are tried, with Tune::set and without a value: for the plan of a study.
Arms tried_arms(const Grid& grid, const Arms& arms, const cli::Extensions& own);

}  // namespace weft::study
