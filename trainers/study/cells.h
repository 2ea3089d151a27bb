// The runs of a study: each is a `weft train` of its own, in a process of its own.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "trainers/study/grid.h"

namespace weft::study {

// What a cell came to; a small JSON file in the study's folder, so that a finished cell is never run again. A failed one is.
struct CellResult {
  enum class State { complete, diverged, failed };
  State state = State::failed;
  std::string problem = {};                    // of one that failed: its last message
  std::map<std::string, double> metrics = {};  // the last value of every key of metrics.jsonl
};
std::string_view to_string(CellResult::State state);

struct CellRuns {
  std::string program;  // of this process, with its extensions
  std::string folder;   // of the study
  int jobs = 1;         // cells at a time
  std::function<bool()> is_stopping = {};
  std::function<void(std::string_view)> say = {};
};
// Runs the cells that have no result yet and returns the results of all, in the order of `cells`; those of a study that was stopped are
// missing. A cell whose process fails is started once more and goes on from its last checkpoint.
// In each run's folder, and in the study's, stands what TensorBoard's view HParams shows.
std::vector<std::optional<CellResult>> run_cells(const Grid& grid, const Arms& arms, const std::vector<Cell>& cells,
                                                 const CellRuns& how);

std::optional<CellResult> stored_result(const std::string& study_folder, const Cell& cell);

}  // namespace weft::study
