// What can be wrong of an arm beside its config, looked at before anything runs: the groups of its optimiser, its texts, the run it begins as,
// and whether its ranks can share the sequences of its model.
#pragma once

#include <string>

#include "trainers/config/config_error.h"
#include "trainers/study/grid.h"

namespace weft::study {

// What `work` returns. Its Error becomes a ConfigError that names grid and arm.
template <class Work>
auto of_arm(const Grid& grid, const std::string& arm, const Work& work) {
  try {
    return work();
  } catch (const Error& e) { throw config::ConfigError(str(grid.file, ": ", arm, ": ", e.problem()), e.fix()); }
}

// Of a study that begins or gets more arms: one that goes on has runs as they are. Also of the tries of a tuning. ConfigError that names grid and arm.
void check_arms(const Grid& grid, const Arms& arms, const cli::Extensions& own);

// What is allowed and probably not meant, in one line: arms of one config, and axes with one arm. Empty: nothing.
std::string odd_arms(const Grid& grid, const Arms& arms);

}  // namespace weft::study
