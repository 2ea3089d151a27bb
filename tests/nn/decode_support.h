// What the tests of decoding share: steps, and rows of other lengths.
#pragma once

#include <algorithm>
#include <utility>

#include "tests/nn/mixing_support.h"
#include "weft/models/language_model.h"
#include "weft/nn/mixers/compositions.h"
#include "weft/nn/mixers/hybrids.h"
#include "weft/nn/mixers/recurrent.h"

namespace weft::mixing_test {

// Steps of a decoding: some tokens at once, then one or two.
inline std::vector<std::pair<int64_t, int64_t>> steps(int64_t num_tokens, int64_t first) {
  std::vector<std::pair<int64_t, int64_t>> all;
  for (int64_t begin = 0, count = first; begin < num_tokens; begin += count, count = begin % 3 == 0 ? 2 : 1) {
    count = std::min(count, num_tokens - begin);
    all.emplace_back(begin, begin + count);
  }
  return all;
}

inline TokenData part_of(const TokenData& all, int64_t begin, int64_t end) {
  auto part = [&](const Tensor& t) {
    if (!t.defined()) return t;
    Ints numbers = t.slice(1, begin, end).to_vector<int32_t>();
    return Tensor::from(std::span<const int32_t>(numbers), {t.size(0), end - begin});
  };
  return {.positions = part(all.positions), .documents = part(all.documents)};
}

inline Tensor rows_of(const Tensor& x, std::span<const int32_t> rows) {
  std::vector<Var> parts;
  for (int32_t row : rows) parts.push_back(cast(Var(x.slice(0, row, row + 1)), kF64));
  return cast(concatenate(parts, 0), x.dtype()).value();
}

// Prompts of 5 and 3 tokens, padded, then 8 more tokens each, in which a document ends; a finished row goes on with padding.
inline TokenData prompts() {
  const Ints documents{0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 0, 0, 0, -1, -1, 0, 0, 0, 5, 5, -1, -1, -1};
  Ints positions;
  for (int64_t b = 0; b < kBatch; ++b)
    for (int32_t t = 0, next = 0; t < kTokens; ++t)
      positions.push_back(documents[static_cast<size_t>(b * kTokens + t)] < 0 ? 40 + t : next++);
  return {.positions = Tensor::from(std::span<const int32_t>(positions), {kBatch, kTokens}),
          .documents = Tensor::from(std::span<const int32_t>(documents), {kBatch, kTokens})};
}

inline TokenData with_rows_swapped(const TokenData& data) {
  auto swapped = [](const Tensor& t) {
    Ints numbers = t.to_vector<int32_t>();
    std::rotate(numbers.begin(), numbers.begin() + kTokens, numbers.end());
    return Tensor::from(std::span<const int32_t>(numbers), t.shape());
  };
  return {.positions = swapped(data.positions), .documents = swapped(data.documents)};
}

// Models whose caches hold keys, latents, states and windows, and layers of Hymba and of HySparse that read the keys of the one before them, in
// all of the context.
inline std::vector<LanguageModelOptions> decoded_models() {
  const std::vector<std::vector<MixerMaker>> mixers{
      {SoftmaxOptions{.heads = 4, .kv_heads = 2}, MlaOptions{.heads = 2, .rope_dim = 4, .kv_rank = 8}},
      {HymbaOptions{.heads = 2, .window = 0, .sharing = 2}},
      {HySparseOptions{.heads = 4, .kv_heads = 2, .sparse = 1, .block = 3, .blocks = 2, .window = 2}},
      {DeltaOptions{.decay = DeltaDecay::head, .heads = 2}, SoftmaxOptions{.heads = 2, .window = 5}}};
  std::vector<LanguageModelOptions> models;
  for (const std::vector<MixerMaker>& of_model : mixers)
    models.push_back({.vocab = 19, .dim = 16, .layers = 2, .context = 12, .mixers = of_model, .std = 0.5});
  return models;
}

}  // namespace weft::mixing_test
