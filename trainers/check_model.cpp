// Checks of ranges and required fields by the schema, and of the model's numbers against each other.
#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <sstream>

#include "trainers/check.h"
#include "trainers/scalar.h"
#include "trainers/schema.h"
#include "trainers/text_place.h"

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

void check_rope(const Loaded& config, const Rope& rope, const Softmax& softmax, const std::string& mixer) {
  int64_t width = softmax.head_dim();
  std::string head_dim = mixer + ".head_dim";
  if (width % 2 != 0)
    refuse(config, config.origins.has(head_dim) ? head_dim : mixer + ".heads",
           str("gives heads of width ", width, "; rotary positions turn pairs of features and need an even one."),
           str("Change heads or head_dim, or use model.position={none{}}."));
  double rotated = rope.fraction() * static_cast<double>(width);
  bool is_even = std::abs(rotated / 2 - std::nearbyint(rotated / 2)) < 1e-9 && rotated >= 2;
  if (!is_even)
    refuse(config, "model.position.rope.fraction",
           str("is ", rope.fraction(), ": it rotates ", rotated, " of ", width, " features of a head."),
           "Choose a fraction that gives an even number of features, at least 2.");
}

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

void check_softmax(const Loaded& config, const Softmax& softmax, const std::string& path) {
  const Model& model = config.experiment.model();
  if (!softmax.has_head_dim())
    refuse(config, path + ".heads", str("is ", softmax.heads(), ", which does not divide model.dim ", model.dim(), "."),
           str("Use a divisor such as ", divisors_near(model.dim(), softmax.heads()), ", or set ", path, ".head_dim."));
  if (softmax.heads() % softmax.kv_heads() != 0)
    refuse(config, path + ".kv_heads",
           str("is ", softmax.kv_heads(), ", which does not divide heads ", softmax.heads(), "."),
           str("Use a divisor: ", divisors_near(softmax.heads(), softmax.kv_heads()), "."));
  if (model.position().has_rope()) check_rope(config, model.position().rope(), softmax, path);
}

void check_pattern(const Loaded& config) {
  const Model& model = config.experiment.model();
  const std::string path = "model.pattern", shown = str("is \"", model.pattern(), "\": ");
  std::istringstream words(model.pattern());
  int64_t count = 0;
  for (std::string word; words >> word; ++count) {
    int64_t index = -1;
    auto [end, code] = std::from_chars(word.data(), word.data() + word.size(), index);
    if (code != std::errc() || end != word.data() + word.size() || index < 0)
      refuse(config, path, str(shown, "'", word, "' is not an index."),
             "Write indices of model.mixer separated by spaces: \"0 0 0 1\".");
    if (index >= model.mixer_size())
      refuse(config, path,
             str(shown, "index ", index, " is out of range, there ",
                 model.mixer_size() == 1 ? "is 1 mixer" : str("are ", model.mixer_size(), " mixers"), "."),
             str("Use indices in [0, ", model.mixer_size() - 1, "], or add a mixer."));
  }
  if (count == 0) refuse(config, path, shown + "it names no mixer.", "Leave it out for the mixers in turn.");
  if (count > model.layers())
    refuse(config, path, str(shown, "it has ", count, " entries for ", model.layers(), " layers."),
           "Use at most one entry per layer.");
}

}  // namespace

std::string divisors_near(int64_t n, int64_t wanted) {
  std::vector<int64_t> all;
  for (int64_t d = 1; d <= n && d <= 4096; ++d)
    if (n % d == 0) all.push_back(d);
  std::sort(all.begin(), all.end(), [&](int64_t a, int64_t b) { return std::abs(a - wanted) < std::abs(b - wanted); });
  if (all.size() > 8) all.resize(8);
  std::sort(all.begin(), all.end());
  std::string out;
  for (int64_t d : all) out += str(out.empty() ? "" : ", ", d);
  return out;
}

void check_fields(const Loaded& config) { FieldChecker(config).check(config.experiment, ""); }

void check_model(const Loaded& config) {
  const Model& model = config.experiment.model();
  if (model.mixer_size() == 0)
    refuse(config, "model.mixer", "is missing: layers need a token mixer.",
           "Add for example model.mixer+={softmax{heads:8}}.");
  for (int i = 0; i < model.mixer_size(); ++i)
    if (model.mixer(i).has_softmax())
      check_softmax(config, model.mixer(i).softmax(), element_path("model.mixer", i) + ".softmax");
  check_pattern(config);
  if (model.position().has_rope()) check_scaling(config, model.position().rope().scaling());
}

}  // namespace weft::config
