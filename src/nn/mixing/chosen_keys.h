// Keys of some tokens only, which a layer chooses by their places, such as the last token of each chunk. The layer makes the KeySet of the tokens here
// by itself, marked is_of_this_rank, and one attend_part() with all queries follows. That call brings the chosen keys of other ranks, or of
// the tokens in the cache. So keys that nobody chose neither travel nor are kept.
// B batch rows, S chosen keys of the longest row, G key/value heads, K head width, V value width.
#pragma once

#include <cstdint>
#include <vector>

#include "weft/nn/key_set.h"

namespace weft {

struct ChosenKey {
  int32_t number = 0;                  // row of the keys and values that are given
  int32_t position = 0, document = 0;  // where the key stands: any place from which on it shall be seen
};
using ChosenRows = std::vector<std::vector<ChosenKey>>;  // of each of the B rows

// Of keys k [N, G, K] and values v [N, G, V]: [B, S, ...]. Rows with fewer keys are filled up with unseen ones, all of them to at least `least`.
KeySet chosen_keys(const Var& k_NGK, const Var& v_NGV, const ChosenRows& rows, bool have_documents, int64_t least = 1);
// The seen keys of such a set. In a dry run all of them, at position 0.
ChosenRows chosen_rows(const KeySet& keys);
// Such keys are no tokens of the table as a whole.
inline bool are_chosen(const KeySet& keys, const Tensor& positions_of_table) {
  return keys.is_of_this_rank && !keys.tokens.positions.shares_memory_with(positions_of_table);
}

}  // namespace weft
