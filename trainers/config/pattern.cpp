#include "trainers/config/pattern.h"

#include <google/protobuf/descriptor.h>

#include <algorithm>
#include <charconv>
#include <functional>
#include <sstream>
#include <utility>

#include "trainers/config/check.h"
#include "trainers/config/scalar.h"
#include "trainers/config/text_place.h"

namespace weft::config {

namespace {

using google::protobuf::FieldDescriptor;

void check_indices(const Loaded& config) {
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

void check_placement(const Loaded& config, const Placement& placement, const std::string& path) {
  const Model& model = config.experiment.model();
  if (placement.mixer() >= model.mixer_size())
    refuse(config, path + ".mixer",
           str("is ", placement.mixer(), "; there ",
               model.mixer_size() == 1 ? "is 1 mixer" : str("are ", model.mixer_size(), " mixers"), "."),
           str("Use an index in [0, ", model.mixer_size() - 1, "], or add a mixer."));
  for (int64_t layer : placement.layers())
    if (layer >= model.layers())
      refuse(config, path + ".layers", str("names layer ", layer, " of ", model.layers(), "."),
             str("Use layers in [0, ", model.layers() - 1, "]."));
  if (placement.layers_size() == 0 && !placement.first_middle_last() && !placement.has_ratio())
    refuse(config, path, "names no layer.", "Set layers, first_middle_last or ratio.");
}

bool names(const Placement& placement, int64_t layer, int64_t layers) {
  const auto& own = placement.layers();
  if (std::find(own.begin(), own.end(), layer) != own.end()) return true;
  if (placement.first_middle_last() && (layer == 0 || layer == layers / 2 || layer == layers - 1)) return true;
  if (!placement.has_ratio()) return false;
  const int64_t group = placement.ratio() + 1;
  return group > layers ? layer == layers / 2 : (layer + 1) % group == 0;
}

const FieldDescriptor* kind_field(const Mixer& mixer) {
  return mixer.GetReflection()->GetOneofFieldDescriptor(mixer, mixer.GetDescriptor()->oneof_decl(0));
}

std::string kind_of(const Mixer& mixer) {
  if (mixer.has_custom()) return mixer.custom().type();
  return kind_field(mixer) ? kind_field(mixer)->name() : "mixer";
}

// What mixers of one kind differ in most often, where it is set: " window 8", " position none", " decay channel", " random_embedding".
std::string told_apart(const Mixer& mixer) {
  if (mixer.has_custom() || !kind_field(mixer)) return "";
  const google::protobuf::Message& options = mixer.GetReflection()->GetMessage(mixer, kind_field(mixer));
  std::string text;
  for (const std::string name : {"kind", "decay", "window", "position"}) {
    const FieldDescriptor* field = options.GetDescriptor()->FindFieldByName(name);
    const std::string value = field ? scalar_or_empty(options, *field) : "";
    if (value.empty() || value == "0" || value == "unset" || value == "model") continue;
    text += " " + (name == "kind" ? value : name + " " + value);
  }
  return text;
}

// "0-2 4 6-7"
std::string ranges(const std::vector<int>& ascending) {
  std::string text;
  for (size_t i = 0; i < ascending.size();) {
    size_t end = i + 1;
    while (end < ascending.size() && ascending[end] == ascending[end - 1] + 1) ++end;
    text += str(i ? " " : "", ascending[i], end - i > 1 ? str("-", ascending[end - 1]) : "");
    i = end;
  }
  return text;
}

}  // namespace

std::vector<int> layer_mixers(const Model& model) {
  std::istringstream in(model.pattern());
  std::vector<int> pattern;
  for (int index; in >> index;) pattern.push_back(index);
  if (model.placement_size() == 0) return pattern;
  std::vector<int> all;
  for (int64_t layer = 0; layer < model.layers(); ++layer) {
    all.push_back(pattern[static_cast<size_t>(layer) % pattern.size()]);
    for (const Placement& placement : model.placement())
      if (names(placement, layer, model.layers())) all.back() = static_cast<int>(placement.mixer());
  }
  return all;
}

// What sets a layer apart from others that have its mixer.
static std::string role_of(const Model& model, const std::function<int(int64_t)>& mixer_of, int64_t layer) {
  const Mixer& mixer = model.mixer(mixer_of(layer));
  if (const int64_t sparse = mixer.hysparse().sparse(); mixer.has_hysparse() && sparse > 0)
    return layer % (sparse + 1) == 0 ? " full" : " sparse";
  if (mixer.hymba().sharing() <= 1) return "";
  int64_t first = layer;
  while (first > 0 && mixer_of(first - 1) == mixer_of(layer)) --first;
  return (layer - first) % mixer.hymba().sharing() == 0 ? " with keys of its own" : " with keys of an earlier layer";
}

std::string layers_text(const Model& model) {
  const std::vector<int> pattern = layer_mixers(model);
  auto mixer_of = [&](int64_t layer) { return pattern[static_cast<size_t>(layer) % pattern.size()]; };
  std::vector<std::pair<std::string, std::vector<int>>> kinds;  // in the order of their first layers
  for (int64_t layer = 0; layer < model.layers(); ++layer) {
    const int mixer = mixer_of(layer);
    const std::string role = role_of(model, mixer_of, layer);
    const std::string kind = str(kind_of(model.mixer(mixer)), role == " full" ? "" : told_apart(model.mixer(mixer)),
                                 role, model.mixer_size() > 1 ? str(" (mixer ", mixer, ")") : "");
    auto known = std::ranges::find_if(kinds, [&](const auto& of) { return of.first == kind; });
    if (known == kinds.end()) known = kinds.insert(known, {kind, {}});
    known->second.push_back(static_cast<int>(layer));
  }
  std::string text;
  for (const auto& [kind, layers] : kinds) text += str(text.empty() ? "" : ", ", ranges(layers), " ", kind);
  return text;
}

// Layers of Hymba in a row use the keys of the first of them.
static void check_shared(const Loaded& config, int mixer, const std::function<int(int64_t)>& mixer_of) {
  const Model& model = config.experiment.model();
  for (int64_t layer = 1; layer < model.layers(); ++layer)
    if (mixer_of(layer) == mixer && mixer_of(layer - 1) == mixer) return;
  refuse(config, element_path("model.mixer", mixer) + ".hymba.sharing",
         str("is ", model.mixer(mixer).hymba().sharing(), ", but no two layers in a row have model.mixer[", mixer,
             "]: the layers are ", layers_text(model), "."),
         "Give layers in a row this mixer, or use sharing: 1.");
}

// Without a sparse layer it is plain attention.
static void check_sparse(const Loaded& config, int mixer, const std::function<int(int64_t)>& mixer_of) {
  const Model& model = config.experiment.model();
  const int64_t sparse = model.mixer(mixer).hysparse().sparse();
  for (int64_t layer = 0; layer < model.layers(); ++layer)
    if (mixer_of(layer) == mixer && layer % (sparse + 1) != 0) return;
  refuse(config, element_path("model.mixer", mixer) + ".hysparse.sparse",
         str("is ", sparse, ", but every layer of model.mixer[", mixer,
             "] begins a group and has full attention: the layers are ", layers_text(model), "."),
         "Give the layers behind those this mixer too, or use sparse: 0.");
}

// A sparse layer of HySparse reads what the first layer of its group leaves.
static void check_schedules(const Loaded& config) {
  const Model& model = config.experiment.model();
  const std::vector<int> layers = layer_mixers(model);
  auto mixer_of = [&](int64_t layer) { return layers[static_cast<size_t>(layer) % layers.size()]; };
  for (int64_t layer = 0; layer < model.layers(); ++layer) {
    const int mixer = mixer_of(layer);
    if (model.mixer(mixer).hymba().sharing() > 1) check_shared(config, mixer, mixer_of);
    if (!model.mixer(mixer).has_hysparse()) continue;
    const int64_t group = model.mixer(mixer).hysparse().sparse() + 1, first = layer / group * group;
    if (mixer_of(first) != mixer)
      refuse(config, element_path("model.mixer", mixer) + ".hysparse.sparse",
             str("is ", group - 1, ": layer ", layer, " reads the keys of layer ", first, ", which is model.mixer[",
                 mixer_of(first), "]."),
             "Give both layers this mixer, change sparse, or use sparse: 0.");
    if (group > 1) check_sparse(config, mixer, mixer_of);
  }
}

void check_pattern(const Loaded& config) {
  check_indices(config);
  const Model& model = config.experiment.model();
  for (int i = 0; i < model.placement_size(); ++i)
    check_placement(config, model.placement(i), element_path("model.placement", i));
  check_schedules(config);
}

}  // namespace weft::config
