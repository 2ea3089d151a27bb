// What a step of a training takes, by a few steps of it: of the whole, or of a part where that takes too long. A part has shorter rows (and as many
// tokens), then fewer layers, then fewer rows. A model that is partly frozen, or learns from another one, keeps its layers: patterns name them.
#pragma once

#include <functional>

#include "trainers/run/trial.h"

namespace weft::train {

struct TimedPart {
  int64_t few = 1, more = 1;      // layers of the models that are timed; equal: it is the whole model
  int64_t rows = 1, context = 1;  // of a micro-batch
};

struct StepSeconds {
  double micro_batch = 0;  // forward and backward
  double update = 0;       // of the optimiser, with the norm of the gradients, and with what ranks add up
};

// Seconds of a step: a test's, in place of a clock's.
using StepTimer = std::function<double(int64_t layers, int64_t rows, int64_t context, int64_t micro_batches)>;

class TimedTraining {
 public:
  // `team`: of ranks that train together; each of them calls the same. `world`: ranks that train each for itself, at the same time. `samples`:
  // of whole rows. Rows of several documents are shortened last.
  explicit TimedTraining(MemorySubject subject, Team* team = nullptr, dist::Communicator* world = nullptr,
                         data::SampleSource samples = {}, StepTimer timer = {});

  // The largest part of steps with this micro-batch whose timing has at most about so many operations on a rank.
  TimedPart part(int64_t rows, double flops) const;
  // Of all layers, with the part's micro-batch. Without `splits` the update is in the micro-batch.
  StepSeconds seconds(const TimedPart& part, bool splits) const;
  // Of a training, on a rank, in one micro-batch of whole rows; with the forward of its teacher.
  double flops(int64_t layers, int64_t rows, int64_t context) const;

 private:
  double step_seconds(int64_t layers, int64_t rows, int64_t context, int64_t micro_batches) const;
  StepSeconds seconds_of(int64_t layers, const TimedPart& part, bool splits) const;
  double cost(const TimedPart& part) const;

  MemorySubject subject_;
  Team* team_;
  dist::Communicator* world_;
  data::SampleSource samples_;
  StepTimer timer_;
};

// The median of a few calls, after one that warms up; of more where half of them take much longer than the fastest. Ranks of `world` begin each
// of them together, and end it together.
double median_seconds(const std::function<void()>& f, dist::Communicator* world = nullptr);
inline constexpr int kTimedCalls = 4;  // with the first one

}  // namespace weft::train
