// What a study says: every arm with its mean, and its difference from the baseline paired by seed. The same results give the same bytes.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "trainers/study/cells.h"

namespace weft::study {

struct StudyReport {
  std::string text, json;
  int64_t num_lost = 0;  // runs that diverged or failed
};
// `results` in the order of `cells`; a missing one has not been run.
StudyReport report_of(const Grid& grid, const Arms& arms, const std::vector<Cell>& cells,
                      const std::vector<std::optional<CellResult>>& results);

}  // namespace weft::study
