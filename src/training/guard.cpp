#include "weft/training/guard.h"

#include <cmath>

namespace weft {

namespace {

template <class Field>
double z_score(const std::deque<OutlierGuard::Entry>& window, double value, Field field) {
  double mean = 0, variance = 0, n = static_cast<double>(window.size());
  for (const auto& entry : window) mean += field(entry) / n;
  for (const auto& entry : window) variance += (field(entry) - mean) * (field(entry) - mean) / (n - 1);
  // A window without spread says nothing about what is far away.
  return variance > 0 ? (value - mean) / std::sqrt(variance) : 0;
}

}  // namespace

bool OutlierGuard::stands_out(double loss, double grad_norm) const {
  if (!std::isfinite(loss) || !std::isfinite(grad_norm)) return true;
  if (static_cast<int64_t>(window_.size()) < options_.window) return false;
  return z_score(window_, loss, [](const Entry& e) { return e.loss; }) > options_.loss_z ||
         z_score(window_, grad_norm, [](const Entry& e) { return e.grad_norm; }) > options_.grad_z;
}

bool OutlierGuard::refuses(double loss, double grad_norm) {
  if (!options_.is_on) return false;
  if (stands_out(loss, grad_norm)) {
    ++num_in_a_row_;
    return true;
  }
  num_in_a_row_ = 0;
  if (static_cast<int64_t>(window_.size()) >= options_.window) window_.pop_front();
  window_.push_back({loss, grad_norm});
  return false;
}

}  // namespace weft
