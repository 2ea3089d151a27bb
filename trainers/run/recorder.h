// What a run writes and shows: metrics.jsonl, TensorBoard events, step lines, samples, the report. Each record has each step once,
// whatever interrupted the run: continue_from() takes back what stands beyond the step that a run continues from.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "trainers/console/console.h"
#include "trainers/console/progress.h"
#include "trainers/run/evaluate.h"
#include "trainers/run/folder.h"
#include "trainers/run/peak_memory.h"
#include "trainers/run/peak_rate.h"
#include "trainers/run/samples_file.h"
#include "trainers/run/trainer.h"
#include "weft/io/events.h"
#include "weft/io/metrics.h"

namespace weft::train {

// What a line of metrics is a mean or sum of, since the line before.
struct LineSums {
  double loss = 0, nats = 0, seconds = 0;
  int64_t steps = 0, bytes = 0;
};

struct RecorderOptions {
  int64_t log_every = 10;
  int64_t samples = 1;  // each time
  bool writes_events = true;
  double peak_flops = 0;  // measured GEMM rate of the compute dtype
  double flops_per_token = 0;
  // Once more, for an MFU above 100 %. Its tensors do not count as the run's memory.
  std::function<double()> measure_peak_flops = {};
  std::vector<std::string> group_labels = {};  // of the learning rates in the report, one per group
};

class Recorder {
 public:
  Recorder(RunFolder& folder, cli::Console& console, const StepSizes& sizes, std::vector<std::string> group_names,
           RecorderOptions options);
  ~Recorder();

  void message(const std::string& line);  // above the bar and into log.txt
  // Before the first record: takes back what is recorded of later steps than `step`, and what `step` has only in part. What is taken
  // back goes to set-aside/ in the run folder.
  void continue_from(int64_t step, const LineSums& line);
  bool has(const std::string& kind, int64_t step) const;         // a record of the step
  const io::MetricsRecord* last(const std::string& kind) const;  // null if there is none
  void sync();                                                   // all records, to the disk
  // After a step: `rates` are the groups' learning rates, `time_s` the training time so far, `step_s` of this one.
  void step(const StepResult& result, int64_t step, std::span<const double> rates, double time_s, double step_s,
            int64_t num_skipped);
  void diagnostics(const StepResult& result, int64_t step, double time_s);
  void analysis(std::vector<std::pair<std::string, double>> values, int64_t step, double time_s) {
    write("analysis", step, time_s, std::move(values));
  }
  void validation(const Evaluation& evaluation, int64_t step, double time_s, bool is_best);
  const LineSums& line() const { return line_; }
  void restore(std::optional<double> best_val) { status_.best_val = best_val; }  // for the bar of a resumed run
  void checkpoint(int64_t step) { status_.checkpoint_step = step; }
  void sample(int64_t step, const std::string& text);
  void finish() { progress_.finish(); }

  const SamplesFile& samples() const { return samples_; }
  std::string report_path() const { return folder_.file("report.html"); }
  // Writes report.html from all that is recorded; returns its path. Error if `is_stopping` says so meanwhile.
  std::string report(const std::vector<std::pair<std::string, std::string>>& facts, const std::string& title,
                     std::function<bool()> is_stopping);

 private:
  void write(const std::string& kind, int64_t step, double time_s, std::vector<std::pair<std::string, double>> values);
  io::EventWriter* events();  // null if the run writes none

  RunFolder& folder_;
  cli::Console& console_;
  StepSizes sizes_;
  std::vector<std::string> group_names_;
  RecorderOptions options_;
  io::MetricsWriter metrics_;
  std::unique_ptr<io::EventWriter> events_;
  cli::Progress progress_;
  cli::StepClock clock_;
  cli::StepStatus status_;
  PeakMemory peak_memory_;
  PeakRate peak_rate_;
  SamplesFile samples_;
  std::map<std::string, io::MetricsRecord> last_;  // by kind
  std::optional<int64_t> continued_from_;
  LineSums line_;
};

double wall_now_s();

}  // namespace weft::train
