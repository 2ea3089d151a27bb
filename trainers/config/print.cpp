// Configs as text, as JSON, as lists of differing fields.
#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "trainers/config/config.h"
#include "trainers/config/scalar.h"
#include "trainers/config/schema.h"
#include "trainers/config/text_place.h"

namespace weft::config {

namespace {

namespace pb = google::protobuf;
using Json = nlohmann::ordered_json;

Json json_of(const pb::Message& message);

Json json_value(const pb::Message& message, const FieldDescriptor& field, int index) {
  const pb::Reflection& reflection = *message.GetReflection();
  if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE)
    return json_of(index < 0 ? reflection.GetMessage(message, &field)
                             : reflection.GetRepeatedMessage(message, &field, index));
  if (field.cpp_type() == FieldDescriptor::CPPTYPE_STRING)
    return index < 0 ? reflection.GetString(message, &field) : reflection.GetRepeatedString(message, &field, index);
  std::string text = scalar_text(message, field, index);
  return field.cpp_type() == FieldDescriptor::CPPTYPE_ENUM ? Json(text) : Json::parse(text);  // finite: checked
}

Json json_of(const pb::Message& message) {
  Json out = Json::object();
  const pb::Reflection& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    if (!field->is_repeated()) {
      out[field->name()] = json_value(message, *field, -1);
      continue;
    }
    Json list = Json::array();
    for (int i = 0; i < reflection.FieldSize(message, field); ++i) list.push_back(json_value(message, *field, i));
    out[field->name()] = std::move(list);
  }
  return out;
}

using Leaves = std::vector<std::pair<std::string, std::string>>;

// Every scalar as (path, text); an empty message counts as a leaf, so that `none {}` differs from nothing.
void collect(const pb::Message& message, const std::string& path, Leaves& out) {
  const pb::Reflection& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  if (fields.empty() && !path.empty()) out.emplace_back(path, "{}");
  for (const FieldDescriptor* field : fields) {
    int count = field->is_repeated() ? reflection.FieldSize(message, field) : 1;
    for (int i = 0; i < count; ++i) {
      std::string here = child_path(path, field->name());
      if (field->is_repeated()) here = element_path(here, i);
      if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE)
        out.emplace_back(here, scalar_text(message, *field, i));
      else if (field->is_repeated()) collect(reflection.GetRepeatedMessage(message, field, i), here, out);
      else collect(reflection.GetMessage(message, field), here, out);
    }
  }
}

}  // namespace

std::string to_text(const pb::Message& message) {
  std::string out;
  pb::TextFormat::Printer printer;
  printer.SetUseUtf8StringEscaping(true);
  printer.SetUseShortRepeatedPrimitives(true);
  printer.PrintToString(message, &out);
  return out;
}

std::string to_json(const pb::Message& message) {
  return json_of(message).dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::vector<Difference> differences(const pb::Message& a, const pb::Message& b) {
  Leaves in_a, in_b;
  collect(a, "", in_a);
  collect(b, "", in_b);
  std::map<std::string, std::string> rest(in_b.begin(), in_b.end());
  std::vector<Difference> out;
  for (const auto& [path, value] : in_a) {
    auto found = rest.find(path);
    if (found == rest.end()) out.push_back({path, value, ""});
    else if (found->second != value) out.push_back({path, value, found->second});
    if (found != rest.end()) rest.erase(found);
  }
  for (const auto& [path, value] : in_b)
    if (rest.contains(path)) out.push_back({path, "", value});
  return out;
}

std::optional<Experiment> stored_experiment(const std::string& run_folder) {
  const std::string file = run_folder + "/config.txtpb";
  if (!std::filesystem::exists(file)) return std::nullopt;
  Loaded stored = read(file, {});
  fill_presets(stored.experiment);  // of fields that are younger than the run
  return stored.experiment;
}

void require_same(const Experiment& now, const std::string& run_folder, const std::vector<std::string>& ignored) {
  const std::optional<Experiment> stored = stored_experiment(run_folder);
  if (!stored) return;
  std::string list;
  for (const Difference& d : differences(*stored, now)) {
    bool is_ignored =
        std::any_of(ignored.begin(), ignored.end(), [&](const std::string& path) { return d.path.starts_with(path); });
    if (is_ignored) continue;
    list += str("\n       ", d.path, ": ", d.a.empty() ? "not set" : d.a, " there, ", d.b.empty() ? "not set" : d.b,
                " now");
  }
  if (list.empty()) return;
  throw ConfigError(str(run_folder, ": holds a run with another config:", list),
                    "Choose another folder with --run, or resume with the config of that run.");
}

}  // namespace weft::config
