// How fast a rank works here, by a few steps of small trainings with the model's own layers: what `weft plan --hardware here` and the prediction
// of a run multiply. Nothing is assumed of kernels or of their share of a peak.
#pragma once

#include "trainers/run/trial.h"
#include "weft/distributed/step_cost.h"

namespace weft::train {

struct Calibration {
  double other_s_per_token = 0;  // of a rank: forward and backward without attention
  double update_s = 0;           // of the optimiser, with the norm of the gradients
  double attention_forward_flops = 1, attention_backward_flops = 1;  // per second
  double copy_bytes_per_s = 1;                                       // as messages between threads are copied
};

// Of a rank that has `tokens` tokens in a micro-batch, with this thread's number of threads. Of models with many layers two small ones are
// timed, and their difference is taken as often as it stands in the whole. A micro-batch that is timed has at most about `flops` operations (it is
// timed some 20 times): beyond that it has fewer tokens. `layers`: the attention of all of them; layers of others count by their tokens.
Calibration calibrate(const MemorySubject& subject, std::span<const dist::AttentionLayers> layers, int64_t tokens,
                      double flops);

}  // namespace weft::train
