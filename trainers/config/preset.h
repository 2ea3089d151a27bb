// Presets: a row of docs/mixers.md by its name, at the sizes of the model that names it.
#pragma once

#include <string>

#include "trainers/config/config.h"

namespace weft::config {

// Puts the fields of every `preset` of model.mixer and model.residual in its place. What the config sets itself stays; a list (gate) is
// taken from one of the two. ConfigError for a name that no row has, and for a preset of another kind than the message beside it.
void expand_presets(Loaded& config);

// The rows that `preset` takes, with their equations, for people: one line each.
std::string preset_list(bool is_residual);

}  // namespace weft::config
