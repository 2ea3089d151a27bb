#include "trainers/pretrain.h"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "trainers/console.h"
#include "trainers/live_lines.h"
#include "trainers/progress.h"
#include "trainers/recorder.h"
#include "trainers/run_checkpoint.h"
#include "trainers/session.h"
#include "trainers/stop_signal.h"
#include "trainers/system_info.h"
#include "trainers/trace.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"
#include "weft/data/tokenizer.h"
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
                     .window = e.optim().skip().window()};
  return options;
}

std::vector<std::string> group_names(const Optimizer& optimizer) {
  std::vector<std::string> names;
  for (const ParamGroup& group : optimizer.groups()) names.push_back(group.name);
  return names;
}

struct Stopped {};  // thrown where a signal interrupts the work before the first step

class Run {
 public:
  Run(cli::Console& console, config::Loaded config, RunFolder& folder)
      : console_(console),
        config_(std::move(config)),
        e_(config_.experiment),
        folder_(folder),
        data_(prepare_data(config_, folder.path(),
                           {.progress = [&](const std::string& path, int64_t done,
                                            int64_t total) { show_tokenising(path, done, total); }})),
        model_(make_model(config_, data_)),
        optimizer_(param_groups(e_), optimizer_params(*model_)),
        trainer_(*model_, optimizer_, *data_.loader, trainer_options(e_, data_), data_.byte_lengths),
        checkpoints_(
            folder.file("checkpoints"),
            {.keep_last = static_cast<int>(e_.checkpoint().keep_last()), .keep_every = e_.checkpoint().keep_every()},
            *model_, optimizer_, trainer_, folder.config_text(), static_cast<uint64_t>(e_.seed())),
        peak_flops_(measured_peak_flops(compute_dtype(e_))),
        recorder_(folder, console, trainer_.plan(), group_names(optimizer_),
                  {.log_every = e_.log().every(),
                   .writes_events = e_.log().tensorboard(),
                   .peak_flops = peak_flops_,
                   .flops_per_token = model_->flops_per_token()}) {}

  void resume(const std::string& how);
  int train();

 private:
  void say(const std::string& line);
  void show_tokenising(const std::string& path, int64_t done, int64_t total);
  void announce();
  StepResult step();
  void after_step(int64_t step);
  bool validate(bool is_last);  // whether it is the best so far
  void write_sample();
  void save();
  int stop(const std::string& why);
  int finish();
  void print_result(const std::string& report);
  std::vector<double> rates(double factor) const;

  cli::Console& console_;
  config::Loaded config_;
  const config::Experiment& e_;
  RunFolder& folder_;
  cli::LiveLines tokenising_{cli::live_options(console_.verbosity() == cli::Verbosity::quiet ? -1 : STDERR_FILENO)};
  RunData data_;
  std::unique_ptr<LanguageModel> model_;
  Optimizer optimizer_;
  Trainer trainer_;
  RunCheckpoints checkpoints_;
  double peak_flops_;
  Recorder recorder_;
  RunProgress progress_;
  std::optional<Evaluation> last_evaluation_;
  double last_loss_ = NAN;
  int64_t steps_here_ = 0;  // of this process; the first 10 are not counted in the time
  Clock::time_point started_ = Clock::now();
};

// Before there is a recorder.
void Run::say(const std::string& line) {
  folder_.log(line);
  console_.message(line);
}

void Run::show_tokenising(const std::string& path, int64_t done, int64_t total) {
  if (StopSignal::was_raised()) throw Stopped();
  tokenising_.draw({cli::bytes_bar(done, total)});
  if (done < total) return;
  tokenising_.clear();
  say(str("tokenised ", path, ": ", total, " bytes"));
}

void Run::resume(const std::string& how) {
  std::vector<std::string> messages;
  bool is_folder = how != "auto" && how != "never";
  bool has_checkpoint = !io::list_checkpoints(folder_.file("checkpoints")).empty();
  WEFT_CHECK(how != "never" || !has_checkpoint, str("run folder ", folder_.path(), " already holds checkpoints"),
             "choose another folder with --run, or leave --resume at auto to continue");
  std::optional<RunProgress> found;
  if (is_folder) found = checkpoints_.restore(how);
  else found = checkpoints_.restore_latest(messages);
  for (const std::string& message : messages) recorder_.message(message);
  if (!found) return;
  progress_ = *found;
  recorder_.restore(progress_.best_val);
  recorder_.rewind(trainer_.num_steps());
  recorder_.checkpoint(trainer_.num_steps());
  recorder_.message(str("resumed at step ", trainer_.num_steps(), " of ", trainer_.plan().steps));
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
                        " validation tokens"));
  recorder_.message(str("plan: ", plan.steps, " steps of ", plan.tokens_per_step, " tokens (", plan.micro_batches,
                        " x ", plan.micro_batch, " x ", plan.context, "), ", plan.steps * plan.tokens_per_step,
                        " tokens"));
}

std::vector<double> Run::rates(double factor) const {
  std::vector<double> rates;
  for (size_t g = 0; g < optimizer_.groups().size(); ++g) rates.push_back(optimizer_.lr(g) * factor);
  return rates;
}

int Run::train() {
  announce();
  while (trainer_.num_steps() < trainer_.plan().steps) {
    auto begin = Clock::now();
    StepResult result = step();
    double step_s = seconds_since(begin);
    if (++steps_here_ > 10) progress_.time_s += step_s;
    last_loss_ = result.loss;
    recorder_.step(result, trainer_.num_steps(), rates(result.lr_factor), progress_.time_s, step_s,
                   trainer_.num_skipped());
    recorder_.diagnostics(result, trainer_.num_steps(), progress_.time_s);
    after_step(trainer_.num_steps());
    bool is_done = trainer_.num_steps() == trainer_.plan().steps;
    if (!is_done && StopSignal::was_raised()) return stop(StopSignal::name());
    if (!is_done && e_.train().has_max_seconds() && seconds_since(started_) > e_.train().max_seconds())
      return stop("train.max_seconds is over");
  }
  return finish();
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

void Run::after_step(int64_t step) {
  bool is_last = step == trainer_.plan().steps;
  auto is_due = [&](int64_t every) { return every > 0 && step % every == 0 && !is_last; };
  bool is_best = is_due(e_.eval().every()) && validate(false);
  if (is_due(e_.log().samples_every())) write_sample();
  if (is_due(e_.log().analysis_every()))
    recorder_.analysis(analyse(*model_, analysis_rows(data_, trainer_.plan().context, 8)), step, progress_.time_s);
  if (is_due(e_.checkpoint().every()) || (is_best && e_.checkpoint().every() > 0)) save();
}

bool Run::validate(bool is_last) {
  if (!data_.validation) return false;
  Evaluation evaluation = evaluate(*model_, data_.windows(trainer_.plan().context),
                                   {.batch = trainer_.plan().micro_batch,
                                    .max_tokens = is_last ? 0 : e_.eval().tokens(),
                                    .keeps_documents_apart = data_.keeps_documents_apart(),
                                    .byte_lengths = data_.byte_lengths,
                                    .attention = attention_backend(e_)});
  bool is_best = !progress_.best_val || evaluation.loss() < *progress_.best_val;
  if (is_best) {
    progress_.best_val = evaluation.loss();
    progress_.best_step = trainer_.num_steps();
  }
  last_evaluation_ = evaluation;
  recorder_.validation(evaluation, trainer_.num_steps(), progress_.time_s, is_best);
  return is_best;
}

void Run::write_sample() {
  std::vector<int32_t> prompt = prompt_ids(data_, e_.log().sample_prompt());
  for (int64_t i = 0; i < e_.log().samples(); ++i) {
    uint64_t seed = Rng(static_cast<uint64_t>(e_.seed()))["samples"][static_cast<uint64_t>(i)].key();
    std::vector<int32_t> ids = weft::sample(*model_, prompt,
                                            {.tokens = e_.log().sample_tokens(),
                                             .temperature = e_.log().sample_temperature(),
                                             .top_p = e_.log().sample_top_p(),
                                             .seed = seed,
                                             .vocab = data_.tokenizer->vocab_size(),
                                             .end_of_text = data_.end_of_text,
                                             .first_token = data_.first_token});
    recorder_.sample(trainer_.num_steps(), data::show_utf8(data_.tokenizer->decode(prompt)),
                     data::show_utf8(data_.tokenizer->decode(ids)));
  }
}

void Run::save() {
  checkpoints_.save(progress_);
  recorder_.checkpoint(trainer_.num_steps());
}

int Run::stop(const std::string& why) {
  if (checkpoints_.last_saved() != trainer_.num_steps()) save();
  recorder_.finish();
  recorder_.message(str("stopped after step ", trainer_.num_steps(), " (", why, "); the same command continues"));
  if (console_.is_json())
    console_.result(
        nlohmann::ordered_json{{"run", folder_.path()}, {"step", trainer_.num_steps()}, {"stopped", why}}.dump(2) +
        "\n");
  return cli::kStopped;
}

int Run::finish() {
  validate(true);
  write_sample();
  if (checkpoints_.last_saved() != trainer_.num_steps()) save();
  recorder_.finish();
  const Plan& plan = trainer_.plan();
  int64_t peak = allocator(default_device()).stats().peak_bytes;
  std::vector<std::pair<std::string, std::string>> facts{
      {"parameters", str(model_->num_params())},
      {"steps", str(plan.steps)},
      {"tokens", str(plan.steps * plan.tokens_per_step)},
      {"training time", cli::duration_text(progress_.time_s)},
      {"tokens per second", str(std::round(recorder_.tokens_per_s()))},
      {"peak memory", str(std::round(static_cast<double>(peak) / 1048576.0), " MiB")}};
  if (last_evaluation_) {
    const Evaluation& v = *last_evaluation_;
    facts.insert(facts.begin(),
                 {{"validation loss", fmt::format("{:.4f} +- {:.4f} nats per token", v.loss(), v.standard_error)},
                  {"perplexity", fmt::format("{:.4g}", v.perplexity())}});
    if (v.num_bytes > 0) facts.insert(facts.begin() + 2, {"bits per byte", fmt::format("{:.4f}", v.bits_per_byte())});
  }
  std::string report = recorder_.report(facts, e_.name());
  std::string summary = "done: ";
  if (std::isfinite(last_loss_))
    summary += fmt::format("training loss {:.4f}, ", last_loss_);  // not if nothing was left to do
  if (last_evaluation_) summary += last_evaluation_->text() + ", ";
  summary += str(plan.steps * plan.tokens_per_step, " tokens in ", cli::duration_text(progress_.time_s), ", ",
                 cli::rate_text(recorder_.tokens_per_s()), ", peak ", peak / 1048576, " MiB, ", report);
  recorder_.message(summary);
  print_result(report);
  return cli::kSuccess;
}

// Results on stdout: for scripts and people.
void Run::print_result(const std::string& report) {
  if (console_.is_json()) {
    nlohmann::ordered_json out{
        {"run", folder_.path()}, {"step", trainer_.num_steps()}, {"train_loss", last_loss_}, {"report", report}};
    if (last_evaluation_) {
      out["val_loss"] = last_evaluation_->loss();
      out["val_loss_se"] = last_evaluation_->standard_error;
      out["val_ppl"] = last_evaluation_->perplexity();
      if (last_evaluation_->num_bytes > 0) out["val_bpb"] = last_evaluation_->bits_per_byte();
    }
    if (!recorder_.samples().empty()) out["sample"] = recorder_.samples().back().second;
    out["time_s"] = progress_.time_s;
    out["tokens_per_second"] = recorder_.tokens_per_s();
    console_.result(out.dump(2) + "\n");
    return;
  }
  std::string text;
  if (last_evaluation_) text += last_evaluation_->text() + "\n";
  else text += fmt::format("training loss {:.4f} nats per token\n", last_loss_);
  if (!recorder_.samples().empty()) text += "sample\n" + recorder_.samples().back().second + "\n";
  console_.result(text + "report " + report + "\n");
}

}  // namespace

int pretrain(cli::Console& console, const PretrainArguments& arguments) {
  config::Loaded config = config::load(arguments.config_file, arguments.overrides);
  config.mixers = arguments.mixers;
  apply_process_settings(config.experiment);
  std::string path = arguments.run_folder.empty() ? "runs/" + config.experiment.name() : arguments.run_folder;
  RunFolder folder(path, config.experiment, arguments.overrides);
  StopSignal signals;
  try {
    Run run(console, std::move(config), folder);
    run.resume(arguments.resume);
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
