// Tokens of rows cut into pieces: at most `length` tokens of one document, by their positions within it.
// B batch rows, S tokens of a row, in the order of positions.
#pragma once

#include <span>
#include <vector>

#include "weft/autograd/var.h"

namespace weft {

struct Piece {
  std::vector<int32_t> tokens;   // of the B S, row by row
  bool begins_document = false;  // the token in front is of another document, or there is none
  bool is_whole = false;         // its last token ends a stretch of `length` positions
};

struct Pieces {
  std::vector<std::vector<Piece>> rows;
  int64_t most() const;  // pieces of a row
  // Piece number i of every row: its tokens, with -1 behind them up to the longest: [B, count].
  struct Padded {
    std::vector<int32_t> tokens;
    int64_t count = 0;
  };
  Padded padded(int64_t i) const;
};

// positions [B, S] within documents. No documents: one per row; a negative one is padding. `before` [B]: the document of the token in front of
// each row; empty: there is none.
Pieces pieces_of(int64_t batch, std::span<const int32_t> positions, std::span<const int32_t> documents, int64_t length,
                 std::span<const int32_t> before = {});

// Rows of x [N, C]; -1 gives a row of zeros.
Var rows_or_zeros(const Var& x_NC, std::span<const int32_t> numbers);

}  // namespace weft
