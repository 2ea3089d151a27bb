// Attention on chosen blocks of keys: which blocks have the largest weights, and attention on those alone.
// Blocks are cut by positions within documents. Numbers of blocks count them in their row.
// B batch rows, T tokens here, S tokens of the row, H heads, G key/value heads, K head width, N chosen blocks.
#pragma once

#include <array>

#include "src/nn/mixers/hybrids/all_tokens.h"

namespace weft::hybrid {

// Per query and key/value head the `most` blocks that hold the largest single weight, over the heads of the group: [B, T, G, N] f32, -1 for
// none; at a tie the earlier block. lse of attention on all keys. No array of T x S numbers is made, but T x (blocks) are.
Tensor choose_blocks(const Var& q_BTHK, const Var& k_BSGK, const Var& lse_BTH, const AllTokens& all, int64_t length,
                     int64_t most);
// {out [B, T, H, K], lse [B, T, H]} in f32 (f64 for f64): softmax over the keys of the chosen blocks that the query sees. For each block of each
// row and group, with the queries that chose it. Each chosen block must hold a key that the query sees.
std::array<Var, 2> attend_blocks(const Var& q_BTHK, const Var& k_BSGK, const Var& v_BSGK, const Tensor& blocks_BTGN,
                                 const AllTokens& all, int64_t length);
// The number of each key's block [B, S] f32, -2 for padding, which is in none.
Tensor blocks_of_keys(const AllTokens& all, int64_t length);

}  // namespace weft::hybrid
