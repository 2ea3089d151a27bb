// The parts of the table of mixers: one row per published point, in the order of the table.
#pragma once

#include <vector>

#include "weft/nn/mixers.h"

namespace weft {

using Rows = std::vector<MixerRow>;

Rows softmax_rows();
Rows composed_rows();
Rows expert_rows();
Rows recurrent_rows();
Rows hybrid_rows();

}  // namespace weft
