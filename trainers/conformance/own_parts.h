// A program's own norms, feed-forward networks, residual streams, mixtures of heads and attentions, as the suite and the benchmark take them.
#pragma once

#include <functional>
#include <vector>

#include "weft/models/language_model.h"
#include "weft/trainers/cli.h"

namespace weft::conformance {

struct OwnPart {
  MixerRow row;  // a small mixer around the part, named "norm.NAME", "ffn.NAME", ...
  std::function<void(LanguageModelOptions&)> put_into;  // makes a model one with the part
};
std::vector<OwnPart> own_parts(const cli::Extensions& own);

}  // namespace weft::conformance
