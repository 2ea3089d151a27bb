// The peak of a run's tensors on the default device. A measurement within the run, such as that of the peak rate, does not count.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>

#include "trainers/run/session.h"
#include "weft/core/allocator.h"

namespace weft::train {

class PeakMemory {
 public:
  // Since the allocator's peak began anew: forget_peak().
  int64_t bytes() const { return std::max(kept_bytes_, allocator(default_device()).stats().peak_bytes); }

  // What f gives. Its tensors are not the run's: they do not count, and their memory goes back to the system.
  double without(const std::function<double()>& f) {
    struct Back {
      ~Back() { forget_peak(default_device()); }
    };
    kept_bytes_ = bytes();
    const Back back;
    return f();
  }

 private:
  int64_t kept_bytes_ = 0;
};

}  // namespace weft::train
