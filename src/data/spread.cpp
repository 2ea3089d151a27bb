#include "weft/data/spread.h"

#include <algorithm>

#include "weft/core/error.h"

namespace weft::data {

dist::Layout layout_of_row(const SpreadOptions& options, int64_t tokens, std::span<const int32_t> documents) {
  switch (options.layout) {
    case dist::LayoutKind::contiguous: return dist::Layout::contiguous(tokens, options.ranks);
    case dist::LayoutKind::striped: return dist::Layout::striped(tokens, options.ranks, options.block);
    case dist::LayoutKind::zigzag: return dist::Layout::zigzag(tokens, options.ranks);
    case dist::LayoutKind::balanced: break;
  }
  dist::TokenMask mask{.window = options.window};
  if (options.keeps_documents_apart) mask.documents.assign(documents.begin(), documents.end());
  return dist::Layout::balanced(tokens, options.ranks, mask, options.block);
}

Batch spread(const Batch& rows, const SpreadOptions& options, int rank) {
  WEFT_CHECK(0 <= rank && rank < options.ranks, str("spread: rank ", rank, " of ", options.ranks),
             "ranks are numbered from 0");
  const Tensor* parts[] = {&rows.tokens, &rows.targets, &rows.positions, &rows.documents, &rows.document_positions};
  for (const Tensor* x : parts)
    WEFT_CHECK(x->defined() && x->dtype() == kI32 && x->num_dims() == 2 && x->shape() == rows.tokens.shape() &&
                   x->is_contiguous() && !x->is_cuda(),
               str("spread: a batch of ", rows.tokens, " holds ", *x),
               "give tokens, targets, positions, documents and document_positions, i32 of one shape on the CPU");
  const int64_t B = rows.tokens.size(0), T = rows.tokens.size(1);
  Batch mine;
  Tensor* out[] = {&mine.tokens, &mine.targets, &mine.positions, &mine.documents, &mine.document_positions};
  for (int64_t b = 0; b < B; ++b) {
    const std::span<const int32_t> documents(rows.documents.data<int32_t>() + b * T, static_cast<size_t>(T));
    const std::vector<int32_t> positions = layout_of_row(options, T, documents).positions(rank);
    const auto n = static_cast<int64_t>(positions.size());
    for (Tensor* x : out)
      if (!x->defined()) *x = Tensor::empty({B, n}, kI32, Device::cpu());
    const int32_t first = rows.positions.data<int32_t>()[b * T];
    for (int64_t i = 0; i < n; ++i) {
      const int32_t p = positions[static_cast<size_t>(i)];
      const bool is_padding = p >= T;
      auto of_row = [&](const Tensor& x) { return x.data<int32_t>()[b * T + p]; };
      auto set = [&](Tensor& x, int32_t value) { x.mutable_data<int32_t>()[b * n + i] = value; };
      set(mine.tokens, is_padding ? 0 : of_row(rows.tokens));
      set(mine.targets, is_padding ? -1 : of_row(rows.targets));
      set(mine.positions, first + p);
      if (is_padding) set(mine.documents, -1), set(mine.document_positions, 0);
      else if (options.keeps_documents_apart)
        set(mine.documents, of_row(rows.documents)), set(mine.document_positions, of_row(rows.document_positions));
      else set(mine.documents, of_row(rows.documents) < 0 ? -1 : 0), set(mine.document_positions, first + p);
    }
  }
  return mine;
}

}  // namespace weft::data
