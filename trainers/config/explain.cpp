// The schema for people: explanations of single fields and the table of all.
#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include "trainers/config/config.h"
#include "trainers/config/field_path.h"
#include "trainers/config/preset.h"
#include "trainers/config/scalar.h"
#include "trainers/config/schema.h"
#include "trainers/config/text_place.h"

namespace weft::config {

namespace {

namespace pb = google::protobuf;

// "1e-3", "required", "all earlier tokens", or for members of a oneof whether they are the default.
std::string default_text(const FieldDescriptor& field) {
  Facts known = facts(field);
  if (known.is_required) return "required";
  if (!known.preset.empty()) return known.preset;
  if (!known.unset.empty()) return known.unset;
  if (const OneofDescriptor* oneof = field.real_containing_oneof())
    return default_choice(*oneof) == &field ? "the default choice" : "another choice of " + oneof->name();
  if (field.is_repeated()) return "empty";
  return field.message_type() ? "its own defaults" : "not set";
}

std::string schema_path(const std::vector<PathStep>& steps) {
  std::string out;
  for (const PathStep& step : steps) out = child_path(out, step.name);
  return out;
}

std::string members(const Descriptor& message) {
  std::string out;
  for (int i = 0; i < message.field_count(); ++i) {
    const FieldDescriptor& field = *message.field(i);
    out += str("  ", field.name(), std::string(field.name().size() < 18 ? 18 - field.name().size() : 1, ' '),
               comment(field), " [", default_text(field), "]\n");
  }
  return out;
}

// The line of a preset: the resolved config has its fields in its place.
std::string preset_value(const std::string& path, const Loaded& config) {
  for (const Loaded::Preset& preset : config.presets)
    if (preset.path == path)
      return str("value:    ", path, " = ", preset.name, "  (", config.origins.of(path), "), replaced by its fields\n");
  return "";
}

// "value:    12  (study.txtpb:6:30)" for each place that the path reaches in a config.
std::string values(const std::vector<PathStep>& steps, const Loaded& config) {
  Experiment copy = config.experiment;  // resolve() wants to write
  std::vector<PathStep> all = steps;
  const Descriptor* type = Experiment::descriptor();
  for (PathStep& step : all) {
    const FieldDescriptor* field = type->FindFieldByName(step.name);
    if (field->is_repeated() && step.index == kNoIndex && &step != &all.back()) step.index = kAllElements;
    type = field->message_type();
  }
  std::string out;
  for (const Target& target : resolve(copy, all, PathUse::clear, schema_path(steps))) {
    if (std::string taken = preset_value(target.path, config); !taken.empty()) {
      out += taken;
      continue;
    }
    const pb::Reflection& reflection = *target.parent->GetReflection();
    bool is_list = target.field->is_repeated();
    int count = is_list ? reflection.FieldSize(*target.parent, target.field)
                        : reflection.HasField(*target.parent, target.field);
    int first = std::max(target.index, 0), last = target.index >= 0 ? target.index + 1 : count;
    if (count == 0) out += str("value:    ", target.path, " is not set\n");
    for (int i = first; i < last && !target.field->message_type(); ++i) {
      std::string path = is_list && target.index < 0 ? element_path(target.path, i) : target.path;
      std::string origin = config.origins.has(path)          ? config.origins.of(path)
                           : config.origins.has(target.path) ? config.origins.of(target.path)
                                                             : "default";
      out += str("value:    ", path, " = ", scalar_text(*target.parent, *target.field, i), "  (", origin, ")\n");
    }
  }
  return out;
}

std::string in_table(const std::string& text) {
  std::string out;
  for (char c : text) {
    if (c == '|') out += '\\';
    out += c;
  }
  return out;
}

void add_rows(const Descriptor& message, const std::string& path, std::string& out) {
  for (int i = 0; i < message.field_count(); ++i) {
    const FieldDescriptor& field = *message.field(i);
    Facts known = facts(field);
    std::string here = str(child_path(path, field.name()), field.is_repeated() ? "[]" : "");
    out += str("| `", here, "` | ", in_table(type_name(field)), " | ", in_table(default_text(field)), " | ",
               known.range.text, " | ", known.unit, " | ", in_table(comment(field)), " |\n");
    if (field.message_type()) add_rows(*field.message_type(), here, out);
  }
}

}  // namespace

std::string explain(const std::string& path, const Loaded* config) {
  std::vector<PathStep> steps = parse_path(path, path);
  const FieldDescriptor& field = find_field(*Experiment::descriptor(), steps, path);
  Facts known = facts(field);
  std::string out = str(schema_path(steps), "\n  ", comment(field), "\n");
  out += str("type:     ", type_name(field), "\n", "default:  ", default_text(field), "\n");
  if (!known.range.text.empty()) out += str("range:    ", known.range.text, "\n");
  if (!known.unit.empty()) out += str("unit:     ", known.unit, "\n");
  if (config) out += values(steps, *config);
  if (field.name() == "preset") out += preset_list(field.containing_type() == Residual::descriptor());
  if (field.message_type() && field.message_type()->field_count() > 0)
    out += "fields:\n" + members(*field.message_type());
  return out;
}

std::string reference() {
  std::string out =
      "| field | type | default | range | unit | meaning |\n"
      "|---|---|---|---|---|---|\n";
  add_rows(*Experiment::descriptor(), "", out);
  return out;
}

}  // namespace weft::config
