#include "weft/optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "weft/core/error.h"

namespace weft {

static double decayed(DecayTail tail, double r, double floor) {
  switch (tail) {
    case DecayTail::linear: return 1 - r * (1 - floor);
    case DecayTail::cosine: return floor + (1 + std::cos(std::numbers::pi * r)) / 2 * (1 - floor);
    case DecayTail::one_minus_sqrt: return floor + (1 - std::sqrt(r)) * (1 - floor);
  }
  return 1;
}

double schedule_factor(const ScheduleOptions& o, int64_t step, int64_t steps) {
  WEFT_CHECK(
      step >= 0 && o.warmup >= 0 && o.floor >= 0 && o.floor <= 1 && o.decay_fraction >= 0 && o.decay_fraction <= 1,
      str("schedule: step ", step, ", warmup ", o.warmup, ", floor ", o.floor, ", decay_fraction ", o.decay_fraction),
      "use values of 0 or more, and a floor and a decay_fraction of at most 1");
  const bool has_floor = o.kind != ScheduleKind::constant && o.kind != ScheduleKind::inverse_sqrt;
  WEFT_CHECK(has_floor || o.floor == 0, str("schedule: a floor of ", o.floor, " for a schedule that has none"),
             "leave it out, or use linear, cosine or wsd");
  double s = static_cast<double>(step), warmup = static_cast<double>(o.warmup), total = static_cast<double>(steps);
  if (step < o.warmup) return (s + 1) / warmup;
  double r = total > warmup ? std::min((s - warmup) / (total - warmup), 1.0) : 0;
  switch (o.kind) {
    case ScheduleKind::constant: return 1;
    case ScheduleKind::linear: return decayed(DecayTail::linear, r, o.floor);
    case ScheduleKind::cosine: return decayed(DecayTail::cosine, r, o.floor);
    case ScheduleKind::inverse_sqrt: return std::sqrt(std::max(warmup, 1.0) / (s + 1));
    case ScheduleKind::wsd: {
      // The product is nudged so that (1 - 0.2) * 100 is 80 and not 79.
      double begin = std::floor((1 - o.decay_fraction) * total + 1e-9);
      if (s < begin || total <= begin) return 1;
      return decayed(o.tail, std::min((s - begin) / (total - begin), 1.0), o.floor);
    }
  }
  return 1;
}

}  // namespace weft
