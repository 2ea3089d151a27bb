#include "trainers/console/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace weft::cli {

namespace {

constexpr int64_t kWarmupSteps = 10;
constexpr size_t kClockSteps = 50;
constexpr int kBarWidth = 40;

double share_done(const StepStatus& s) {
  return s.steps > 0 ? static_cast<double>(s.step) / static_cast<double>(s.steps) : 0;
}
std::string bar(double share) {
  auto filled = static_cast<int>(std::clamp(share, 0.0, 1.0) * kBarWidth);
  return fmt::format("[{:#<{}}{:-<{}}]", "", filled, "", kBarWidth - filled);
}
double gib(int64_t bytes) { return static_cast<double>(bytes) / 1073741824.0; }

}  // namespace

void StepClock::add(double step_s) {
  if (++num_steps_ <= kWarmupSteps) return;
  last_.push_back(step_s);
  if (last_.size() > kClockSteps) last_.pop_front();
}

std::optional<double> StepClock::median_s() const {
  if (last_.empty()) return std::nullopt;
  std::vector<double> sorted(last_.begin(), last_.end());
  auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
  std::nth_element(sorted.begin(), middle, sorted.end());
  return *middle;
}

std::string duration_text(double seconds) {
  if (!std::isfinite(seconds)) return "?";
  auto whole = static_cast<int64_t>(std::max(seconds, 0.0) + 0.5);
  return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
}

std::string rate_text(double tokens_per_s) {
  if (tokens_per_s >= 1e6) return fmt::format("{:.2f} Mtok/s", tokens_per_s / 1e6);
  if (tokens_per_s >= 1e3) return fmt::format("{:.1f} ktok/s", tokens_per_s / 1e3);
  return fmt::format("{:.0f} tok/s", tokens_per_s);
}

std::string step_line(const StepStatus& s) {
  size_t width = fmt::formatted_size("{}", s.steps);
  std::string out =
      fmt::format("step  {:>{}}/{}  {:.1f}%  loss {:.4f}", s.step, width, s.steps, 100 * share_done(s), s.loss);
  auto to = std::back_inserter(out);
  if (s.bits_per_byte) fmt::format_to(to, "  bpb {:.3f}", *s.bits_per_byte);
  if (s.lr) fmt::format_to(to, "  lr {:.2e}", *s.lr);
  if (s.grad_norm) fmt::format_to(to, "  gn {:.2f}", *s.grad_norm);
  if (s.tokens_per_s) out += "  " + rate_text(*s.tokens_per_s);
  if (s.mfu) fmt::format_to(to, "  MFU {:.1f}%", 100 * *s.mfu);
  if (s.memory_bytes) fmt::format_to(to, "  mem {:.1f} GiB", gib(*s.memory_bytes));
  if (s.eta_s) out += "  ETA " + duration_text(*s.eta_s);
  return out;
}

std::string bytes_bar(int64_t done, int64_t total) {
  double share = total > 0 ? static_cast<double>(done) / static_cast<double>(total) : 1;
  return fmt::format("{}  {:.1f} / {:.1f} MB", bar(share), static_cast<double>(done) / 1e6,
                     static_cast<double>(total) / 1e6);
}

std::string bar_line(const StepStatus& s) {
  std::string out = bar(share_done(s));
  auto to = std::back_inserter(out);
  if (s.val) fmt::format_to(to, "  val {:.4f}", *s.val);
  if (s.val && s.val_step) fmt::format_to(to, " @{}", *s.val_step);
  if (s.best_val) fmt::format_to(to, "  best {:.4f}", *s.best_val);
  if (s.checkpoint_step) fmt::format_to(to, "  ckpt @{}", *s.checkpoint_step);
  if (s.num_skipped > 0) fmt::format_to(to, "  skipped {}", s.num_skipped);
  return out;
}

std::string plain_line(const StepStatus& s) {
  std::string out =
      fmt::format("step={} steps={} percent={:.1f} loss={:.4f}", s.step, s.steps, 100 * share_done(s), s.loss);
  auto to = std::back_inserter(out);
  if (s.bits_per_byte) fmt::format_to(to, " bpb={:.3f}", *s.bits_per_byte);
  if (s.lr) fmt::format_to(to, " lr={:.2e}", *s.lr);
  if (s.grad_norm) fmt::format_to(to, " gn={:.2f}", *s.grad_norm);
  if (s.tokens_per_s) fmt::format_to(to, " tokens_per_s={:.0f}", *s.tokens_per_s);
  if (s.mfu) fmt::format_to(to, " mfu={:.1f}", 100 * *s.mfu);
  if (s.memory_bytes) fmt::format_to(to, " mem_gib={:.1f}", gib(*s.memory_bytes));
  if (s.eta_s) fmt::format_to(to, " eta={}", duration_text(*s.eta_s));
  if (s.val) fmt::format_to(to, " val={:.4f}", *s.val);
  if (s.val && s.val_step) fmt::format_to(to, " val_step={}", *s.val_step);
  if (s.best_val) fmt::format_to(to, " best={:.4f}", *s.best_val);
  if (s.checkpoint_step) fmt::format_to(to, " ckpt_step={}", *s.checkpoint_step);
  fmt::format_to(to, " skipped={}", s.num_skipped);
  return out;
}

void Progress::update(const StepStatus& status) {
  loss_sum_ += status.loss;
  ++num_losses_;
  bool ends_line = status.step % every_ == 0 || status.step == status.steps;
  if (ends_line || !has_shown_loss_) shown_loss_ = loss_sum_ / static_cast<double>(num_losses_);
  StepStatus shown = status;
  shown.loss = shown_loss_;
  if (ends_line) {
    loss_sum_ = 0;
    num_losses_ = 0;
    has_shown_loss_ = true;
  }
  if (lines_.is_terminal()) lines_.draw({step_line(shown), bar_line(shown)});
  else if (ends_line) lines_.log(plain_line(shown));
}

}  // namespace weft::cli
