// Whether rows may be longer than the model's context.
#pragma once

#include <string>

#include "trainers/config/config.h"

namespace weft::config {

// "" or what the model has for each place of its context alone: "has learned positions", "mixes values by a triangle (model.mixer[1])".
std::string bound_of_rows(const Model& model);

}  // namespace weft::config
