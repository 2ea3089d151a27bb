#include "trainers/run/facts.h"

#include <fmt/format.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include "trainers/config/pattern.h"
#include "trainers/config/scalar.h"
#include "trainers/config/schema.h"
#include "trainers/config/text_reader.h"
#include "trainers/run/state.pb.h"
#include "weft/core/device.h"

namespace weft::train {

namespace {

namespace pb = google::protobuf;

std::string brief_field(const pb::Message& message, const config::FieldDescriptor& field, int index) {
  if (field.cpp_type() != config::FieldDescriptor::CPPTYPE_MESSAGE)
    return field.name() + ": " + config::scalar_text(message, field, index);
  const pb::Reflection& reflection = *message.GetReflection();
  const pb::Message& part = field.is_repeated() ? reflection.GetRepeatedMessage(message, &field, index)
                                                : reflection.GetMessage(message, &field);
  std::string inside = brief(part);
  return field.name() + (inside.empty() ? " {}" : " { " + inside + " }");
}

std::string mixers_text(const config::Model& model) {
  if (model.mixer_size() == 1) return brief(model.mixer(0));
  std::string text;
  for (int i = 0; i < model.mixer_size(); ++i) text += fmt::format("{}: {}; ", i, brief(model.mixer(i)));
  return text + (model.placement_size() > 0 ? "layers " + config::layers_text(model) : "pattern " + model.pattern());
}

std::string build_text(const Environment& e) {
  std::string text = fmt::format("weft {}, {} build, {}", e.version(), e.build(), e.compiler());
  return text + (e.commit().empty() ? "" : ", commit " + e.commit());
}

}  // namespace

std::string brief(const pb::Message& message) {
  const pb::Reflection& reflection = *message.GetReflection();
  std::vector<const config::FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  std::string text;
  for (const config::FieldDescriptor* field : fields) {
    const int count = field->is_repeated() ? reflection.FieldSize(message, field) : 1;
    for (int i = 0; i < count; ++i) {
      const std::string preset = config::facts(*field).preset;
      bool is_default = !preset.empty() && preset == config::scalar_or_empty(message, *field);
      if (!is_default) text += str(text.empty() ? "" : " ", brief_field(message, *field, i));
    }
  }
  return text;
}

std::vector<std::string> group_labels(const config::Experiment& experiment) {
  std::vector<std::string> labels;
  for (const config::Group& group : experiment.optim().group()) {
    std::string text =
        group.GetReflection()->GetOneofFieldDescriptor(group, group.GetDescriptor()->oneof_decl(0))->name();
    text += ": ";
    text += group.match() != "*" ? group.match() : labels.empty() ? "all" : "all others";
    if (group.has_rank()) text += fmt::format(", {} dimension{}", group.rank(), group.rank() == 1 ? "" : "s");
    labels.push_back(text);
  }
  return labels;
}

Facts run_facts(const config::Experiment& experiment, const std::string& environment) {
  Environment e;
  config::parse_record(e, environment, true);  // of a text that is damaged, what stands before the fault
  const config::Model& m = experiment.model();
  std::string groups;
  for (const std::string& label : group_labels(experiment)) groups += (groups.empty() ? "" : "; ") + label;
  return {{"mixer", mixers_text(m)},
          {"model", fmt::format("dim {}, {} layers, context {}, {}, {}, {}", m.dim(), m.layers(), m.context(),
                                brief(m.position()), m.ffn().has_none() ? "no feed-forward network" : brief(m.ffn()),
                                brief(m.residual()))},
          {"optimiser", groups},
          {"seed", fmt::format("{}", experiment.seed())},
          {"arithmetic", fmt::format("{} on {}", config::Compute::Value_Name(experiment.train().compute()),
                                     to_string(default_device()))},
          {"build", build_text(e)},
          {"working directory", e.git().empty() ? "no git checkout" : "commit " + e.git()},
          {"machine", fmt::format("{}: {}, {} threads, {} kernels, {:.1f} GiB", e.host(), e.processor(), e.threads(),
                                  e.instruction_set(), static_cast<double>(e.memory_bytes()) / 1073741824.0)},
          {"started", e.started()}};
}

}  // namespace weft::train
