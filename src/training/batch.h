// Batches of token ids as a step takes them.
#pragma once

#include <span>

#include "weft/data/loader.h"

namespace weft {

// With positions and documents, where it brings none. Error if its tensors do not go together.
data::Batch completed(data::Batch batch);
data::Batch rows_of(const data::Batch& batch, int64_t first, int64_t count);  // views
int64_t count_targets(const data::Batch& batch);
int64_t count_bytes(const data::Batch& batch, std::span<const int64_t> byte_lengths);  // of its targets; no lengths: 0

}  // namespace weft
