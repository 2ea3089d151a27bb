// The measured rate of matrix products that MFU refers to. Measured beside other work it is too low, and an MFU above 100 % gives that away.
#pragma once

#include <functional>
#include <string>

namespace weft::train {

class PeakRate {
 public:
  // `measured` and what `measure` gives are in FLOP/s.
  PeakRate(double measured, std::function<double()> measure) : peak_(measured), measure_(std::move(measure)) {}

  // Model FLOPs per second over the peak. Above 1 the peak is measured again first, at most kMostMeasurements times in all, and the highest counts.
  double utilisation(double flops_per_s);
  // What is to be said about the last call; empty: nothing.
  const std::string& note() const { return note_; }
  double peak() const { return peak_; }

  static constexpr int kMostMeasurements = 3;

 private:
  double peak_;
  std::function<double()> measure_;
  int num_measurements_ = 1;
  bool has_given_up_ = false;
  std::string note_;
};

}  // namespace weft::train
