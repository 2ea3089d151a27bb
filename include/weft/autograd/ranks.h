// Collectives that gradients flow through. Every rank calls the same ones in the same order, so their backwards too run in one order on all
// ranks: backward runs what was recorded last first. Each rank has a loss of its own, and what is minimised is the sum over ranks: a loss of
// which every rank has the same value is given by one of them. P ranks. The communicator must outlive backward.
#pragma once

#include <array>
#include <memory>
#include <span>
#include <vector>

#include "weft/autograd/functions.h"
#include "weft/autograd/recurrence.h"
#include "weft/distributed/context_attention.h"
#include "weft/distributed/context_recurrence.h"

namespace weft {

// [n, ...] -> [P n, ...], in the order of ranks. Backward: the sum over ranks of the gradients of this rank's part.
Var all_gather(dist::Communicator& comm, const Var& x);
// The sum over ranks; x itself with one rank. Backward: the sum over ranks of the gradients.
Var all_reduce(dist::Communicator& comm, const Var& x);
// Rows of x [N, C], those for rank 0 first: sends[r] of them go to rank r, and receives[r] come from it. Returns what came, by rank:
// [sum of receives, C]. Backward sends the gradients the other way.
struct RowCounts {
  std::vector<int64_t> sends, receives;
};
Var exchange_rows(dist::Communicator& comm, const Var& x_NC, const RowCounts& counts);

// attend() over the tokens of all ranks: see weft/distributed/context_attention.h. n tokens of this rank.
std::array<Var, 2> context_attention(const dist::ContextRanks& ranks, dist::Scheme scheme, const Var& q_BnHK,
                                     const Var& k_BnGK, const Var& v_BnGV, const ops::AttentionTokens& here,
                                     const ops::AttentionOptions& options, std::shared_ptr<const dist::HopPlan> plan,
                                     const AttentionBias& bias = {});

// recur() over the tokens of all ranks, in segments: see weft/distributed/context_recurrence.h. {out, state}, both differentiable.
std::array<Var, 2> context_recur(dist::Communicator& comm, std::shared_ptr<const dist::SegmentPlan> plan,
                                 dist::Carry carry, const RecurrenceVars& segments,
                                 const ops::RecurrenceOptions& options = {});

// y, whose backward reaches `others` too, with gradients of zeros. For collectives whose results a rank may not need: their backward must
// run on every rank.
Var hold(const Var& y, std::span<const Var> others);

}  // namespace weft
