// One training in its run folder, from the start to the report. pretrain.h is the way in.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "trainers/console/console.h"
#include "trainers/console/live_lines.h"
#include "trainers/run/checkpoint.h"
#include "trainers/run/data.h"
#include "trainers/run/folder.h"
#include "trainers/run/memory_estimate.h"
#include "trainers/run/recorder.h"
#include "trainers/run/result.h"
#include "trainers/run/start_model.h"
#include "trainers/run/trainer.h"
#include "weft/core/memory.h"

namespace weft::train {

void stop_if_asked();  // throws Stopped

class TrainingRun {
 public:
  // `team`: of several ranks, whose first one this is.
  TrainingRun(cli::Console& console, config::Loaded config, RunFolder& folder, Team* team = nullptr);

  void resume(const std::string& how);
  int train();

 private:
  // The start: training_start.cpp.
  void say(const std::string& line);
  RunData prepare();
  RunData prepare_for_all();
  MemoryEstimate check_and_start();
  void show_tokenising(const std::string& path, int64_t done, int64_t total);
  void announce();
  std::string ranks_text() const;

  // The steps and the end: training_run.cpp.
  std::optional<int> take_steps();  // an exit code if the run stops before its last step
  StepResult step();
  StepResult measured_step();
  void require_guard_goes_on();  // Error if the guard has skipped too many steps in a row
  int stop(const std::string& why);
  int finish();
  bool is_complete() const;
  RunResult result() const;
  std::vector<double> rates(double factor) const;

  // Between the steps: training_looks.cpp.
  void after_step(int64_t step);
  bool look_at_model(int64_t step);  // whether the validation is the best so far
  bool validate(bool is_last);
  bool note_validation(double loss);
  void write_samples();
  void save();
  void save_last_step();  // unless it is saved

  cli::Console& console_;
  config::Loaded config_;
  const config::Experiment& e_;
  RunFolder& folder_;
  Team* team_;
  cli::LiveLines tokenising_;
  RunData data_;
  std::vector<int32_t> prompt_;  // of samples
  std::string source_ = {};      // of the first weights: find_start()
  MemoryEstimate memory_;        // found before anything of it is taken
  Prediction prediction_;
  StartModel start_;  // without the model
  std::unique_ptr<LanguageModel> model_;
  Trainer trainer_;
  RunCheckpoints checkpoints_;
  double peak_flops_;
  Recorder recorder_;
  RunProgress progress_;
  int64_t steps_here_ = 0;           // of this process; the first 10 are not counted in the time
  std::vector<double> step_s_ = {};  // of those of this process, but for the first one
  std::optional<int64_t> sent_bytes_ = {};
  std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
  const char* again_ = "the same command continues";
  std::optional<MemoryLimit> limit_ = {};  // of the steps and all that comes between them
};

}  // namespace weft::train
