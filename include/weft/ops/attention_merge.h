// Joins finished results over disjoint sets of keys, for schedules that receive them instead of a running state: partial results of ranks, of
// pieces of a cache, of branches over chosen blocks.
//   AttentionState all = merge(of_these_keys, of_those_keys);
// B batch, T queries, H query heads, V value width.
#pragma once

#include "weft/ops/attention.h"

namespace weft::ops {

// The result over the keys of both, in f32 (f64 for f64). Both have an lse (softmax, signed softmax), or none (sum). A query that has seen no
// key on one side (out = 0, lse = -inf) has exactly the result of the other side.
AttentionState merge(const AttentionState& a, const AttentionState& b);

// Gradients of both sides. `merged` is what merge() gave; dlse_BTH may be undefined: 0. A side without keys gets 0, and the other one exactly
// what came.
struct MergeGrads {
  AttentionState a, b;  // of out and lse
};
MergeGrads merge_backward(const Tensor& dout_BTHV, const Tensor& dlse_BTH, const AttentionState& a,
                          const AttentionState& b, const AttentionState& merged);

}  // namespace weft::ops
