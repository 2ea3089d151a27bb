// Where the time of a training step goes, in percent of the whole step.
#pragma once

#include <span>

#include "tools/bench/training_step.h"
#include "weft/core/profile.h"

namespace weft::bench {

// The first four are the whole step. Products and attention are those of forward and backward.
struct StepShares {
  double products = 0, attention = 0;
  double update_products = 0;  // of Muon, as the thread sees them that begins the step
  double other = 0;            // norms, elementwise work, the rest of the update, and what no span covers
  double update = 0;           // the part of `other` that stands in the update
};
StepShares step_shares(std::span<const SelfTime> times, double step_us);

// Of several steps those of the one whose time is the median.
StepShares measured_shares(TrainingStep& step, int steps);

}  // namespace weft::bench
