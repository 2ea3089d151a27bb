// What a run needs until its end, looked at before its first step: a training must not find out after hours that a file is missing.
#pragma once

#include <string>
#include <vector>

#include "trainers/run/data.h"
#include "trainers/run/folder.h"

namespace weft::train {

// Before there is a run folder. Error if a text or a tokenizer's file is absent or cannot be read, or if there is no text to train on.
void check_inputs(const config::Loaded& config);
// Before texts are tokenised. Error if an input file is absent or cannot be read, or if a file of the run folder cannot be written.
void check_files(const config::Loaded& config, const RunFolder& folder);

// ConfigError if the tokenizer has no ids for log.sample_prompt, or the context no room.
std::vector<int32_t> checked_prompt(const config::Loaded& config, const RunData& data);

}  // namespace weft::train
