// A study of runs that are there already: those whose configs differ in nothing but the seed are one arm.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "trainers/study/cells.h"

namespace weft::study {

struct Comparison {
  Grid grid;
  Arms arms;  // the baseline is the arm of the first run
  std::vector<Cell> cells;
  std::vector<std::optional<CellResult>> results;
};
// ConfigError if a run is not finished, is there twice, or has seen other batches or other texts.
Comparison compare_runs(const std::vector<std::string>& runs, const std::vector<std::string>& metrics,
                        const cli::Extensions& own);

}  // namespace weft::study
