// What a study will run, and what it will need, said before any run is made.
#pragma once

#include <string>
#include <vector>

#include "trainers/study/grid.h"

namespace weft::study {

struct StudyPlan {
  std::string text, json;
};
// Of these cells, `jobs` at a time, and of the tries of all arms. Times take some seconds of steps for each arm.
StudyPlan plan_of(const Grid& grid, const Arms& arms, const std::vector<Cell>& cells, int jobs, bool has_times,
                  const cli::Extensions& own);

}  // namespace weft::study
