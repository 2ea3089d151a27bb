// Defaults: presets of the schema, and values that follow from other fields.
#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <algorithm>
#include <filesystem>
#include <sstream>

#include "trainers/config/config.h"
#include "trainers/config/scalar.h"
#include "trainers/config/schema.h"

namespace weft::config {

namespace {

namespace pb = google::protobuf;

bool is_message(const FieldDescriptor& field) { return field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE; }

// A zero enum value is called `unset` and means it.
void clear_unset_enum(pb::Message& message, const FieldDescriptor& field) {
  const pb::Reflection& reflection = *message.GetReflection();
  if (field.cpp_type() != FieldDescriptor::CPPTYPE_ENUM || field.is_repeated()) return;
  if (reflection.GetEnumValue(message, &field) == 0) reflection.ClearField(&message, &field);
}

void fill_scalar(pb::Message& message, const FieldDescriptor& field, const Facts& known) {
  clear_unset_enum(message, field);
  const pb::Reflection& reflection = *message.GetReflection();
  bool is_given =
      field.is_repeated() ? reflection.FieldSize(message, &field) > 0 : reflection.HasField(message, &field);
  if (is_given || known.preset.empty()) return;
  std::istringstream words(field.is_repeated() ? known.preset : "");
  if (!field.is_repeated()) set_scalar(message, field, -1, known.preset, "config schema", field.name());
  for (std::string word; words >> word;) set_scalar(message, field, -1, word, "config schema", field.name());
}

void fill_message(pb::Message& message, const FieldDescriptor& field, const Facts& known) {
  const pb::Reflection& reflection = *message.GetReflection();
  if (field.is_repeated()) {
    for (int i = 0; i < reflection.FieldSize(message, &field); ++i)
      fill_presets(*reflection.MutableRepeatedMessage(&message, &field, i));
    return;
  }
  bool is_left_out = !known.unset.empty() || field.real_containing_oneof();
  if (is_left_out && !reflection.HasField(message, &field)) return;
  fill_presets(*reflection.MutableMessage(&message, &field));
}

std::string in_turn(int64_t count) {
  std::string out;
  for (int64_t i = 0; i < count; ++i) out += str(i ? " " : "", i);
  return out;
}

void derive_model(Model& model) {
  for (Mixer& mixer : *model.mutable_mixer()) {
    if (!mixer.has_softmax()) continue;
    Softmax& softmax = *mixer.mutable_softmax();
    if (!softmax.has_kv_heads()) softmax.set_kv_heads(softmax.heads());
    bool is_whole = model.dim() % softmax.heads() == 0;  // if not, check_model says so
    if (!softmax.has_head_dim() && is_whole) softmax.set_head_dim(model.dim() / softmax.heads());
  }
  if (!model.has_pattern())
    model.set_pattern(in_turn(model.placement_size() > 0 ? 1 : std::min<int64_t>(model.mixer_size(), model.layers())));
  if (model.ffn().has_swiglu() && !model.ffn().swiglu().has_hidden())
    model.mutable_ffn()->mutable_swiglu()->set_hidden((model.dim() * 8 / 3 + 63) / 64 * 64);
  if (model.ffn().has_gelu() && !model.ffn().gelu().has_hidden())
    model.mutable_ffn()->mutable_gelu()->set_hidden(4 * model.dim());
}

// Decay pulls weights to zero, which is no neutral value of a norm's gain: as most trainings do, vectors go without.
void add_default_groups(Optim& optim) {
  Group& vectors = *optim.add_group();
  vectors.set_rank(1);
  vectors.mutable_adamw()->set_weight_decay(0);
  fill_presets(vectors);
  fill_presets(*optim.add_group());
}

}  // namespace

void fill_presets(pb::Message& message) {
  const Descriptor& type = *message.GetDescriptor();
  const pb::Reflection& reflection = *message.GetReflection();
  for (int i = 0; i < type.real_oneof_decl_count(); ++i) {
    const OneofDescriptor* oneof = type.oneof_decl(i);
    const FieldDescriptor* choice = default_choice(*oneof);
    if (choice && !reflection.HasOneof(message, oneof)) reflection.MutableMessage(&message, choice);
  }
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    Facts known = facts(field);
    if (is_message(field)) fill_message(message, field, known);
    else fill_scalar(message, field, known);
  }
}

std::string name_of(const Loaded& config) {
  const Experiment& e = config.experiment;
  return e.has_name() ? e.name() : std::filesystem::path(config.origins.file()).stem().string();
}

void keep_step(Loaded& config, const std::string& run_folder) {
  Experiment& e = config.experiment;
  if (e.train().has_tokens_per_step()) return;
  const std::optional<Experiment> stored = stored_experiment(run_folder);
  if (!stored || !stored->train().has_tokens_per_step()) return;
  const int64_t data = e.parallel().has_data() ? e.parallel().data() : 1;
  // Of another context the run is another one, as it will be told.
  if (data == stored->parallel().data() || e.model().context() != stored->model().context()) return;
  e.mutable_train()->set_tokens_per_step(stored->train().tokens_per_step());
  config.step_of_run = run_folder;
}

void fill_derived(Loaded& config) {
  Experiment& e = config.experiment;
  if (!e.has_name()) e.set_name(name_of(config));
  derive_model(*e.mutable_model());
  Train& train = *e.mutable_train();
  if (!train.has_tokens_per_step())
    train.set_tokens_per_step(train.micro_batch() * e.model().context() * e.parallel().data());
  if (e.optim().group_size() == 0) add_default_groups(*e.mutable_optim());
}

}  // namespace weft::config
