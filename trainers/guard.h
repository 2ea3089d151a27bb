// Outlier guard: a step whose loss or gradient norm stands out from the last ones, or is not finite, is not applied.
#pragma once

#include <cstdint>
#include <deque>

namespace weft::train {

struct GuardOptions {
  bool is_on = false;
  double loss_z = 6, grad_z = 6;  // standard deviations above the mean of the window
  int64_t window = 128;           // steps; nothing but non-finite values is refused before it is full
};

class OutlierGuard {
 public:
  explicit OutlierGuard(GuardOptions options) : options_(options) {}
  // Whether the step is to be skipped; an accepted step enters the window.
  bool refuses(double loss, double grad_norm);

  struct Entry {
    double loss, grad_norm;
  };
  const std::deque<Entry>& window() const { return window_; }
  void set_window(std::deque<Entry> window) { window_ = std::move(window); }

 private:
  GuardOptions options_;
  std::deque<Entry> window_;
};

}  // namespace weft::train
