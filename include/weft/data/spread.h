// The tokens of rows over ranks. Ids, targets, positions and documents are dealt here once, after targets were shifted; nothing behind this
// is permuted again. T tokens of a row, P ranks.
#pragma once

#include "weft/comm/layout.h"
#include "weft/data/loader.h"

namespace weft::data {

struct SpreadOptions {
  dist::LayoutKind layout = dist::LayoutKind::zigzag;
  int ranks = 1;
  int64_t block = 64;  // tokens, of striped and balanced layouts: best the tile of the kernel
  int64_t window = 0;  // of the model's attention, for balanced layouts; 0: all earlier tokens
  bool keeps_documents_apart = true;
};

// The layout of one row. Balanced layouts are made for the documents of the row, [T] with -1 in padding, or empty.
dist::Layout layout_of_row(const SpreadOptions& options, int64_t tokens, std::span<const int32_t> documents = {});

// Rank `rank`'s tokens of each row: [B, T] -> [B, T' / P], by position, T' the next length that divides. What is added at the end of a row
// is padding: of document -1, without target. `rows` has positions and documents. If documents are not kept apart, those that come back are
// 0, and -1 in padding.
Batch spread(const Batch& rows, const SpreadOptions& options, int rank);

}  // namespace weft::data
