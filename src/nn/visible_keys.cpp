// How many keys the tokens see: counted, for any order and any beginning of positions.
#include <algorithm>
#include <cstdint>
#include <numeric>

#include "src/nn/mixing/mixing.h"
#include "weft/autograd/functions.h"
#include "weft/nn/tokens.h"

namespace weft {

Tensor Tokens::visible_keys(int64_t window) const {
  for (const auto& [known, counts] : visible_keys_)
    if (known == window) return counts;
  NoGrad no_grad;
  const bool is_one_run = !data_.documents.defined() && (is_decoding() || data_.are_consecutive);
  Tensor counts;
  if (is_one_run) {  // from the first key on, one by one; no device is waited for
    Var seen = cast(Var(data_.positions) - Var(mixing_->gathered(0).positions.slice(1, 0, 1)), kF32) + 1.0;
    const auto most = static_cast<double>(window);
    counts = window > 0 ? minimum(seen, Tensor::full({}, most, kF32, seen.device())).value() : seen.value();
  } else {
    counts = is_decoding() ? count_cached_keys(window) : count_keys(window);
  }
  return visible_keys_.emplace_back(window, counts).second;
}

// On the CPU, row by row: the tokens of a document in the order of positions.
Tensor Tokens::count_keys(int64_t window) const {
  const int64_t B = batch(), T = num_tokens();
  const std::span<const int32_t> positions = cpu_positions(), documents = cpu_documents();
  Tensor counts = Tensor::full({B, T}, 1, kF32, Device::cpu());
  std::vector<size_t> order(static_cast<size_t>(T));
  for (int64_t b = 0; b < B; ++b) {
    auto document = [&](size_t i) { return documents.empty() ? 0 : documents[i]; };
    auto key = [&](size_t i) { return std::pair(document(i), positions[i]); };
    std::iota(order.begin(), order.end(), static_cast<size_t>(b * T));
    auto is_before = [&](size_t i, size_t j) { return key(i) < key(j); };
    if (!std::is_sorted(order.begin(), order.end(), is_before)) std::sort(order.begin(), order.end(), is_before);
    size_t begin = 0, end = 0;  // of what token `i` sees in that order
    for (size_t i : order) {
      const int64_t oldest = window > 0 ? int64_t{positions[i]} - window + 1 : INT32_MIN;
      while (document(order[begin]) != document(i) || positions[order[begin]] < oldest) ++begin;
      while (end < order.size() && key(order[end]) <= key(i)) ++end;
      if (document(i) >= 0) counts.mutable_data<float>()[i] = static_cast<float>(end - begin);
    }
  }
  return to(counts, data_.positions.device()).value();
}

// In decoding with documents: query by query against all keys.
Tensor Tokens::count_cached_keys(int64_t window) const {
  const Mixing::GatheredTokens& keys = mixing_->gathered(0);
  auto number = [&](int64_t x) {
    return Var(Tensor::full({}, static_cast<double>(x), kI32, data_.positions.device()));
  };
  // Positive where the key is seen: one more than the distance, and not more than the window has left.
  Var room = (Var(data_.positions.unsqueeze(2)) - number(-1)) - Var(keys.positions.unsqueeze(1));
  if (window > 0) room = minimum(room, number(window + 1) - room);
  room = where(equal(data_.documents.unsqueeze(2), keys.documents.unsqueeze(1)), room, number(0));
  Var count = weft::sum(cast(cast(maximum(room, number(0)), kBool), kF32), -1);
  return where(counted(), count, Tensor::full({}, 1, kF32, count.device())).value();
}

}  // namespace weft
