// What the files of softmax attention share.
#pragma once

#include "weft/nn/mixers/softmax.h"

namespace weft {

std::string_view name_of(GatePosition position);

}  // namespace weft
