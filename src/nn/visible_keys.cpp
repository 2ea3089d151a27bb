// How many keys the tokens see: counted, for any order and any beginning of positions.
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "src/nn/mixing/cache.h"
#include "src/nn/mixing/mixing.h"
#include "weft/autograd/functions.h"
#include "weft/nn/tokens.h"

namespace weft {

Tensor Tokens::visible_keys(int64_t window) const {
  for (const auto& [known, counts] : visible_keys_)
    if (known == window) return counts;
  NoGrad no_grad;
  auto up_to_window = [&](const Var& seen) {
    const auto most = static_cast<double>(window);
    return window > 0 ? minimum(seen, Tensor::full({}, most, kF32, seen.device())).value() : seen.value();
  };
  const bool is_one_run = !data_.documents.defined();
  Tensor counts;
  if (is_decoding() && (is_one_run || window == 0)) {  // the cache may have forgotten keys, and counted them
    Tensor seen = Tensor::from(std::span<const float>(options_.cache->counts()), {batch(), num_tokens()});
    counts = up_to_window(to(seen, data_.positions.device()));
  } else if (is_one_run && data_.are_consecutive) {  // from the first key on, one by one; no device is waited for
    counts = up_to_window(cast(Var(data_.positions) - Var(mixing_->gathered(0).positions.slice(1, 0, 1)), kF32) + 1.0);
  } else {
    counts = count_keys(window);
  }
  return visible_keys_.emplace_back(window, counts).second;
}

// On the CPU, row by row: the keys of all tokens of the row by document and position, and where what a token sees begins and ends among them.
Tensor Tokens::count_keys(int64_t window) const {
  if (is_decoding()) options_.cache->reach(window - 1);  // so that the steps to come find them
  const Mixing::GatheredTokens& all = mixing_->gathered(is_decoding() ? window : 0);
  const int64_t B = batch(), T = num_tokens(), S = all.positions.size(1);
  const bool are_here = all.positions.shares_memory_with(data_.positions);
  auto on_cpu = [&](std::span<const int32_t> here, const Tensor& gathered) {
    if (are_here) return std::vector<int32_t>(here.begin(), here.end());
    return gathered.defined() ? gathered.to_vector<int32_t>() : std::vector<int32_t>();
  };
  const std::vector<int32_t> key_positions = on_cpu(cpu_positions(), all.positions),
                             key_documents = on_cpu(cpu_documents(), all.documents);
  using Place = std::pair<int32_t, int32_t>;  // document, position
  auto place = [](std::span<const int32_t> positions, std::span<const int32_t> documents, int64_t i) {
    const auto at = static_cast<size_t>(i);
    return Place(documents.empty() ? 0 : documents[at], positions[at]);
  };
  Tensor counts = Tensor::full({B, T}, 1, kF32, Device::cpu());
  std::vector<Place> keys(static_cast<size_t>(S));
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t j = 0; j < S; ++j) keys[static_cast<size_t>(j)] = place(key_positions, key_documents, b * S + j);
    if (!std::is_sorted(keys.begin(), keys.end())) std::sort(keys.begin(), keys.end());
    for (int64_t i = b * T; i < (b + 1) * T; ++i) {
      const auto [document, position] = place(cpu_positions(), cpu_documents(), i);
      if (document < 0) continue;
      const int64_t oldest = window > 0 ? std::max<int64_t>(INT32_MIN, int64_t{position} - window + 1) : INT32_MIN;
      auto begin = std::lower_bound(keys.begin(), keys.end(), Place(document, static_cast<int32_t>(oldest)));
      auto end = std::upper_bound(begin, keys.end(), Place(document, position));
      counts.mutable_data<float>()[i] = static_cast<float>(end - begin);
    }
  }
  return to(counts, data_.positions.device()).value();
}

}  // namespace weft
