// Windows of TLinFormer: which tokens stand in them, which are their history, and masks.
// B batch rows, N windows of a row that have tokens here, Q tokens here per window, W tokens of the longest window, R rows of compressed history, S gathered
// tokens, S' those gathered for hidden layers.
#pragma once

#include <vector>

#include "src/nn/mixers/chunks.h"

namespace weft {

struct TlinWindows {
  int64_t count = 0, queries = 0;   // N, Q
  int64_t length = 0;               // W
  std::vector<int32_t> queries_of;  // [B N Q]: which token here, of the B T; -1 for none
  std::vector<int32_t> place;       // [B T]: of each token here among the B N Q, -1 for padding
  std::vector<int32_t> own,
      own_near;               // [B N W]: the window's tokens among the B S and the B S' gathered ones; -1 for none
  std::vector<int32_t> rows;  // [B N R]: the last tokens of the history, of the B S; -1 for none
  std::vector<int32_t> row_positions;  // [B N R]
  std::vector<int64_t> history_end;    // [N]: behind the last token that is history of any row's window n, of the S
  Tensor sees_own;                     // [B N, 1, Q, W] bool: causal
  Tensor has_row;                      // [B N, 1, 1, R] bool
  Tensor is_history;                   // [B, N, 1, 1, S] bool: of the same document, before the window

  TlinWindows(const ChunkPlaces& all, const ChunkPlaces& near, int64_t num_rows, Device device);
};

}  // namespace weft
