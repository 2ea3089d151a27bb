// One call of the gated linear recurrence as plain numbers and pointers, and the kernels that take it, one set per instruction set.
#pragma once

#include "ops/cpu/isa.h"
#include "weft/core/dtype.h"
#include "weft/ops/attention/problem.h"

namespace weft::cpu {

// One number per token and head (also for none, and for one per head), or one per channel.
enum class Decay { scalar, key, value };
enum class Mark : uint8_t { padding, token, first };  // first: of a document, with a state of zeros

struct RecurrenceProblem {
  using Operand = ops::core::Operand;

  int64_t batch = 0, tokens = 0, heads = 0, key_heads = 0, key_width = 0, value_width = 0;
  double scale = 1;
  int64_t chunk = 0;
  int device = 0;  // of those kernels that run on a GPU
  // Where there are fewer heads than threads, a head is computed in parts of so many value columns, each with a state of its own. What is a sum
  // over the columns has one tensor per part then: dq, dk, dbeta and the gradient of the decay, unless it is of value channels.
  int64_t part_width = 0, parts = 1;
  // Of backward: dq and dk of a group are the sum of so many tensors [B, T, K], each of some of its heads, so that threads can share a group.
  int64_t sums_per_group = 1;
  Decay decay = Decay::scalar;
  Operand q, k, v;
  // [B, T, H], log_decay also [B, T, H, K or V]. No data: 0, the plain write, all tokens.
  Operand log_decay, beta, writes;
  const Mark* marks = nullptr;  // [B, T], or null: every token is Mark::token
  const void* state = nullptr;  // contiguous [B, H, K, V] in the computing type, or null: zeros
  int64_t state_width = 0;      // V of all parts

  // Of two passes (weft/ops/recurrence.h), written by keep_states() and read by the others: states before each `kept_block` tokens, and behind
  // the last token, [B, H, n + 1, K, V], and products of the decays of all tokens before them, [B, H, n + 1, K], of value channels [.., V].
  void *kept_states = nullptr, *kept_decays = nullptr;
  int64_t kept_block = 0;
  bool gives_decays = true;  // of the parts, one does

  // Forward.
  Operand out;                 // without data: only the last state is wanted
  void* last_state = nullptr;  // contiguous [B, H, K, V]

  // Backward. Without data: dout and dlast_state are zeros, gradients are not wanted. dq and dk [B, T, G sums_per_group, K] add up over heads, so
  // they are in the computing type if a group has several.
  Operand dout;
  const void* dlast_state = nullptr;
  Operand dq, dk, dv, dlog_decay, dbeta;
  double* dlog_decay_of_head = nullptr;  // [B, H], in place of dlog_decay: sums over the tokens
  void* dstate = nullptr;

  int64_t heads_per_group() const { return heads / key_heads; }
  int64_t heads_per_sum() const { return heads_per_group() / sums_per_group; }
  int64_t kept_blocks() const { return (tokens + kept_block - 1) / kept_block; }
};

// How many threads backward uses, and how many numbers each needs for the states of its heads.
struct RecurrenceWorkers {
  int64_t count = 0, states = 0;
};

// T is float (f32 and bf16 tensors) or double; double exists for Isa::baseline only: gradient checks need no speed.
template <Isa I, class T>
struct RecurrenceKernels {
  static void forward(const RecurrenceProblem& problem);
  static int64_t forward_items(const RecurrenceProblem& problem);  // pieces of work, which threads take one by one
  // `states` is memory for workers(problem).
  static void backward(const RecurrenceProblem& problem, void* states);
  static RecurrenceWorkers workers(const RecurrenceProblem& problem);
  // Two passes, of the plain write.
  static int64_t block_to_keep(const RecurrenceProblem& problem);
  static void keep_states(const RecurrenceProblem& problem);
  // Of backward only dstate.
  static void state_gradient(const RecurrenceProblem& problem);
};

}  // namespace weft::cpu
