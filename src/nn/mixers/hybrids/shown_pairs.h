// For diagnostics and probes: softmax attention that no call of the core has as a whole, since several of them share a query's keys, or since
// which keys it has is not a matter of places alone.
// B batch rows, T tokens here, I queries of a tile, S tokens of a row, H query heads, G key/value heads, K head width, V value width.
#pragma once

#include <functional>

#include "src/nn/mixers/hybrids/all_tokens.h"

namespace weft::hybrid {

// Of the queries begin .. end - 1 here: the keys that they attend to, [B, 1 or G, end - begin, S] bool. Causality and documents need not be in it.
using AttendedKeys = std::function<Tensor(int64_t begin, int64_t end)>;

// Shows softmax(q k^T / sqrt(K)) over the attended keys, tile by tile. k is gathered, v of the tokens here. Every rank calls it, where
// Tokens::is_watched().
void show_pairs(Tokens& tokens, const Var& q_BTHK, const Var& k_BSGK, const Var& v_BTGV, const AttendedKeys& attended);

}  // namespace weft::hybrid
