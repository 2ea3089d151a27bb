// The routes of `weft serve`: completions, and what lm-evaluation-harness asks of a server's tokenizer.
#pragma once

#include <vector>

#include "trainers/serve/batcher.h"
#include "trainers/serve/http.h"
#include "trainers/serve/served_model.h"

namespace weft::serve {

// `model` and `batcher` must outlive them.
std::vector<HttpRoute> api_routes(const ServedModel& model, Batcher& batcher);

}  // namespace weft::serve
