// Where a step stands in a training, which layers may follow (TokensOptions::progress).
#pragma once

#include <cstdint>

namespace weft {

// 0 at the first step, 1 at the last and behind it, evenly between them. steps 0: their number is not known, and it stays 0.
double training_progress(int64_t step, int64_t steps);

}  // namespace weft
