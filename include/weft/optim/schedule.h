// Learning-rate schedules: a factor of the peak rate as a function of the step.
#pragma once

#include <cstdint>

namespace weft {

enum class ScheduleKind { constant, linear, cosine, wsd, inverse_sqrt };
enum class DecayTail { linear, cosine, one_minus_sqrt };

// Step s counts from 0 to steps - 1. Warm-up: (s + 1) / warmup for s < warmup; then, with r = (s - warmup) / (steps - warmup) and
// floor f: linear 1 - r (1 - f); cosine f + (1 + cos(pi r)) / 2 (1 - f); wsd 1 until D = floor((1 - decay_fraction) steps), then the
// tail over r = (s - D) / (steps - D); inverse_sqrt: sqrt(W / (s + 1)) with W = max(warmup, 1), so that it begins at the peak without a
// warm-up too. constant and inverse_sqrt have no floor: one is an Error, as are numbers that are negative or not finite.
struct ScheduleOptions {
  ScheduleKind kind = ScheduleKind::constant;
  int64_t warmup = 0;
  double floor = 0;             // final factor, at most 1
  double decay_fraction = 0.2;  // wsd
  DecayTail tail = DecayTail::one_minus_sqrt;
};

double schedule_factor(const ScheduleOptions& options, int64_t step, int64_t steps);

}  // namespace weft
