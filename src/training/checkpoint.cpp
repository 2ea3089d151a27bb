// A model and a whole training in files.
#include "src/training/saving.h"
#include "src/training/state.h"
#include "src/training/training_state.pb.h"
#include "weft/core/error.h"

namespace weft {

std::vector<io::NamedTensor> model_tensors(const Module& model) {
  std::vector<io::NamedTensor> tensors;
  for (const NamedParam& p : model.params()) tensors.push_back({p.name, p.param->value()});
  for (const NamedBuffer& b : model.buffers()) tensors.push_back({b.name, b.buffer->value()});
  return tensors;
}

void save_model(const Module& model, const std::string& path) { io::write_safetensors(path, model_tensors(model)); }

void load_model(Module& model, const std::string& path) { load_model(model, io::SafetensorsFile::open(path)); }

void load_model(Module& model, const io::SafetensorsFile& file) {
  io::load_into(file, model_tensors(model), io::LoadRule::exact);
}

TrainingState Training::state() const {
  const State& s = *state_;
  return {.step = s.step,
          .num_samples = s.num_samples,
          .num_tokens = s.num_tokens,
          .optimizer_steps = s.optimizer->num_steps(),
          .num_skipped = s.num_skipped,
          .guard_window = {s.guard.window().begin(), s.guard.window().end()},
          .guard_in_a_row = s.guard.num_in_a_row()};
}

namespace {

std::string to_bytes(const TrainingState& state) {
  training::State message;
  message.set_step(state.step);
  message.set_num_samples(state.num_samples);
  message.set_num_tokens(state.num_tokens);
  message.set_optimizer_steps(state.optimizer_steps);
  message.set_num_skipped(state.num_skipped);
  message.set_guard_in_a_row(state.guard_in_a_row);
  for (const OutlierGuard::Entry& entry : state.guard_window) {
    message.add_guard_loss(entry.loss);
    message.add_guard_grad_norm(entry.grad_norm);
  }
  return message.SerializeAsString();
}

TrainingState from_bytes(const std::string& bytes, const std::string& path) {
  training::State message;
  WEFT_CHECK(message.ParseFromString(bytes) && message.guard_loss_size() == message.guard_grad_norm_size(),
             str("training: the state of checkpoint ", path, " cannot be read"),
             "load one that Training::save() wrote without a state of its caller's");
  TrainingState state{.step = message.step(),
                      .num_samples = message.num_samples(),
                      .num_tokens = message.num_tokens(),
                      .optimizer_steps = message.optimizer_steps(),
                      .num_skipped = message.num_skipped(),
                      .guard_in_a_row = message.guard_in_a_row()};
  for (int i = 0; i < message.guard_loss_size(); ++i)
    state.guard_window.push_back({message.guard_loss(i), message.guard_grad_norm(i)});
  return state;
}

}  // namespace

std::string Training::save(const std::string& folder, const std::string& own_state, const std::string& config) {
  State& s = *state_;
  io::CheckpointData data{.step = s.step,
                          .tokens = s.num_tokens,
                          .mesh = {{"data", s.share.ranks}},
                          .state = own_state.empty() ? to_bytes(state()) : own_state,
                          .config = config};
  if (s.options.ranks.ranks_per_row > 1) data.mesh.push_back({"context", s.options.ranks.ranks_per_row});
  AveragedWeights averages(*s.optimizer);  // the model is what to evaluate; the optimiser keeps where training goes on
  data.model = model_tensors(s.model);
  if (!s.comm_ranks) {
    for (const auto& [name, tensor] : s.optimizer->state()) data.optimizer.push_back({name, tensor});
    return io::save_checkpoint(folder, data);
  }
  Saving saving(*s.options.ranks.comm, s.masters[0].device(), s.shards.get(), s.optimizer->state());
  data.optimizer = saving.state();
  if (saving.has_parts()) data.optimizer_elements = [&](const std::string& name) { return saving.take(name); };
  return saving.write([&] { return io::save_checkpoint(folder, data); });
}

bool Training::load(const std::string& folder, std::vector<std::string>* messages) {
  State& s = *state_;
  std::vector<std::string> unheard;
  std::optional<io::Checkpoint> checkpoint = io::load_latest_checkpoint(folder, messages ? *messages : unheard);
  if (s.comm_ranks) {
    const std::string mine = checkpoint ? str("step ", checkpoint->info.step) : "nothing";
    const std::vector<std::string> found = gather_texts(*s.options.ranks.comm, mine, s.masters[0].device());
    for (size_t r = 1; r < found.size(); ++r)
      WEFT_CHECK(found[r] == found[0],
                 str("training: in ", folder, " rank 0 finds ", found[0], ", rank ", r, " finds ", found[r]),
                 "let all ranks see one folder, and nobody write to it meanwhile");
  }
  if (!checkpoint) return false;
  restore(*checkpoint, from_bytes(checkpoint->state, checkpoint->info.path));
  return true;
}

void Training::restore(const io::Checkpoint& checkpoint, const TrainingState& state) {
  State& s = *state_;
  load_model(s.model, checkpoint.model);
  std::vector<std::pair<std::string, Tensor>> moments;
  for (const io::TensorEntry& entry : checkpoint.optimizer.tensors())
    moments.emplace_back(entry.name, checkpoint.optimizer.map(entry.name));
  WEFT_CHECK(!moments.empty() || s.optimizer->state().empty(),
             str("training: checkpoint ", checkpoint.info.path, " has weights alone, and no state of the optimiser"),
             "begin a run of its own with these weights: start { from: \"" + checkpoint.info.path + "\" }");
  const bool is_of_caller = static_cast<bool>(s.options.optimizer);
  s.optimizer->load_state(s.shards && is_of_caller ? s.shards->of_here(moments) : moments, state.optimizer_steps);
  s.step = state.step;
  s.num_samples = state.num_samples;
  s.num_tokens = state.num_tokens;
  s.num_skipped = state.num_skipped;
  s.guard.set_window({state.guard_window.begin(), state.guard_window.end()});
  s.guard.set_in_a_row(state.guard_in_a_row);
}

}  // namespace weft
