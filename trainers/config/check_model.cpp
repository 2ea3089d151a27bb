// Checks of ranges and required fields by the schema, and of the model's numbers against each other.
#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <sstream>

#include "trainers/config/check.h"
#include "trainers/config/pattern.h"
#include "trainers/config/scalar.h"
#include "trainers/config/schema.h"
#include "trainers/config/text_place.h"

namespace weft::config {

namespace {

namespace pb = google::protobuf;

class FieldChecker {
 public:
  explicit FieldChecker(const Loaded& config) : config_(config) {}

  void check(const pb::Message& message, const std::string& path) const {
    const Descriptor& type = *message.GetDescriptor();
    for (int i = 0; i < type.field_count(); ++i) check_field(message, *type.field(i), path);
  }

 private:
  void check_field(const pb::Message& message, const FieldDescriptor& field, const std::string& path) const {
    const pb::Reflection& reflection = *message.GetReflection();
    Facts known = facts(field);
    std::string here = child_path(path, field.name());
    int count = field.is_repeated() ? reflection.FieldSize(message, &field) : reflection.HasField(message, &field);
    bool is_text = field.cpp_type() == FieldDescriptor::CPPTYPE_STRING;
    bool is_empty = count == 0 || (is_text && !field.is_repeated() && reflection.GetString(message, &field).empty());
    if (known.is_required && is_empty)
      refuse(config_, here, "is missing: " + comment(field), str("Give ", expectation(field), ": ", here, "=..."));
    for (int i = 0; i < count; ++i) {
      std::string at = field.is_repeated() ? element_path(here, i) : here;
      if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE)
        check(field.is_repeated() ? reflection.GetRepeatedMessage(message, &field, i)
                                  : reflection.GetMessage(message, &field),
              at);
      else if (!known.range.text.empty() || field.cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE)
        check_number(message, field, known, i, at);
    }
  }

  void check_number(const pb::Message& message, const FieldDescriptor& field, const Facts& known, int index,
                    const std::string& path) const {
    double value = scalar_number(message, field, index);
    if (std::isfinite(value) && known.range.contains(value)) return;
    refuse(config_, path, "is " + scalar_text(message, field, index) + ", outside the allowed range.",
           "Give " + expectation(field) + ".");
  }

  const Loaded& config_;
};

void check_scaling(const Loaded& config, const RopeScaling& scaling) {
  const std::string path = "model.position.rope.scaling.";
  if (scaling.has_llama3() && scaling.llama3().low_freq_factor() >= scaling.llama3().high_freq_factor())
    refuse(config, path + "llama3.low_freq_factor",
           str("is ", scaling.llama3().low_freq_factor(), ", must be below high_freq_factor ",
               scaling.llama3().high_freq_factor(), "."),
           "Llama 3 uses 1 and 4.");
  if (scaling.has_yarn() && scaling.yarn().beta_slow() >= scaling.yarn().beta_fast())
    refuse(config, path + "yarn.beta_slow",
           str("is ", scaling.yarn().beta_slow(), ", must be below beta_fast ", scaling.yarn().beta_fast(), "."),
           "YaRN uses 1 and 32.");
}

void check_residual(const Loaded& config, const Residual& residual) {
  if (!residual.has_attention() && !residual.has_delta()) return;
  const std::string path = residual.has_delta() ? "model.residual.delta" : "model.residual.attention";
  const RoutedResidual& routed = residual.has_delta() ? residual.delta() : residual.attention();
  const Model& model = config.experiment.model();
  const int64_t sublayers = num_sublayers(model);
  if (routed.has_blocks() && routed.blocks() > sublayers)
    refuse(config, path + ".blocks", str("is ", routed.blocks(), ", but there are ", sublayers, " sublayers."),
           str("Use at most ", model.ffn().has_none() ? "one block" : "two blocks", " per layer."));
  if (routed.has_blocks() && routed.states())
    refuse(config, path + ".states", "stands beside blocks.", "Mix block sums or running sums, not both.");
  if (routed.has_window() && (routed.has_blocks() || routed.states()))
    refuse(config, path + ".window", "goes with the sublayers' outputs only.", "Leave out blocks and states.");
}

}  // namespace

int64_t num_sublayers(const Model& model) { return (model.ffn().has_none() ? 1 : 2) * model.layers(); }

void check_fields(const Loaded& config) { FieldChecker(config).check(config.experiment, ""); }

void check_model(const Loaded& config) {
  const Model& model = config.experiment.model();
  if (model.mixer_size() == 0)
    refuse(config, "model.mixer", "is missing: layers need a token mixer.",
           "Add for example model.mixer+={softmax{heads:8}}.");
  for (int i = 0; i < model.mixer_size(); ++i) check_mixer(config, model.mixer(i), element_path("model.mixer", i));
  check_umoe(config);
  check_residual(config, model.residual());
  check_pattern(config);
  if (model.position().has_rope()) check_scaling(config, model.position().rope().scaling());
}

}  // namespace weft::config
