#include "trainers/run/training_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "src/core/not_finite.h"
#include "src/training/diverged.h"
#include "trainers/console/json_text.h"
#include "trainers/console/stop_signal.h"
#include "trainers/run/facts.h"
#include "trainers/run/trace.h"
#include "weft/comm/dry_ranks.h"
#include "weft/core/error.h"
#include "weft/io/files.h"
#include "weft/trainers/cli.h"

namespace weft::train {

using Clock = std::chrono::steady_clock;

static double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

constexpr size_t kMostStepTimes = 100000;

static std::optional<double> median(std::vector<double> values) {
  if (values.empty()) return std::nullopt;
  const auto middle = values.begin() + std::ssize(values) / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

void stop_if_asked() {
  if (StopSignal::was_raised()) throw Stopped();
}

std::vector<double> TrainingRun::rates(double factor) const {
  std::vector<double> rates;
  const Optimizer& optimizer = trainer_.optimizer();
  for (size_t g = 0; g < optimizer.groups().size(); ++g) rates.push_back(optimizer.lr(g) * factor);
  return rates;
}

int TrainingRun::train() {
  if (is_complete()) {
    console_.message(str("nothing to do: the run is done. ", summary(result())));
    console_.result(result_text(result(), console_.is_json()));
    return cli::kSuccess;
  }
  announce();
  // A bad id that the scan finds late, or that a row has: it comes before its step, so the state is that of the last one.
  try {
    if (auto exit_code = take_steps()) return *exit_code;
  } catch (const data::IdError&) {
    if (trainer_.num_steps() > 0) save_last_step();
    throw;
  }
  return finish();
}

std::optional<int> TrainingRun::take_steps() {
  require_guard_goes_on();
  if (trainer_.num_steps() > 0 && trainer_.num_steps() < trainer_.sizes().steps) after_step(trainer_.num_steps());
  while (trainer_.num_steps() < trainer_.sizes().steps) {
    if (trainer_.num_steps() == 0) stop_if_asked();
    if (StopSignal::was_raised()) return stop(StopSignal::name());
    StopSignal::waits_for("finishing the step and saving a checkpoint");
    folder_.require_present();
    data_.scan->look();
    auto begin = Clock::now();
    StepResult result = measured_step();
    double step_s = seconds_since(begin);
    if (++steps_here_ > 10) progress_.time_s += step_s;
    if (steps_here_ > 1 && step_s_.size() < kMostStepTimes) step_s_.push_back(step_s);
    recorder_.step(result, trainer_.num_steps(), rates(result.lr_factor), progress_.time_s, step_s,
                   trainer_.num_skipped());
    recorder_.diagnostics(result, trainer_.num_steps(), progress_.time_s);
    if (trainer_.guard().gives_up()) save();
    require_guard_goes_on();
    bool is_done = trainer_.num_steps() == trainer_.sizes().steps;
    if (!is_done) after_step(trainer_.num_steps());
    if (!is_done && e_.train().has_max_seconds() && seconds_since(started_) > e_.train().max_seconds())
      return stop("train.max_seconds is over");
  }
  return std::nullopt;
}

// Its count goes through checkpoints: a resume alone does not give the run more steps.
void TrainingRun::require_guard_goes_on() {
  const int64_t count = trainer_.guard().num_in_a_row();
  if (!trainer_.guard().gives_up()) return;
  recorder_.finish();
  fail_as<Diverged>(
      str("step ", trainer_.num_steps(), ": the outlier guard has skipped ", count,
          " steps in a row, the most that optim.skip.max_in_a_row allows; the weights are those of step ",
          trainer_.num_steps() - count),
      "go on from an earlier checkpoint with a lower learning rate in another run (--resume), find the op with "
      "train.anomaly=true, or allow more with optim.skip.max_in_a_row");
}

// What a step sends is the same in each of them; the first one also makes what later ones keep.
StepResult TrainingRun::measured_step() {
  if (!team_ || steps_here_ != 1) return step();
  const int64_t before = dist::recorded_bytes(folder_.path(), team_->world().rank());
  StepResult result = step();
  sent_bytes_ = dist::recorded_bytes(folder_.path(), team_->world().rank()) - before;
  return result;
}

// A step, with its trace where one is due.
StepResult TrainingRun::step() {
  const int64_t next = trainer_.num_steps() + 1, first = e_.log().trace_step();
  if (!e_.log().has_trace_step() || next < first || next >= first + e_.log().trace_steps()) return trainer_.step();
  GradientMarks marks(*model_);
  Profile profile(default_device());
  StepResult result = trainer_.step();
  const std::string path = fmt::format("{}/step-{:08}.json", folder_.file("trace"), next);
  const std::vector<ProfileSpan> spans = profile.finish();
  write_trace(spans, path);
  const std::string shares = path.substr(0, path.size() - 5) + ".txt";  // beside the .json
  io::write_file_atomically(shares, share_table(spans));
  recorder_.message("trace of step " + std::to_string(next) + ": " + path + ", and its shares: " + shares);
  return result;
}

int TrainingRun::stop(const std::string& why) {
  save_last_step();
  recorder_.finish();
  recorder_.message(str("stopped after step ", trainer_.num_steps(), " (", why, "); ", again_));
  if (console_.is_json())
    console_.result(cli::json_text(
        nlohmann::ordered_json{{"run", folder_.path()}, {"step", trainer_.num_steps()}, {"stopped", why}}));
  return cli::kStopped;
}

int TrainingRun::finish() {
  save_last_step();
  try {
    if (look_at_model(trainer_.sizes().steps)) checkpoints_.prune(progress_);
    recorder_.finish();
    StopSignal::waits_for("breaking the report off; all else is saved");
    Team::Errand errand(team_);
    RunResult done = result();
    if (steps_here_ > 0) write_measured(done, folder_.file("prediction.json"));
    Facts all = facts(done);
    for (auto& fact : run_facts(e_, io::read_file(folder_.file("environment.txtpb")))) all.push_back(std::move(fact));
    recorder_.report(all, e_.name(), StopSignal::was_raised);
    recorder_.message("done: " + summary(done));
    console_.result(result_text(done, console_.is_json()));
    return cli::kSuccess;
  } catch (const Stopped&) {
  } catch (const Error&) {
    if (!StopSignal::was_raised()) throw;
  }
  return stop(StopSignal::name());
}

// Every step is done, and so is everything that belongs after the last one.
bool TrainingRun::is_complete() const {
  const int64_t steps = trainer_.sizes().steps;
  return trainer_.num_steps() == steps && checkpoints_.last_saved() == steps &&
         (!data_.validation || recorder_.has("val", steps)) && recorder_.samples().count(steps) >= e_.log().samples() &&
         io::file_exists(recorder_.report_path());
}

RunResult TrainingRun::result() const {
  const StepSizes& sizes = trainer_.sizes();
  RunResult result = with_records({.run = folder_.path(),
                                   .report = recorder_.report_path(),
                                   .params = model_->num_params(),
                                   .steps = sizes.steps,
                                   .tokens = sizes.steps * sizes.tokens_per_step,
                                   .time_s = progress_.time_s,
                                   .num_skipped = trainer_.num_skipped(),
                                   .predicted = prediction_,
                                   .step_s = median(step_s_),
                                   .sent_bytes = sent_bytes_},
                                  recorder_);
  if (steps_here_ == 0) read_measured(result, folder_.file("prediction.json"));
  return result;
}

}  // namespace weft::train
