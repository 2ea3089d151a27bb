// Text generation, one token at a time with a cache.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "weft/models/language_model.h"

namespace weft {

namespace dist {
class Communicator;
}

struct SampleOptions {
  int64_t tokens = 200;    // at most this many new ones
  double temperature = 1;  // 0: the most likely token
  double top_p = 1;        // draw among the most likely tokens that together have this probability
  uint64_t seed = 1;
  int64_t vocab = 0;                        // ids from here on are never drawn; 0: the model's
  std::optional<int32_t> end_of_text = {};  // stops there; not part of the result
  std::optional<int32_t> first_token = {};  // stands before all that the model reads; not part of the result
  // Of whom each calls with the same model, prompt and options, and keeps a part of the cache. The first one draws, and all get its ids.
  dist::Communicator* ranks = nullptr;
};

// New ids after `prompt` (at least one id). When the model's context is full, the last half of it is kept and read again. A model whose layers keep
// states and windows alone, under positions that have no end (rotary or none), reads all of the prompt and goes on without a bound.
std::vector<int32_t> sample(LanguageModel& model, std::span<const int32_t> prompt, const SampleOptions& options);

// Whether it does so: some layer keeps all tokens, as a step with one token shows, or positions are learned.
bool forgets_beyond_context(LanguageModel& model);

// Draws one id from logits with a uniform number in [0, 1).
int32_t draw(std::span<const float> logits, double temperature, double top_p, double uniform);

}  // namespace weft
