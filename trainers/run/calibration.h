// How fast a rank works here, by a few steps of trainings with the model's own layers and sizes, or smaller ones: what `weft plan --hardware here`
// and the prediction of a run multiply. Nothing is assumed of kernels or of their share of a peak.
#pragma once

#include "trainers/run/timed_part.h"
#include "weft/distributed/step_cost.h"

namespace weft::train {

// Of attention of one kind, operations per second.
struct AttentionRates {
  double forward_flops = 1, backward_flops = 1;
};

struct Calibration {
  double other_s_per_token = 0;                // of a rank: forward and backward without attention
  double update_s = 0;                         // of the optimiser, with the norm of the gradients
  std::vector<AttentionRates> attention = {};  // of each of the layers
  double copy_bytes_per_s = 1;                 // as messages between threads are copied
};

// Of a rank that has `rows` rows of the model's context in a micro-batch, with this thread's number of threads, in at most about so many
// operations of trainings and as many of attention. `layers`: the attention of all of them; layers of others count by their tokens. `world`:
// ranks that calibrate at the same time, as they will work.
Calibration calibrate(const MemorySubject& subject, std::span<const dist::AttentionLayers> layers, int64_t rows,
                      double flops, dist::Communicator* world = nullptr);

// Seconds of a step of a run. `subject` is that of the run, and `team` its ranks, if there are several, each of which calls it: what they send
// each other and how they share a machine is timed with the rest. `samples`: of the run, or none.
double time_step(const MemorySubject& subject, std::span<const dist::AttentionLayers> layers, const StepSizes& sizes,
                 Team* team, double flops, data::SampleSource samples = {}, StepTimer timer = {});

}  // namespace weft::train
