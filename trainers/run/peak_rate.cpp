#include "trainers/run/peak_rate.h"

#include <fmt/format.h>

#include <algorithm>

#include "weft/core/error.h"

namespace weft::train {

double PeakRate::utilisation(double flops_per_s) {
  note_.clear();
  const double before = peak_;
  while (flops_per_s > peak_ && num_measurements_ < kMostMeasurements && measure_) {
    ++num_measurements_;
    try {
      peak_ = std::max(peak_, measure_());
    } catch (const Error&) {  // no memory for the matrices: what is known has to do
      num_measurements_ = kMostMeasurements;
    }
  }
  if (flops_per_s > peak_ && !has_given_up_) {
    has_given_up_ = true;
    note_ = fmt::format(
        "MFU is above 100 %: the peak of {:.0f} GFLOP/s was measured beside other work, and so were later ones",
        peak_ / 1e9);
  } else if (peak_ > before) {
    note_ = fmt::format(
        "MFU was above 100 %: the peak was measured beside other work; measured again it is {:.0f} GFLOP/s, not {:.0f}",
        peak_ / 1e9, before / 1e9);
  }
  return flops_per_s / peak_;
}

}  // namespace weft::train
