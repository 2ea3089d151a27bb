// The start of a training: data, model and records as the run left them, and what the run says of itself.
#include <fmt/format.h>
#include <unistd.h>

#include "trainers/config/pattern.h"
#include "trainers/console/stop_signal.h"
#include "trainers/run/address.h"
#include "trainers/run/facts.h"
#include "trainers/run/session.h"
#include "trainers/run/start_checks.h"
#include "trainers/run/system_info.h"
#include "trainers/run/training_run.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"
#include "weft/data/tokenize.h"
#include "weft/io/files.h"
#include "weft/io/report.h"

namespace weft::train {

namespace {

std::vector<std::string> group_names(const Optimizer& optimizer) {
  std::vector<std::string> names;
  for (const ParamGroup& group : optimizer.groups()) names.push_back(group.name);
  return names;
}

}  // namespace

TrainingRun::TrainingRun(cli::Console& console, config::Loaded config, RunFolder& folder, Team* team)
    : console_(console),
      config_(std::move(config)),
      e_(config_.experiment),
      folder_(folder),
      team_(team),
      tokenising_(cli::live_options(console_.verbosity() == cli::Verbosity::quiet ? -1 : STDERR_FILENO)),
      data_(prepare_for_all()),
      prompt_(checked_prompt(config_, data_)),
      memory_(check_and_start()),
      prediction_(predict(config_, data_.num_ids(), memory_, team_, &data_)),
      start_(make_start(config_, data_, source_)),
      model_(std::move(start_.model)),
      trainer_(*model_, data_.samples(), trainer_options(e_, data_, start_loss(e_, *model_, start_.teacher.get())),
               team_),
      checkpoints_(folder.file("checkpoints"),
                   {.keep_last = static_cast<int>(e_.checkpoint().keep_last()),
                    .keep_every = e_.checkpoint().keep_every(),
                    .keeps_best = e_.checkpoint().keep_best()},
                   trainer_, folder.config_text(), static_cast<uint64_t>(e_.seed()), data_.identity),
      peak_flops_(measured_peak_flops(compute_dtype(e_))),
      recorder_(folder, console, trainer_.sizes(), group_names(trainer_.optimizer()),
                {.log_every = e_.log().every(),
                 .samples = e_.log().samples(),
                 .writes_events = e_.log().tensorboard(),
                 .peak_flops = peak_flops_,
                 .flops_per_token = model_->flops_per_token(),
                 .measure_peak_flops = [this] { return measured_peak_flops(compute_dtype(e_)); },
                 .group_labels = group_labels(e_)}) {
  forget_peak(default_device());  // of what is above; a run's peak is that of its steps
  if (e_.train().has_memory_gib()) limit_.emplace(default_device(), memory_limit(e_));
}

// Before there is a recorder.
void TrainingRun::say(const std::string& line) {
  folder_.log(line);
  console_.message(line);
}

void TrainingRun::show_tokenising(const std::string& path, int64_t done, int64_t total) {
  stop_if_asked();
  tokenising_.draw({cli::bytes_bar(done, total)});
  if (done < total) return;
  tokenising_.clear();
  say(str("tokenised ", path, ": ", total, " bytes"));
}

// Shards that a start left which never trained may be of other texts: where they do not fit, they are set aside.
RunData TrainingRun::prepare() {
  StopSignal::waits_for("finishing this piece of the text; what is tokenised stays");
  PrepareOptions options{
      .records = true,
      .is_continued = folder_.existed(),
      .progress = [&](const std::string& path, int64_t done, int64_t total) { show_tokenising(path, done, total); }};
  const bool has_left_overs = folder_.has_failed_start() && io::is_folder(folder_.file("data"));
  try {
    return prepare_data(config_, folder_.path(), options);
  } catch (const data::OtherWorkError& error) {
    if (!has_left_overs) throw;
    tokenising_.clear();
    say(str("data of an earlier start, which did not train, is moved to ", folder_.set_aside("data"), ": ",
            error.problem()));
  }
  return prepare_data(config_, folder_.path(), options);
}

RunData TrainingRun::prepare_for_all() {
  Team::Errand errand(team_);
  return prepare();
}

// The other ranks take no memory before this one has seen how much there is. Then they read what it has written, and make their trainings
// together with it.
MemoryEstimate TrainingRun::check_and_start() {
  const MemoryEstimate estimate = [&] {
    Team::Errand errand(team_);
    source_ = find_start(config_, folder_);
    return check_memory(config_, data_.num_ids(), data_.keeps_documents_apart(), team_ ? team_->ranks_here() : 1,
                        source_);
  }();
  if (team_) team_->tell(Duty::start, source_);
  return estimate;
}

void TrainingRun::resume(const std::string& how) {
  StopSignal::waits_for("finishing the start");
  std::vector<std::string> messages;
  bool is_folder = how != "auto" && how != "never";
  bool has_checkpoint = !io::list_checkpoints(folder_.file("checkpoints")).empty();
  WEFT_CHECK(how != "never" || !has_checkpoint, str("run folder ", folder_.path(), " already holds checkpoints"),
             "choose another folder with --run, or leave --resume at auto to continue");
  if (is_folder) again_ = "the same command without --resume continues";
  const std::optional<RunProgress> found = [&]() -> std::optional<RunProgress> {
    Team::Errand errand(team_);  // it reads all of a checkpoint, and perhaps of several
    if (is_folder) return checkpoints_.restore(how);
    return checkpoints_.restore_latest(messages);
  }();
  for (const std::string& message : messages) recorder_.message(message);
  if (found) progress_ = *found;
  if (found && team_) team_->tell(Duty::restore, checkpoints_.restored());
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
  recorder_.message(str("resumed at step ", trainer_.num_steps(), " of ", trainer_.sizes().steps));
  if (!folder_.remark().empty()) recorder_.message(folder_.remark());
  std::string warning = finite_warning(io::read_checkpoint_info(checkpoints_.restored()), folder_.file("checkpoints"));
  if (!warning.empty()) recorder_.message(warning);
}

std::string TrainingRun::ranks_text() const {
  if (!team_) return "1 rank, ";
  const ParallelOptions& p = team_->parallel();
  return str(p.ranks(), " ranks (", p.data, " data x ", p.context, " context), each ");
}

void TrainingRun::announce() {
  const StepSizes& sizes = trainer_.sizes();
  recorder_.message(str("weft ", cli::system_info().version, ", run ", folder_.path(), ": ", e_.name(), ", seed ",
                        e_.seed(), ", ", ranks_text(), num_threads(), " threads, ", compute_dtype(e_), " on ",
                        default_device()));
  recorder_.message(fmt::format("model: {} parameters, {:.3g} MFLOP per token; measured peak {:.0f} GFLOP/s {}",
                                model_->num_params(), model_->flops_per_token() / 1e6, peak_flops_ / 1e9,
                                str(compute_dtype(e_))));
  cli::SystemInfo system = cli::system_info();
  console_.detail(str("machine: ", system.host, ", ", system.cpu, ", kernels ", system.isa, ", config ",
                      config_.experiment.name(), " resolved in ", folder_.file("config.txtpb")));
  const std::string layers = config::layers_text(e_.model());
  if (e_.model().mixer_size() > 1 || layers.find(", ") != std::string::npos) recorder_.message("layers: " + layers);
  for (const std::string& line : start_.lines) recorder_.message(line);
  recorder_.message("data: " + data_.text());
  if (!io::has_plotter())
    recorder_.message(
        "warning: there is no gnuplot: the report will have tables without curves (apt-get install gnuplot-nox)");
  recorder_.message(str("steps: ", sizes.steps, " of ", sizes.tokens_per_step, " tokens (", sizes.micro_batches, " x ",
                        sizes.micro_batch, team_ ? str(" x ", team_->parallel().data) : "", " x ", sizes.context, "), ",
                        sizes.steps * sizes.tokens_per_step, " tokens"));
  if (team_) {
    Tensor documents;
    if (data_.keeps_documents_apart()) documents = data_.samples()(0, 1).documents;
    const auto ids = documents.defined() ? documents.to_vector<int32_t>() : std::vector<int32_t>();
    for (const std::string& line : context_lines(team_->choice(), sizes.context, ids)) recorder_.message(line);
  }
  recorder_.message("memory: predicted peak " + memory_.text());
  if (prediction_.step_s > 0)
    recorder_.message(fmt::format(
        "time: predicted step {:.4g} ms{}", 1000 * prediction_.step_s,
        team_ ? fmt::format(", in which a rank sends {:.1f} MiB", static_cast<double>(prediction_.sent_bytes) / 1048576)
              : ""));
}

}  // namespace weft::train
