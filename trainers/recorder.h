// What a run writes and shows: metrics.jsonl, TensorBoard events, step lines, samples, the report.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "trainers/console.h"
#include "trainers/evaluate.h"
#include "trainers/progress.h"
#include "trainers/run_folder.h"
#include "trainers/trainer.h"
#include "weft/io/events.h"
#include "weft/io/metrics.h"

namespace weft::train {

struct RecorderOptions {
  int64_t log_every = 10;
  bool writes_events = true;
  double peak_flops = 0;  // measured GEMM rate of the compute dtype
  double flops_per_token = 0;
};

class Recorder {
 public:
  Recorder(RunFolder& folder, cli::Console& console, const Plan& plan, std::vector<std::string> group_names,
           RecorderOptions options);
  ~Recorder();

  void message(const std::string& line);  // above the bar and into log.txt
  void rewind(int64_t step) { metrics_.rewind(step); }
  // After a step: `rates` are the groups' learning rates, `time_s` the training time so far, `step_s` of this one.
  void step(const StepResult& result, int64_t step, std::span<const double> rates, double time_s, double step_s,
            int64_t num_skipped);
  void diagnostics(const StepResult& result, int64_t step, double time_s);
  void analysis(std::vector<std::pair<std::string, double>> values, int64_t step, double time_s) {
    write("analysis", step, time_s, std::move(values));
  }
  void validation(const Evaluation& evaluation, int64_t step, double time_s, bool is_best);
  void restore(std::optional<double> best_val) { status_.best_val = best_val; }  // for the bar of a resumed run
  void checkpoint(int64_t step) { status_.checkpoint_step = step; }
  void sample(int64_t step, const std::string& prompt, const std::string& text);
  void finish() { progress_.finish(); }

  const std::vector<std::pair<std::string, std::string>>& samples() const { return samples_; }  // heading, text
  double tokens_per_s() const { return tokens_per_s_; }                                         // of the last line
  // Writes report.html from all that is recorded; returns its path.
  std::string report(const std::vector<std::pair<std::string, std::string>>& facts, const std::string& title);

 private:
  void write(const std::string& kind, int64_t step, double time_s, std::vector<std::pair<std::string, double>> values);

  RunFolder& folder_;
  cli::Console& console_;
  Plan plan_;
  std::vector<std::string> group_names_;
  RecorderOptions options_;
  io::MetricsWriter metrics_;
  std::unique_ptr<io::EventWriter> events_;
  cli::Progress progress_;
  cli::StepClock clock_;
  cli::StepStatus status_;
  std::vector<std::pair<std::string, std::string>> samples_;

  // Since the last line.
  double loss_sum_ = 0, seconds_ = 0, nats_ = 0;
  int64_t steps_ = 0, bytes_ = 0;
  double tokens_per_s_ = 0;
};

double wall_now_s();

}  // namespace weft::train
