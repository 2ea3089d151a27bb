// The blockwise softmax core: O(T) memory, forward and backward, over any sets of query and key positions.
// Positions and document ids are data: masks, score modifiers and dropout read them, never local indices.
// B batch, T queries, S keys, H query heads, G key/value heads (H a multiple of G), K key width, V value width.
#pragma once

#include <cstdint>

#include "weft/core/rng.h"
#include "weft/core/tensor.h"

namespace weft::ops {

// Which keys a query sees: the conjunction of what is set.
struct AttentionMask {
  bool is_causal = true;       // key position <= query position
  int64_t window = 0;          // if > 0: 0 <= query - key position < window
  int64_t prefix = 0;          // if > 0: keys at positions < prefix are seen by everyone (prefix language model)
  bool same_document = false;  // needs document ids; an id < 0 sees and is seen by nothing
};

// What makes a weight of a score under the sum normaliser: the score itself, sigmoid(s), max(s, 0), elu(s) + 1, or 1 + s + s^2 / 2.
enum class ScoreActivation : uint8_t { none, sigmoid, relu, elu1, taylor2 };

// What happens to scale * q.k before the normaliser, in this order.
struct AttentionScore {
  double softcap = 0;        // if > 0: cap * tanh(s / cap)
  Tensor alibi_slopes = {};  // [H] f32 on the device of q, or undefined: s -= slope_h * (query - key position)
  double shift = 0;          // s + shift; sum only, for others it changes nothing or is a sink's business
  ScoreActivation activation = ScoreActivation::none;  // sum only
};

enum class Normaliser {
  softmax,         // state (out, lse)
  sum,             // weights are the scores themselves, state is the plain sum; no statistic
  signed_softmax,  // weights sign(s) exp(|s| - lse), lse of |s|; state (out, lse). A score of exactly 0 counts as positive
};

// Whose kernels a call runs; by name, a call that they do not take is an Error.
//   weft    this framework's: every device, dtype and functor
//   wgmma   this framework's for GPUs of compute capability 9.0 (Hopper): bf16, keys and values at most 128 wide, rows of whole 16 bytes
//   cudnn   cuDNN's (GPUs, bf16), of attend() and attend_backward(): softmax of plain scores under a causal mask or a window, where queries
//           and keys have one tensor of positions and are_consecutive, and no gradient of lse
// automatic is weft, until the others have been measured to be faster (docs/gpu.md).
enum class AttentionBackend : uint8_t { automatic, weft, cudnn, wgmma };

struct AttentionOptions {
  double scale = 0;  // 0: 1 / sqrt(K)
  AttentionMask mask = {};
  AttentionScore score = {};
  Normaliser normaliser = Normaliser::softmax;
  double dropout = 0;  // probability; keep bits keyed by (rng, query position, key position, head, row)
  Rng dropout_rng = Rng(0);
  int64_t first_row = 0;  // global index of batch row 0, for dropout
  AttentionBackend backend = AttentionBackend::automatic;
};

// Positions [B, T] or [B, S] i32; documents the same shape, or undefined.
struct AttentionTokens {
  Tensor positions = {}, documents = {};
  bool are_consecutive = false;  // the caller's word: token t of each row stands at the row's first position + t
};

// The normaliser's merge state. Softmax: out [B, T, H, V] f32 (f64 for f64) normalised so far, lse [B, T, H];
// a query that has seen no key has out = 0 and lse = -inf. Sum: out only.
struct AttentionState {
  Tensor out = {}, lse = {};
};

// Empty state for q, ready to be passed through any number of attend_block() calls over disjoint key sets.
AttentionState attention_state(const Tensor& q_BTHK, int64_t value_width, const AttentionOptions& options);
// Merges the keys' contribution into `state` in place.
void attend_block(AttentionState& state, const Tensor& q_BTHK, const Tensor& k_BSGK, const Tensor& v_BSGV,
                  const AttentionTokens& queries, const AttentionTokens& keys, const AttentionOptions& options);

// One call over one key set: out in the dtype of q, lse f32 (f64 for f64; undefined for normalisers without one).
struct Attention {
  Tensor out = {}, lse = {};
};
Attention attend(const Tensor& q_BTHK, const Tensor& k_BSGK, const Tensor& v_BSGV, const AttentionTokens& queries,
                 const AttentionTokens& keys, const AttentionOptions& options);

// delta = dout . out - dlse per (query, head), f32: computed once, before any ring. dlse may be undefined.
Tensor attention_delta(const Tensor& dout_BTHV, const Tensor& out_BTHV, const Tensor& dlse_BTH,
                       const AttentionOptions& options);
// Adds this key set's contribution to dq, dk, dv (f32 or f64 accumulators of the inputs' shapes, zero at the start).
// lse and delta are those of the whole row, so the same call serves every hop of a ring.
struct AttentionGrads {
  Tensor dq, dk, dv;
};
void attend_block_backward(AttentionGrads& grads, const Tensor& dout_BTHV, const Tensor& q_BTHK, const Tensor& k_BSGK,
                           const Tensor& v_BSGV, const Tensor& lse_BTH, const Tensor& delta_BTH,
                           const AttentionTokens& queries, const AttentionTokens& keys,
                           const AttentionOptions& options);
// One call over one key set: gradients in the inputs' dtypes.
AttentionGrads attend_backward(const Tensor& dout_BTHV, const Tensor& dlse_BTH, const Tensor& q_BTHK,
                               const Tensor& k_BSGK, const Tensor& v_BSGV, const Attention& result,
                               const AttentionTokens& queries, const AttentionTokens& keys,
                               const AttentionOptions& options);

// What the weights of a call look like, by one more streaming pass without values: O(T + S) memory, any mask and score. Shares of a row
// are sizes of weights over their sum. `lse` is that of the forward call; under the sum normaliser, whose scores are its weights, the
// log of the row's sum of them. Dropout is left out.
struct AttentionStatistics {
  Tensor column_mass;  // [B, S, H] f32: sum over queries of the share that the key gets
  Tensor entropy;      // [B, T, H] f32: of each row's shares, in nats; 0 for a row without keys
  Tensor
      max_score;  // [B, T, H] f32: largest score, or size of one, that entered the normaliser; -inf for a row without keys
};
AttentionStatistics attention_statistics(const Tensor& q_BTHK, const Tensor& k_BSGK, const Tensor& lse_BTH,
                                         const AttentionTokens& queries, const AttentionTokens& keys,
                                         const AttentionOptions& options);

}  // namespace weft::ops
