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
// Every rank calls it at the same time: they share the machine then as in the training. Takes about a fiftieth of the run's time, up to seconds.
Prediction predict(const config::Loaded& config, int64_t num_ids, const MemoryEstimate& memory);

}  // namespace weft::train
