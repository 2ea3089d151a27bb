#include "trainers/run/checkpoint.h"

#include <filesystem>

#include "trainers/run/state.pb.h"
#include "weft/core/error.h"
#include "weft/io/files.h"

namespace weft::train {

RunCheckpoints::RunCheckpoints(std::string folder, io::Retention retention, Trainer& trainer, std::string config_text,
                               uint64_t seed, std::shared_ptr<const DataIdentity> data)
    : folder_(std::move(folder)),
      retention_(retention),
      trainer_(trainer),
      config_text_(std::move(config_text)),
      seed_(seed),
      data_(std::move(data)) {}

std::string RunCheckpoints::store(const RunProgress& progress) {
  const TrainingState training = trainer_.training().state();
  RunState state;
  state.set_step(training.step);
  state.set_sample_cursor(training.step * trainer_.sizes().rows_per_step);
  state.set_optimizer_steps(training.optimizer_steps);
  state.set_num_skipped(training.num_skipped);
  state.set_time_s(progress.time_s);
  for (const OutlierGuard::Entry& entry : training.guard_window) {
    state.add_guard_loss(entry.loss);
    state.add_guard_grad_norm(entry.grad_norm);
  }
  if (progress.best_val) state.set_best_val(*progress.best_val);
  state.set_best_step(progress.best_step);
  state.set_seed(seed_);
  state.set_guard_in_a_row(training.guard_in_a_row);
  state.set_line_loss(progress.line.loss);
  state.set_line_nats(progress.line.nats);
  state.set_line_s(progress.line.seconds);
  state.set_line_steps(progress.line.steps);
  state.set_line_bytes(progress.line.bytes);
  for (const std::string& path : taken_over_) state.add_taken_over(path);
  *state.mutable_data() = *data_;

  std::string path = trainer_.save(folder_, state.SerializeAsString(), config_text_);
  last_saved_ = training.step;
  return path;
}

std::string RunCheckpoints::save(const RunProgress& progress, Team* team) {
  const std::string path = store(progress);
  const Team::Errand errand(team);
  prune(progress);
  return finite_warning(io::read_checkpoint_info(path), folder_);
}

void RunCheckpoints::prune(const RunProgress& progress) {
  retention_.best_step = progress.best_step;
  io::prune_checkpoints(folder_, retention_);
}

std::string finite_warning(const io::CheckpointInfo& info, const std::string& folder) {
  int64_t count = 0;
  std::string first;
  for (const auto& tensor : info.tensors) {
    if (count == 0) first = tensor.name;
    count += tensor.num_not_finite;
  }
  if (count == 0) return {};
  auto finite = io::last_finite_checkpoint(folder);
  return str("warning: ", count, " numbers of checkpoint ", info.path, " are NaN or infinite, the first in '", first,
             "'; ",
             finite ? str("the newest finite checkpoint is that of step ", *finite) : "no checkpoint here is finite");
}

std::optional<RunProgress> RunCheckpoints::restore_latest(std::vector<std::string>& messages) {
  std::optional<io::Checkpoint> checkpoint = io::load_latest_checkpoint(folder_, messages);
  if (!checkpoint) return std::nullopt;
  return apply(*checkpoint);
}

RunProgress RunCheckpoints::restore(const std::string& checkpoint_folder) {
  RunProgress progress = apply(io::load_checkpoint(checkpoint_folder));
  std::error_code code;
  const auto here = std::filesystem::canonical(folder_, code);
  is_foreign_ = code || std::filesystem::canonical(checkpoint_folder).parent_path() != here;
  if (is_foreign_) taken_over_.push_back(std::filesystem::absolute(checkpoint_folder).lexically_normal().string());
  // A best validation of another run counts here only if it is this checkpoint's: the others are not in this folder.
  if (is_foreign_ && progress.best_step != last_saved_) progress.best_val.reset(), progress.best_step = -1;
  return progress;
}

std::vector<std::string> RunCheckpoints::settle(const RunProgress& progress) {
  if (!is_foreign_) return io::set_aside_checkpoints(folder_, trainer_.num_steps());
  // What comes from elsewhere is saved here at once, so that the next start continues it and not an older own one.
  std::vector<std::string> places = io::set_aside_checkpoints(folder_, trainer_.num_steps() - 1);
  store(progress);
  for (std::string& place : io::set_aside_other_checkpoints(folder_, trainer_.num_steps()))
    places.push_back(std::move(place));
  is_foreign_ = false;
  return places;
}

namespace {

RunState state_of(const std::string& bytes, const std::string& path) {
  RunState state;
  WEFT_CHECK(state.ParseFromString(bytes), str("checkpoint ", path, ": its state cannot be read"),
             "resume from another one with --resume DIR");
  return state;
}

RunState state_of(const io::Checkpoint& checkpoint) {
  RunState state = state_of(checkpoint.state, checkpoint.info.path);
  WEFT_CHECK(state.guard_loss_size() == state.guard_grad_norm_size(),
             str("checkpoint ", checkpoint.info.path, ": its guard window is uneven"),
             "resume from another one with --resume DIR");
  return state;
}

void restore_from(Trainer& trainer, const io::Checkpoint& checkpoint, const RunState& state) {
  TrainingState training{.step = state.step(),
                         .num_samples = state.sample_cursor(),
                         .num_tokens = state.step() * trainer.sizes().tokens_per_step,
                         .optimizer_steps = state.optimizer_steps(),
                         .num_skipped = state.num_skipped(),
                         .guard_in_a_row = state.guard_in_a_row()};
  for (int i = 0; i < state.guard_loss_size(); ++i)
    training.guard_window.push_back({state.guard_loss(i), state.guard_grad_norm(i)});
  trainer.training().restore(checkpoint, training);
}

}  // namespace

std::vector<std::string> taken_over_by(const std::string& checkpoint_folder) {
  const RunState state = state_of(io::read_file(checkpoint_folder + "/state"), checkpoint_folder);
  return {state.taken_over().begin(), state.taken_over().end()};
}

void restore_trainer(Trainer& trainer, const io::Checkpoint& checkpoint) {
  restore_from(trainer, checkpoint, state_of(checkpoint));
}

RunProgress RunCheckpoints::apply(const io::Checkpoint& checkpoint) {
  const RunState state = state_of(checkpoint);
  WEFT_CHECK(state.seed() == seed_,
             str("checkpoint ", checkpoint.info.path, " has seed ", state.seed(), ", the config has ", seed_),
             "continue with the seed it was made with");
  WEFT_CHECK(state.sample_cursor() == state.step() * trainer_.sizes().rows_per_step,
             str("checkpoint ", checkpoint.info.path, " has read ", state.sample_cursor(), " sequences in ",
                 state.step(), " steps"),
             "continue with the tokens_per_step and context it was made with");
  if (state.has_data()) require_same_data(state.data(), *data_, "checkpoint " + checkpoint.info.path);
  restore_from(trainer_, checkpoint, state);
  taken_over_.assign(state.taken_over().begin(), state.taken_over().end());
  last_saved_ = checkpoint.info.step;
  restored_ = checkpoint.info.path;
  RunProgress progress{.time_s = state.time_s(), .best_step = state.best_step()};
  progress.line = {.loss = state.line_loss(),
                   .nats = state.line_nats(),
                   .seconds = state.line_s(),
                   .steps = state.line_steps(),
                   .bytes = state.line_bytes()};
  if (state.has_best_val()) progress.best_val = state.best_val();
  return progress;
}

}  // namespace weft::train
