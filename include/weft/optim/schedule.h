// Learning-rate schedules: a factor of the peak rate as a function of the step.
#pragma once

#include <cstdint>

namespace weft {

enum class ScheduleKind { constant, linear, cosine, wsd, inverse_sqrt };
enum class DecayTail { linear, cosine, one_minus_sqrt };

// Step s counts from 0 to steps - 1. During the warm-up (s < warmup) the factor is (s + 1) / warmup. After it, with floor f:
//   linear         1 - r (1 - f), with r = (s - warmup) / (steps - warmup)
//   cosine         f + (1 + cos(pi r)) / 2 (1 - f), with the same r
//   wsd            1 until D = floor((1 - decay_fraction) steps), then the tail over r = (s - D) / (steps - D)
//   inverse_sqrt   sqrt(W / (s + 1)) with W = max(warmup, 1): without a warm-up it begins at the peak
// A floor of constant or inverse_sqrt is an Error. So are numbers that are negative or not finite.
struct ScheduleOptions {
  ScheduleKind kind = ScheduleKind::constant;
  int64_t warmup = 0;
  double floor = 0;             // final factor, at most 1
  double decay_fraction = 0.2;  // wsd
  DecayTail tail = DecayTail::one_minus_sqrt;
};

double schedule_factor(const ScheduleOptions& options, int64_t step, int64_t steps);

}  // namespace weft
