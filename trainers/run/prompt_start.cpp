#include "trainers/run/prompt_start.h"

#include <vector>

#include "src/data/bpe.h"

namespace weft::train {

std::optional<int32_t> prompt_start(const config::Data& data) {
  if (!data.weights_only() || data.first_token() || !data.tokenizer().has_bpe()) return std::nullopt;
  const std::vector<int32_t> before = data::read_tokenizer_json(data.tokenizer().bpe().file()).before;
  return before.size() == 1 ? std::optional(before[0]) : std::nullopt;
}

}  // namespace weft::train
