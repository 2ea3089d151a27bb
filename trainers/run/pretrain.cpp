#include "trainers/run/pretrain.h"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "trainers/console/console.h"
#include "trainers/console/live_lines.h"
#include "trainers/console/progress.h"
#include "trainers/console/stop_signal.h"
#include "trainers/run/address.h"
#include "trainers/run/checkpoint.h"
#include "trainers/run/facts.h"
#include "trainers/run/memory_estimate.h"
#include "trainers/run/recorder.h"
#include "trainers/run/result.h"
#include "trainers/run/session.h"
#include "trainers/run/start_checks.h"
#include "trainers/run/system_info.h"
#include "trainers/run/trace.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"
#include "weft/data/tokenizer.h"
#include "weft/io/files.h"
#include "weft/io/report.h"
#include "weft/models/sample.h"
#include "weft/trainers/cli.h"

namespace weft::train {

namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

TrainerOptions trainer_options(const config::Experiment& e, const RunData& data) {
  TrainerOptions options{.plan = make_plan(e),
                         .schedule = schedule_options(e),
                         .clip_norm = e.optim().clip_norm(),
                         .seed = static_cast<uint64_t>(e.seed()),
                         .keeps_documents_apart = data.keeps_documents_apart(),
                         .overfits_one_batch = e.train().overfit_one_batch(),
                         .diagnostics_every = e.log().diagnostics_every(),
                         .attention = attention_backend(e)};
  if (e.optim().has_skip())
    options.guard = {.is_on = true,
                     .loss_z = e.optim().skip().loss_z(),
                     .grad_z = e.optim().skip().grad_z(),
                     .window = e.optim().skip().window(),
                     .max_in_a_row = e.optim().skip().max_in_a_row()};
  return options;
}

std::vector<std::string> group_names(const Optimizer& optimizer) {
  std::vector<std::string> names;
  for (const ParamGroup& group : optimizer.groups()) names.push_back(group.name);
  return names;
}

struct Stopped {};  // thrown where a signal breaks work off

void stop_if_asked() {
  if (StopSignal::was_raised()) throw Stopped();
}

class Run {
 public:
  Run(cli::Console& console, config::Loaded config, RunFolder& folder)
      : console_(console),
        config_(std::move(config)),
        e_(config_.experiment),
        folder_(folder),
        data_(prepare()),
        prompt_(checked_prompt(config_, data_)),
        memory_(check_memory(config_, data_.num_ids(), data_.keeps_documents_apart())),
        model_(make_model(config_, data_)),
        optimizer_(param_groups(e_), optimizer_params(*model_)),
        trainer_(*model_, optimizer_, *data_.loader, trainer_options(e_, data_), data_.byte_lengths),
        checkpoints_(folder.file("checkpoints"),
                     {.keep_last = static_cast<int>(e_.checkpoint().keep_last()),
                      .keep_every = e_.checkpoint().keep_every(),
                      .keeps_best = e_.checkpoint().keep_best()},
                     *model_, optimizer_, trainer_, folder.config_text(), static_cast<uint64_t>(e_.seed()),
                     data_.identity),
        peak_flops_(measured_peak_flops(compute_dtype(e_))),
        recorder_(folder, console, trainer_.plan(), group_names(optimizer_),
                  {.log_every = e_.log().every(),
                   .samples = e_.log().samples(),
                   .writes_events = e_.log().tensorboard(),
                   .peak_flops = peak_flops_,
                   .flops_per_token = model_->flops_per_token(),
                   .measure_peak_flops = [this] { return measured_peak_flops(compute_dtype(e_)); },
                   .group_labels = group_labels(e_)}) {
    forget_peak(default_device());  // of what is above; a run's peak is that of its steps
  }

  void resume(const std::string& how);
  int train();

 private:
  void say(const std::string& line);
  RunData prepare();
  void show_tokenising(const std::string& path, int64_t done, int64_t total);
  void announce();
  StepResult step();
  void after_step(int64_t step);
  bool look_at_model(int64_t step);  // whether the validation is the best so far
  bool validate(bool is_last);
  bool note_validation(double loss);
  void require_guard_goes_on();  // Error if the guard has skipped too many steps in a row
  void write_samples();
  void save();
  int stop(const std::string& why);
  int finish();
  bool is_complete() const;
  RunResult result() const;
  std::vector<double> rates(double factor) const;

  cli::Console& console_;
  config::Loaded config_;
  const config::Experiment& e_;
  RunFolder& folder_;
  cli::LiveLines tokenising_{cli::live_options(console_.verbosity() == cli::Verbosity::quiet ? -1 : STDERR_FILENO)};
  RunData data_;
  std::vector<int32_t> prompt_;  // of samples
  MemoryEstimate memory_;        // found before anything of it is taken
  std::unique_ptr<LanguageModel> model_;
  Optimizer optimizer_;
  Trainer trainer_;
  RunCheckpoints checkpoints_;
  double peak_flops_;
  Recorder recorder_;
  RunProgress progress_;
  int64_t steps_here_ = 0;  // of this process; the first 10 are not counted in the time
  Clock::time_point started_ = Clock::now();
  const char* again_ = "the same command continues";
};

// Before there is a recorder.
void Run::say(const std::string& line) {
  folder_.log(line);
  console_.message(line);
}

void Run::show_tokenising(const std::string& path, int64_t done, int64_t total) {
  stop_if_asked();
  tokenising_.draw({cli::bytes_bar(done, total)});
  if (done < total) return;
  tokenising_.clear();
  say(str("tokenised ", path, ": ", total, " bytes"));
}

// Shards that a start left which never trained may be of other texts: where they do not fit, they are set aside.
RunData Run::prepare() {
  StopSignal::waits_for("finishing this piece of the text; what is tokenised stays");
  PrepareOptions options{
      .records = true,
      .is_continued = folder_.existed(),
      .progress = [&](const std::string& path, int64_t done, int64_t total) { show_tokenising(path, done, total); }};
  const bool has_left_overs = folder_.has_failed_start() && io::is_folder(folder_.file("data"));
  try {
    return prepare_data(config_, folder_.path(), options);
  } catch (const Error& error) {
    // The words of tokenize_files() for a record of other inputs; every other error is the same with new shards.
    if (!has_left_overs || error.problem().find(" belongs to ") == std::string::npos) throw;
    tokenising_.clear();
    say(str("data of an earlier start, which did not train, is moved to ", folder_.set_aside("data"), ": ",
            error.problem()));
  }
  return prepare_data(config_, folder_.path(), options);
}

void Run::resume(const std::string& how) {
  StopSignal::waits_for("finishing the start");
  std::vector<std::string> messages;
  bool is_folder = how != "auto" && how != "never";
  bool has_checkpoint = !io::list_checkpoints(folder_.file("checkpoints")).empty();
  WEFT_CHECK(how != "never" || !has_checkpoint, str("run folder ", folder_.path(), " already holds checkpoints"),
             "choose another folder with --run, or leave --resume at auto to continue");
  std::optional<RunProgress> found;
  if (is_folder) {
    found = checkpoints_.restore(how);
    again_ = "the same command without --resume continues";
  } else {
    found = checkpoints_.restore_latest(messages);
  }
  for (const std::string& message : messages) recorder_.message(message);
  if (found) progress_ = *found;
  // First the checkpoint that every later start continues from, then the records up to it: killed between, the next start does the rest.
  if (found)
    for (const std::string& place : checkpoints_.settle(progress_))
      recorder_.message(str("a checkpoint that the run does not continue from is moved to ", place));
  recorder_.continue_from(trainer_.num_steps(), progress_.line);
  if (!found) return;
  // Also a validation that came after its step was saved.
  if (auto best = best_validation(folder_.path(), trainer_.num_steps())) {
    progress_.best_val = best->loss;
    progress_.best_step = best->step;
  }
  recorder_.restore(progress_.best_val);
  recorder_.checkpoint(trainer_.num_steps());
  if (is_complete()) return;
  recorder_.message(str("resumed at step ", trainer_.num_steps(), " of ", trainer_.plan().steps));
  std::string warning = finite_warning(io::read_checkpoint_info(checkpoints_.restored()), folder_.file("checkpoints"));
  if (!warning.empty()) recorder_.message(warning);
}

void Run::announce() {
  const Plan& plan = trainer_.plan();
  recorder_.message(str("weft ", cli::system_info().version, ", run ", folder_.path(), ": ", e_.name(), ", seed ",
                        e_.seed(), ", 1 rank, ", num_threads(), " threads, ", compute_dtype(e_), " on ",
                        default_device()));
  recorder_.message(fmt::format("model: {} parameters, {:.3g} MFLOP per token; measured peak {:.0f} GFLOP/s {}",
                                model_->num_params(), model_->flops_per_token() / 1e6, peak_flops_ / 1e9,
                                str(compute_dtype(e_))));
  cli::SystemInfo system = cli::system_info();
  console_.detail(str("machine: ", system.host, ", ", system.cpu, ", kernels ", system.isa, ", config ",
                      config_.experiment.name(), " resolved in ", folder_.file("config.txtpb")));
  recorder_.message(str("data: ", data_.tokenizer->name(), " tokenizer, ", data_.train->num_tokens(),
                        " training tokens, ", data_.validation ? data_.validation->num_tokens() : 0,
                        " validation tokens; documents: ", data_.documents_text()));
  if (!io::has_plotter())
    recorder_.message(
        "warning: there is no gnuplot: the report will have tables without curves (apt-get install gnuplot-nox)");
  recorder_.message(str("plan: ", plan.steps, " steps of ", plan.tokens_per_step, " tokens (", plan.micro_batches,
                        " x ", plan.micro_batch, " x ", plan.context, "), ", plan.steps * plan.tokens_per_step,
                        " tokens"));
  recorder_.message("memory: predicted peak " + memory_.text());
}

std::vector<double> Run::rates(double factor) const {
  std::vector<double> rates;
  for (size_t g = 0; g < optimizer_.groups().size(); ++g) rates.push_back(optimizer_.lr(g) * factor);
  return rates;
}

int Run::train() {
  if (is_complete()) {
    console_.message(str("nothing to do: the run is done. ", summary(result())));
    console_.result(result_text(result(), console_.is_json()));
    return cli::kSuccess;
  }
  announce();
  require_guard_goes_on();
  if (trainer_.num_steps() > 0 && trainer_.num_steps() < trainer_.plan().steps) after_step(trainer_.num_steps());
  while (trainer_.num_steps() < trainer_.plan().steps) {
    if (trainer_.num_steps() == 0) stop_if_asked();
    if (StopSignal::was_raised()) return stop(StopSignal::name());
    StopSignal::waits_for("finishing the step and saving a checkpoint");
    folder_.require_present();
    data_.scan->look();
    auto begin = Clock::now();
    StepResult result = step();
    double step_s = seconds_since(begin);
    if (++steps_here_ > 10) progress_.time_s += step_s;
    recorder_.step(result, trainer_.num_steps(), rates(result.lr_factor), progress_.time_s, step_s,
                   trainer_.num_skipped());
    recorder_.diagnostics(result, trainer_.num_steps(), progress_.time_s);
    if (trainer_.guard().gives_up()) save();
    require_guard_goes_on();
    bool is_done = trainer_.num_steps() == trainer_.plan().steps;
    if (!is_done) after_step(trainer_.num_steps());
    if (!is_done && e_.train().has_max_seconds() && seconds_since(started_) > e_.train().max_seconds())
      return stop("train.max_seconds is over");
  }
  return finish();
}

// Its count goes through checkpoints: a resume alone does not give the run more steps.
void Run::require_guard_goes_on() {
  const int64_t count = trainer_.guard().num_in_a_row();
  if (!trainer_.guard().gives_up()) return;
  recorder_.finish();
  fail(str("step ", trainer_.num_steps(), ": the outlier guard has skipped ", count,
           " steps in a row, the most that optim.skip.max_in_a_row allows; the weights are those of step ",
           trainer_.num_steps() - count),
       "go on from an earlier checkpoint with a lower learning rate in another run (--resume), find the op with "
       "train.anomaly=true, or allow more with optim.skip.max_in_a_row");
}

// A step, with its trace where one is due.
StepResult Run::step() {
  const int64_t next = trainer_.num_steps() + 1, first = e_.log().trace_step();
  if (!e_.log().has_trace_step() || next < first || next >= first + e_.log().trace_steps()) return trainer_.step();
  GradientMarks marks(*model_);
  Profile profile(default_device());
  StepResult result = trainer_.step();
  const std::string path = fmt::format("{}/step-{:08}.json", folder_.file("trace"), next);
  write_trace(profile.finish(), path);
  recorder_.message("trace of step " + std::to_string(next) + ": " + path);
  return result;
}

// Saved first: what looks at the model may fail or be broken off, and is made up for by the next start.
void Run::after_step(int64_t step) {
  const int64_t every = e_.checkpoint().every();
  if (every > 0 && step % every == 0 && checkpoints_.last_saved() != step) save();
  try {
    if (look_at_model(step) && e_.checkpoint().keep_best() && checkpoints_.last_saved() != step) save();
  } catch (const Stopped&) {}  // the caller sees the signal too
}

// What is due after a step and not recorded yet.
bool Run::look_at_model(int64_t step) {
  const bool is_last = step == trainer_.plan().steps;
  auto is_due = [&](int64_t every) { return is_last || (every > 0 && step % every == 0); };
  bool is_best = false;
  if (is_due(e_.eval().every()) && data_.validation && !recorder_.has("val", step)) is_best = validate(is_last);
  if (is_due(e_.log().samples_every()) && recorder_.samples().count(step) < e_.log().samples()) write_samples();
  if (!is_last && is_due(e_.log().analysis_every()) && !recorder_.has("analysis", step)) {
    StopSignal::waits_for("finishing the analysis and saving a checkpoint");
    AveragedWeights averages(optimizer_);
    AnalysisRows rows = analysis_rows(data_, trainer_.plan().context, 8);
    if (has_targets(rows)) recorder_.analysis(analyse(*model_, rows), step, progress_.time_s);
    else recorder_.message(str("step ", step, ": no analysis: none of its tokens has a target"));
  }
  return is_best;
}

bool Run::validate(bool is_last) {
  StopSignal::waits_for("breaking the validation off, to be made up for, and saving a checkpoint");
  AveragedWeights averages(optimizer_);
  Evaluation evaluation = evaluate(*model_, data_.windows(trainer_.plan().context),
                                   {.batch = trainer_.plan().micro_batch,
                                    .max_tokens = is_last ? 0 : e_.eval().tokens(),
                                    .keeps_documents_apart = data_.keeps_documents_apart(),
                                    .byte_lengths = data_.byte_lengths,
                                    .attention = attention_backend(e_),
                                    .progress = [](int64_t, int64_t) { stop_if_asked(); }});
  // The last one may have read more than those before: then they are not compared.
  bool is_comparable = !is_last || !e_.eval().has_tokens() || e_.eval().tokens() >= data_.validation->num_tokens();
  bool is_best =
      evaluation.has_targets() && (is_comparable || !progress_.best_val) && note_validation(evaluation.loss());
  recorder_.validation(evaluation, trainer_.num_steps(), progress_.time_s, is_best);
  return is_best;
}

// Whether it is the best so far.
bool Run::note_validation(double loss) {
  if (!std::isfinite(loss) || (progress_.best_val && loss >= *progress_.best_val)) return false;
  progress_.best_val = loss;
  progress_.best_step = trainer_.num_steps();
  return true;
}

void Run::write_samples() {
  StopSignal::waits_for("finishing the sample and saving a checkpoint");
  AveragedWeights averages(optimizer_);
  for (int64_t i = recorder_.samples().count(trainer_.num_steps()); i < e_.log().samples(); ++i) {
    stop_if_asked();
    uint64_t seed = Rng(static_cast<uint64_t>(e_.seed()))["samples"][static_cast<uint64_t>(i)].key();
    std::vector<int32_t> ids = weft::sample(*model_, prompt_,
                                            {.tokens = e_.log().sample_tokens(),
                                             .temperature = e_.log().sample_temperature(),
                                             .top_p = e_.log().sample_top_p(),
                                             .seed = seed,
                                             .vocab = data_.tokenizer->vocab_size(),
                                             .end_of_text = data_.end_of_text,
                                             .first_token = data_.first_token});
    recorder_.sample(trainer_.num_steps(),
                     data::show_utf8(data_.tokenizer->decode(prompt_)) + data::show_utf8(data_.tokenizer->decode(ids)));
  }
}

// The records first, to the disk: a checkpoint never stands for steps that they lack.
void Run::save() {
  StopSignal::waits_for("finishing the checkpoint");
  folder_.require_present();
  recorder_.sync();
  progress_.line = recorder_.line();
  std::string warning = checkpoints_.save(progress_);
  recorder_.checkpoint(trainer_.num_steps());
  if (!warning.empty()) recorder_.message(warning);
}

int Run::stop(const std::string& why) {
  if (checkpoints_.last_saved() != trainer_.num_steps()) save();
  recorder_.finish();
  recorder_.message(str("stopped after step ", trainer_.num_steps(), " (", why, "); ", again_));
  if (console_.is_json())
    console_.result(
        nlohmann::ordered_json{{"run", folder_.path()}, {"step", trainer_.num_steps()}, {"stopped", why}}.dump(2) +
        "\n");
  return cli::kStopped;
}

int Run::finish() {
  if (checkpoints_.last_saved() != trainer_.num_steps()) save();
  try {
    if (look_at_model(trainer_.plan().steps)) checkpoints_.prune(progress_);
    recorder_.finish();
    StopSignal::waits_for("breaking the report off; all else is saved");
    RunResult done = result();
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
bool Run::is_complete() const {
  const int64_t steps = trainer_.plan().steps;
  return trainer_.num_steps() == steps && checkpoints_.last_saved() == steps &&
         (!data_.validation || recorder_.has("val", steps)) && recorder_.samples().count(steps) >= e_.log().samples() &&
         io::file_exists(recorder_.report_path());
}

RunResult Run::result() const {
  const Plan& plan = trainer_.plan();
  return with_records({.run = folder_.path(),
                       .report = recorder_.report_path(),
                       .params = model_->num_params(),
                       .steps = plan.steps,
                       .tokens = plan.steps * plan.tokens_per_step,
                       .time_s = progress_.time_s,
                       .num_skipped = trainer_.num_skipped(),
                       .predicted_peak_bytes = memory_.peak_bytes},
                      recorder_);
}

// The folder of the checkpoint that --resume names; "auto" and "never" as they are.
std::string named_checkpoint(const std::string& name, cli::Console& console) {
  if (name == "auto" || name == "never") return name;
  const std::string words[] = {"auto", "never"};
  std::string near = config::nearest(name, words);
  if (!io::file_exists(name) && !near.empty() && name.find('@') == std::string::npos)
    throw config::ConfigError(str("--resume ", name, ": no such checkpoint. Did you mean '", near, "'?"),
                              "Use auto, never, RUN@STEP, RUN@best, RUN@latest, or a checkpoint's folder.");
  const RunAddress found = find_run(name);
  if (!found.checkpoint.empty()) return found.checkpoint;
  std::vector<std::string> messages;
  auto newest = io::find_latest_checkpoint(found.folder + "/checkpoints", messages);
  for (const std::string& message : messages) console.message(message);
  return newest.value();  // find_run has seen that there is one
}

}  // namespace

int pretrain(cli::Console& console, const PretrainArguments& arguments) {
  config::Loaded config = config::load(arguments.config_file, arguments.overrides);
  config.mixers = arguments.mixers;
  apply_process_settings(config.experiment);
  std::string path = arguments.run_folder.empty() ? "runs/" + config.experiment.name() : arguments.run_folder;
  RunFolder folder(path, config.experiment, arguments.overrides);
  StopSignal signals(console.verbosity() != cli::Verbosity::quiet);
  try {
    check_files(config, folder);
    const std::string resume = named_checkpoint(arguments.resume, console);
    if (resume != "auto" && resume != "never") io::read_checkpoint_info(resume);
    Run run(console, std::move(config), folder);
    run.resume(resume);
    return run.train();
  } catch (const Stopped&) {
    console.message(str("stopped before the first step (", StopSignal::name(), "); the same command continues"));
    return cli::kStopped;
  } catch (const std::exception& error) {
    folder.log(str("error: ", error.what()));
    throw;
  }
}

}  // namespace weft::train
