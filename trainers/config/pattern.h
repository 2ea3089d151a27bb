// Which layer has which mixer.
#pragma once

#include <string>
#include <vector>

#include "trainers/config/config.h"

namespace weft::config {

// Index of the mixer of each layer, of a model whose pattern and placements are legal.
std::vector<int> layer_mixers(const Model& model);

// "0-2 4-6 forgetting, 3 7 softmax window 8": by the first. Layers of one mixer that differ stand apart: "0 hysparse full, 1-3 hysparse sparse".
std::string layers_text(const Model& model);

void check_pattern(const Loaded& config);

}  // namespace weft::config
