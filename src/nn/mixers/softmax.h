// What the files of softmax attention share.
#pragma once

#include "weft/nn/mixers/softmax.h"

namespace weft {

// The options with sizes filled in; Error for what does not go together.
SoftmaxOptions completed(SoftmaxOptions options, const MixerArgs& args);
std::string_view name_of(GatePosition position);

}  // namespace weft
