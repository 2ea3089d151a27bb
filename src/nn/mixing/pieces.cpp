#include "src/nn/mixing/pieces.h"

#include <algorithm>

#include "weft/autograd/functions.h"

namespace weft {

int64_t Pieces::most() const {
  size_t most = 0;
  for (const auto& row : rows) most = std::max(most, row.size());
  return static_cast<int64_t>(most);
}

Pieces::Padded Pieces::padded(int64_t i) const {
  const auto at = static_cast<size_t>(i);
  size_t count = 0;
  for (const auto& row : rows)
    if (at < row.size()) count = std::max(count, row[at].tokens.size());
  Padded out{.tokens = {}, .count = static_cast<int64_t>(count)};
  for (const auto& row : rows) {
    const size_t end = out.tokens.size() + count;
    if (at < row.size()) out.tokens.insert(out.tokens.end(), row[at].tokens.begin(), row[at].tokens.end());
    out.tokens.resize(end, -1);
  }
  return out;
}

Pieces pieces_of(int64_t batch, std::span<const int32_t> positions, std::span<const int32_t> documents, int64_t length,
                 std::span<const int32_t> before) {
  constexpr int32_t kNone = -2;  // -1 is padding
  const size_t num_rows = static_cast<size_t>(batch), S = positions.size() / num_rows;
  const auto step = static_cast<int32_t>(std::min<int64_t>(length, INT32_MAX));
  Pieces pieces;
  for (size_t b = 0; b < num_rows; ++b) {
    std::vector<Piece> row;
    int32_t document = before.empty() ? kNone : before[b], stretch = -1;
    for (size_t i = b * S; i < (b + 1) * S; ++i) {
      const int32_t own = documents.empty() ? 0 : documents[i], place = positions[i];
      if (own < 0) continue;
      const bool begins = own != document;
      if (row.empty() || begins || place / step != stretch) row.push_back({.tokens = {}, .begins_document = begins});
      row.back().tokens.push_back(static_cast<int32_t>(i));
      row.back().is_whole = place % step == step - 1;
      document = own, stretch = place / step;
    }
    pieces.rows.push_back(std::move(row));
  }
  return pieces;
}

Var rows_or_zeros(const Var& x_NC, std::span<const int32_t> numbers) {
  const auto last = static_cast<int32_t>(x_NC.size(0));
  std::vector<int32_t> found(numbers.begin(), numbers.end());
  bool has_none = last == 0;
  for (int32_t& number : found)
    if (number < 0) number = last, has_none = true;
  Var all = x_NC;
  if (has_none) {
    const Var parts[] = {x_NC, Tensor::zeros({1, x_NC.size(1)}, x_NC.dtype(), x_NC.device())};
    all = concatenate(parts, 0);
  }
  Tensor index = Tensor::from(std::span<const int32_t>(found), {static_cast<int64_t>(found.size())});
  return take_rows(all, to(index, x_NC.device()).value());
}

}  // namespace weft
