// What the runs of a study will need, said before any is made.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "trainers/study/grid.h"

namespace weft::study {

// Of one run of an arm.
struct Forecast {
  struct Sizes {
    int64_t params = 0;        // with embeddings
    double seconds = 0;        // of training, by a calibration here; 0: none
    int64_t memory_bytes = 0;  // peak of tensors
    int64_t disk_bytes = 0;    // of checkpoints
  };
  std::optional<Sizes> sizes = {};    // not where the number of ids is not known
  std::string unknown = {};           // then, why
  int64_t cache_bytes = 0;            // keys and states of one decoded row of the training's length
  int64_t cache_bytes_per_token = 0;  // of its second half: 0 for layers of states and windows
};

// Of the arms of a grid. Files that say how many ids there are are read once for all of them.
class Forecaster {
 public:
  // Times take a calibration, some seconds of steps for each arm.
  Forecaster(const Grid& grid, bool has_times, const cli::Extensions& own)
      : grid_(grid), has_times_(has_times), own_(own) {}
  Forecast of(const Combination& arm);

 private:
  struct Ids {
    std::optional<int64_t> count = {};
    std::string unknown = {};
  };
  const Ids& ids_of(const config::Loaded& config);

  const Grid& grid_;
  bool has_times_;
  const cli::Extensions& own_;
  std::map<std::string, Ids> known_;  // by what decides them
};

}  // namespace weft::study
