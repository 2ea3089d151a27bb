#include "trainers/config/row_bound.h"

#include "trainers/config/pattern.h"

namespace weft::config {

std::string bound_of_rows(const Model& model) {
  if (model.position().has_learned()) return "has learned positions";
  for (const int index : layer_mixers(model)) {
    const Mixer& mixer = model.mixer(index);
    const std::string which = str(" (model.mixer[", index, "])");
    const auto kind = mixer.deconstructed().kind();
    if (mixer.has_deconstructed() &&
        (kind == DeconstructedKind::random_embedding || kind == DeconstructedKind::fixed_text))
      return "reads a fixed sequence" + which;
    if (mixer.has_simplified() && mixer.simplified().kind() == SimplifiedKind::super)
      return "mixes values by a triangle" + which;
  }
  return "";
}

}  // namespace weft::config
