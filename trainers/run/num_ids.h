// How many ids a model of a config has, before its data are prepared.
#pragma once

#include <cstdint>
#include <optional>

#include "trainers/config/config.h"

namespace weft::train {

// By the config, its task or its tokenizer's files; nothing where a text decides it. A `characters` tokenizer's ids are counted in training texts
// of up to `most_text_bytes` together. Error if a file cannot be read.
std::optional<int64_t> num_ids_of(const config::Loaded& config, int64_t most_text_bytes = 0);

}  // namespace weft::train
