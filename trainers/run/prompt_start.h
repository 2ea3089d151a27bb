// What stands before a prompt that no data of the run ever names: the id that a tokenizer.json puts before every text.
#pragma once

#include <cstdint>
#include <optional>

#include "trainers/config/config.h"

namespace weft::train {

// Of imported weights (data.weights_only) with a tokenizer.json: they have seen it, where a training on texts here has not. The id is one of the
// tokenizer's, unlike that of data.first_token.
std::optional<int32_t> prompt_start(const config::Data& data);

}  // namespace weft::train
