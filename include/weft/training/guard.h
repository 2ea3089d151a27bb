// Outlier guard: a step whose loss or gradient norm stands out from the last ones, or is not finite, is not applied.
#pragma once

#include <cstdint>
#include <deque>

namespace weft {

struct GuardOptions {
  bool is_on = false;
  double loss_z = 6, grad_z = 6;  // standard deviations above the mean of the window
  int64_t window = 128;           // steps; nothing but non-finite values is refused before it is full
  int64_t max_in_a_row = 10;      // so many refused steps without an accepted one between them end the training
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

  int64_t num_in_a_row() const { return num_in_a_row_; }  // refused since the last accepted step
  void set_in_a_row(int64_t count) { num_in_a_row_ = count; }
  // What is refused does not enter the window, so a change that lasts is refused for ever.
  bool gives_up() const { return options_.is_on && num_in_a_row_ >= options_.max_in_a_row; }

 private:
  bool stands_out(double loss, double grad_norm) const;

  GuardOptions options_;
  std::deque<Entry> window_;
  int64_t num_in_a_row_ = 0;
};

}  // namespace weft
