// The step line and bar of a training run: on a terminal two lines redrawn in place, elsewhere one key=value line every
// `every` steps.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>

#include "trainers/console/live_lines.h"

namespace weft::cli {

// Median step time for the ETA: of the last 50 steps, without the first 10 of the run.
class StepClock {
 public:
  void add(double step_s);
  std::optional<double> median_s() const;  // nothing within the first 10 steps

 private:
  int64_t num_steps_ = 0;
  std::deque<double> last_;
};

// One finished step. What is not known is left out of the line.
struct StepStatus {
  int64_t step = 0, steps = 0;                                            // finished, and of the whole run
  double loss = 0;                                                        // nats per token of this step
  std::optional<double> bits_per_byte, lr, grad_norm, tokens_per_s, mfu;  // mfu: 0 to 1
  std::optional<int64_t> memory_bytes;
  std::optional<double> eta_s;
  std::optional<double> val, best_val;
  std::optional<int64_t> val_step, checkpoint_step;
  int64_t num_skipped = 0;
};

class Progress {
 public:
  Progress(LiveOptions options, int64_t every) : lines_(std::move(options)), every_(every) {}

  // After every step. The loss shown is the mean over the steps since the last line, where a line ends every `every` steps.
  void update(const StepStatus& status);
  void log(std::string_view line) { lines_.log(line); }
  void finish() { lines_.finish(); }
  LiveLines& lines() { return lines_; }  // for Console::attach

 private:
  LiveLines lines_;
  int64_t every_;
  double loss_sum_ = 0, shown_loss_ = 0;
  int64_t num_losses_ = 0;
  bool has_shown_loss_ = false;
};

std::string step_line(const StepStatus& status);  // "step  1240/4768  26.0%  loss 3.2184 ..."
std::string bytes_bar(int64_t done, int64_t total);
std::string bar_line(const StepStatus& status);    // "[####----]  val 3.2417 @1000 ..."
std::string plain_line(const StepStatus& status);  // "step=1240 steps=4768 percent=26.0 loss=3.2184 ..."
std::string duration_text(double seconds);         // "0:15:58"
std::string rate_text(double tokens_per_s);        // "1.92 Mtok/s"

}  // namespace weft::cli
