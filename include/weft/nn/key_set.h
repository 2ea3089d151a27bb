// Attention in parts: keys are handed out once, then any number of sets of queries attends to them.
//   KeySet keys = tokens.keys(k, v);
//   for (const KeySet& of_row : keys.rows()) ... tokens.attend_part(tokens.queries(q, row, which), of_row, options);
// B batch rows, N queries, S keys, H query heads, G key/value heads, K head width, V value width.
#pragma once

#include <vector>

#include "weft/autograd/functions.h"

namespace weft {

struct KeyOptions {
  int64_t window = 0;       // if > 0: no call will look back farther, so that a decoding keeps no older keys
  Var bias = {};            // of the scores: [B, T, G] or [B, T, H]
  int64_t value_width = 0;  // where no values are given: the first channels of the keys
  bool serves_one_call =
      false;  // one attend() with all queries follows: keys of other ranks may come while it computes
};

struct KeySet {
  Var k, v;                      // [B, S, G, K], [B, S, G, V]
  Var bias;                      // of the scores: [B, S, G] or [B, S, H], or undefined
  ops::AttentionTokens tokens;   // of the S keys
  int64_t window = 0;            // as asked for
  bool is_of_this_rank = false;  // only the keys of the tokens here: attend() brings those of other ranks

  // The same for one key/value head or batch row each, as views. Their gradients are joined once, however many parts are used.
  std::vector<KeySet> groups() const;
  std::vector<KeySet> rows() const;
};

struct QuerySet {
  Var q;                        // [B, N, H, K]
  Var bias;                     // of the scores: [B, N, H], or undefined
  ops::AttentionTokens tokens;  // of the N queries
  int64_t first_row = 0;        // global index of batch row 0 in the step
};

}  // namespace weft
