// Option structs of the library as config messages: the way back from translate.h, for the config text of the tables' rows and for
// presets. Only what is not the schema's default is set.
#pragma once

#include <string>

#include "trainers/config/config.h"
#include "weft/nn/residual.h"

namespace weft::train {

config::Mixer mixer_message(const MixerOptions& options);
config::Softmax softmax_message(const SoftmaxOptions& options);
config::Residual residual_message(const RoutedResidualOptions* options);  // null: the standard stream
// Clears what the schema would fill in by itself. Messages stay, empty ones too: that they are there says something.
void clear_presets(google::protobuf::Message& message);

// "softmax { heads: 4 gate { activation: silu } }": what stands inside `mixer { ... }` or `residual { ... }`.
std::string text_of_message(const google::protobuf::Message& message);

// Of a row of the suite: "residual.NAME" is a residual stream, a row that no table of the library has is a `custom` mixer.
std::string config_text(const MixerRow& row);

}  // namespace weft::train
