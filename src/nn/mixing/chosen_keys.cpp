#include "src/nn/mixing/chosen_keys.h"

#include <algorithm>

#include "src/nn/mixing/pieces.h"
#include "weft/core/dry_run.h"

namespace weft {

namespace {

constexpr int32_t kUnseen = int32_t{1} << 30;  // a position behind all queries

}  // namespace

KeySet chosen_keys(const Var& k_NGK, const Var& v_NGV, const ChosenRows& rows, bool have_documents, int64_t least) {
  auto count = static_cast<size_t>(std::max<int64_t>(least, 1));
  for (const auto& row : rows) count = std::max(count, row.size());
  std::vector<int32_t> numbers, positions, documents;
  for (const auto& row : rows)
    for (size_t i = 0; i < count; ++i) {
      const ChosenKey key = i < row.size() ? row[i] : ChosenKey{.number = -1, .position = kUnseen, .document = -1};
      numbers.push_back(key.number), positions.push_back(key.position), documents.push_back(key.document);
    }
  const Shape shape{static_cast<int64_t>(rows.size()), static_cast<int64_t>(count)};
  auto there = [&](const std::vector<int32_t>& values) {
    return to(Tensor::from(std::span<const int32_t>(values), shape), k_NGK.device()).value();
  };
  auto taken = [&](const Var& x) {
    Var flat = reshape(x, {x.size(0), x.size(1) * x.size(2)});
    return reshape(rows_or_zeros(flat, numbers), {shape[0], shape[1], x.size(1), x.size(2)});
  };
  return {.k = taken(k_NGK),
          .v = taken(v_NGV),
          .bias = {},
          .tokens = {there(positions), have_documents ? there(documents) : Tensor()},
          .window = 0,
          .is_of_this_rank = true};
}

ChosenRows chosen_rows(const KeySet& keys) {
  const int64_t B = keys.k.size(0), S = keys.k.size(1);
  const bool have_documents = keys.tokens.documents.defined();
  std::vector<int32_t> positions(static_cast<size_t>(B * S)), documents = positions;
  if (!is_dry_run()) {
    positions = keys.tokens.positions.to_vector<int32_t>();
    if (have_documents) documents = keys.tokens.documents.to_vector<int32_t>();
  }
  ChosenRows rows(static_cast<size_t>(B));
  for (int64_t i = 0; i < B * S; ++i) {
    const auto at = static_cast<size_t>(i);
    if (positions[at] != kUnseen)
      rows[static_cast<size_t>(i / S)].push_back({static_cast<int32_t>(i), positions[at], documents[at]});
  }
  return rows;
}

}  // namespace weft
