// A request to /v1/completions, as OpenAI's interface has it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "trainers/serve/served_model.h"

namespace weft::serve {

struct Completion {
  std::vector<std::vector<int32_t>> prompts = {};  // without the run's first token, unless the request gave it
  int64_t n = 1;                                   // completions of each prompt
  int64_t max_tokens = 16;
  bool echo = false, stream = false, streams_usage = false;
  std::optional<int64_t> logprobs = {};
  std::vector<std::string> stop = {};
  double temperature = 1, top_p = 1;
  uint64_t seed = 1;
};

// RequestError on whatever is not a request of this interface, or asks for what is not supported. The fields are listed in completion.cpp.
Completion read_completion(std::string_view body, const ServedModel& model);

}  // namespace weft::serve
