// What the checks of configs share: errors that name line or argument, path, value and what to do.
#pragma once

#include "trainers/config/config.h"

namespace weft::config {

// Throws ConfigError "<origin of path>: <path> <problem>".
[[noreturn]] inline void refuse(const Loaded& config, const std::string& path, const std::string& problem,
                                const std::string& fix) {
  throw ConfigError(str(config.origins.of(path), ": ", path, " ", problem), fix);
}

// "1, 2, 3, 4, 6, 12": the divisors of n near `wanted`, for fixes; at most eight.
std::string divisors_near(int64_t n, int64_t wanted);

// Whether the value came from the command line.
bool is_overridden(const Loaded& config, const std::string& path);

// "" or which mixer cannot share a sequence among ranks, and why: "model.mixer[0] convolves ...".
std::string refusal_over_ranks(const Loaded& config);

// Error if data.end_of_text is no id of the tokenizer, which has so many. For where a run starts, or an override names the field: a run that
// was trained with such an id is read and goes on as it is, so resolve() says nothing of it.
void check_end_of_text(const Loaded& config, const std::string& tokenizer, int64_t ids);
// The same of what is known before a tokenizer is read or made.
void check_end_of_text(const Loaded& config);

void check_mixer(const Loaded& config, const Mixer& mixer, const std::string& path);
void check_adapters(const Loaded& config);  // of low-rank adapters, with the layers that take none
void check_umoe(const Loaded& config);      // the feed-forward network against the mixers
int64_t num_sublayers(const Model& model);  // of all layers: those that write to the residual stream

}  // namespace weft::config
