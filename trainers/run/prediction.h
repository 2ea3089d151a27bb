// What a run will take, said before it begins and printed beside what it took at its end.
#pragma once

#include "trainers/run/memory_estimate.h"

namespace weft::train {

// Of the first of several ranks.
struct Prediction {
  double step_s = 0;       // by a calibration (trainers/run/calibration.h); 0: none
  int64_t peak_bytes = 0;  // of tensors
  int64_t sent_bytes = 0;  // in a step
};
// `team`: the ranks of the run, if there are several, each of which calls it at the same time; without them their step is what a plan says.
// `data`: of the run, whose documents are then those of the timed rows. Takes about a twentieth of the run's time, up to seconds; of a short run
// up to a quarter, or about a second.
Prediction predict(const config::Loaded& config, int64_t num_ids, const MemoryEstimate& memory, Team* team = nullptr,
                   const RunData* data = nullptr);

}  // namespace weft::train
