// All tokens of the rows, for mixers whose masks depend on numbers: keys that are forgotten, chunks that are attended, chosen blocks.
// Every rank has a copy. B batch rows, T tokens here, S tokens of a row, in the order of positions.
#pragma once

#include <span>
#include <vector>

#include "src/nn/mixing/pieces.h"
#include "weft/nn/tokens.h"

namespace weft::hybrid {

struct AllTokens {
  ops::AttentionTokens keys, queries;  // of the S, and of the T; positions are those within documents
  std::vector<int32_t> places;         // which of the B S each of the B T is

  int64_t batch() const { return keys.positions.size(0); }
  int64_t count() const { return keys.positions.size(1); }
  Var here(const Var& x_BS) const;  // [B, S, ...] -> [B, T, ...]
  Pieces pieces(int64_t length) const;
  // From the queries begin .. end - 1 here back to all keys: [B, 1, end - begin, S] i32, of pairs in one document.
  Tensor distances(int64_t begin, int64_t end) const;
  // Options under which documents do not see each other.
  ops::AttentionOptions options(int64_t window = 0) const;
};
// After Tokens::gather().
AllTokens all_tokens(const Tokens& tokens);

// [B, S] i32 + number.
Tensor plus(const Tensor& positions, int64_t number);
// i32 numbers on the CPU. In a dry run those of a row of one document.
std::vector<int32_t> on_cpu(const Tensor& positions_BS);
Tensor on_device_of(const Tensor& like, std::span<const int32_t> numbers, const Shape& shape);

// 1 for the largest of the last dimension and 0 for the others, with the gradient of their softmax.
Var one_hot(const Var& logits);
float gumbel(float uniform);  // of a number in [0, 1)
float gumbel(const Rng& rng, uint64_t index);
// Gumbel noise [B, T, count], by (row of the step, position), so that no layout of the step changes it.
Var gumbel_noise(const Tokens& tokens, int64_t count, DType dtype, Rng rng);

}  // namespace weft::hybrid
