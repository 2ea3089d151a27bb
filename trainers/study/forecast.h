// What the runs of a study will need, said before any is made.
#pragma once

#include <cstdint>

#include "trainers/study/grid.h"

namespace weft::study {

// Of one run of an arm.
struct Forecast {
  int64_t params = 0;                 // with embeddings
  double seconds = 0;                 // of training, by a calibration here; 0: none
  int64_t memory_bytes = 0;           // peak of tensors
  int64_t disk_bytes = 0;             // of checkpoints
  int64_t cache_bytes = 0;            // keys and states of one decoded row of the training's length
  int64_t cache_bytes_per_token = 0;  // of its second half: 0 for layers of states and windows
};
// Times take a calibration, some seconds of steps.
Forecast forecast_of(const Grid& grid, const Combination& arm, bool has_times, const cli::Extensions& own);

}  // namespace weft::study
