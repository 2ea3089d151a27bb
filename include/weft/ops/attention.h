// The blockwise softmax core: O(T) memory, forward and backward, over any sets of query and key positions.
// Positions and document ids are inputs. Masks, score modifiers and dropout read them, and never use the place of a token in a tensor.
// B batch, T queries, S keys, H query heads, G key/value heads (H a multiple of G), K key width, V value width.
#pragma once

#include <cstdint>
#include <memory>

#include "weft/core/rng.h"
#include "weft/core/tensor.h"

namespace weft::ops {

// Which keys a query sees: ((is_causal and window) or prefix) and same_document, of those that are set.
struct AttentionMask {
  bool is_causal = true;       // key position <= query position
  int64_t window = 0;          // if > 0: 0 <= query - key position < window
  int64_t prefix = 0;          // if > 0: every query sees the keys at positions < prefix (prefix language model)
  bool same_document = false;  // needs document ids; a token with an id < 0 sees nothing, and nothing sees it
};

// The weight of a score s under the sum normaliser: s, sigmoid(s), max(s, 0), elu(s) + 1, or 1 + s + s^2 / 2.
enum class ScoreActivation : uint8_t { none, sigmoid, relu, elu1, taylor2 };

// What happens to scale * q.k before the normaliser, in this order. Biases are numbers per token and head, in f32 or f64, on the device of
// q: s += query_bias[t, h] + key_bias[s, head]. The error of this sum is relative to the sum, even if each bias is huge. So give running
// sums of log gates in f64. A key bias of -inf hides the key from softmax.
struct AttentionScore {
  double softcap = 0;        // if > 0: cap * tanh(s / cap)
  Tensor alibi_slopes = {};  // [H] f32 on the device of q, or undefined: s -= slope_h * (query - key position)
  Tensor query_bias = {};    // [B, T, H], or undefined
  Tensor key_bias = {};      // [B, S, G] or [B, S, H], or undefined; of a piece of the keys: of that piece
  double shift = 0;          // s + shift; sum only
  ScoreActivation activation = ScoreActivation::none;  // sum only
};

enum class Normaliser {
  softmax,         // state (out, lse)
  sum,             // weights are the scores themselves, state is the plain sum; no statistic
  signed_softmax,  // weights sign(s) exp(|s| - lse), lse of |s|; state (out, lse). The sign of 0 is 1
};

// Whose kernels a call runs. Error if kernels are asked for by name and cannot do the call.
//   weft    this framework's: every device, dtype and functor
//   wgmma   this framework's for GPUs of compute capability 9.0 (Hopper): bf16, keys and values at most 128 wide, rows of whole 16 bytes,
//           no biases
//   cudnn   cuDNN's (GPUs, bf16), in attend() and attend_backward() only: softmax of plain scores under a causal mask or a window. Queries
//           and keys must have the same tensor of positions and be are_consecutive, and lse has no gradient
// automatic is weft: the others have not been measured to be faster (docs/gpu.md).
enum class AttentionBackend : uint8_t { automatic, weft, cudnn, wgmma };

struct AttentionOptions {
  double scale = 0;  // 0: 1 / sqrt(K)
  AttentionMask mask = {};
  AttentionScore score = {};
  Normaliser normaliser = Normaliser::softmax;
  double dropout = 0;  // probability; what is dropped depends only on (rng, query position, key position, head, row)
  Rng dropout_rng = Rng(0);
  int64_t first_row = 0;   // global index of batch row 0, for dropout
  int64_t first_head = 0;  // global index of query head 0, for dropout: where a call has some of the heads
  AttentionBackend backend = AttentionBackend::automatic;
};

class AttentionPlans;  // see with_plans()

// Positions [B, T] or [B, S] i32; documents the same shape, or undefined.
struct AttentionTokens {
  Tensor positions = {}, documents = {};
  bool are_consecutive = false;                // the caller promises: token t of a row has the row's first position + t
  std::shared_ptr<AttentionPlans> plans = {};  // empty: each call makes its own
};

// These tokens with a place where calls keep what they have in common: which parts of which tiles each mask shows. Where queries and keys
// are these tokens, kernels for the CPU make it when they first need it, and again if positions or documents were written since. One
// thread at a time calls attention with them. Results do not depend on it.
AttentionTokens with_plans(AttentionTokens tokens);

// The result over the keys seen so far, which more keys can be merged into. Softmax: out [B, T, H, V] f32 (f64 for f64), normalised, and
// lse [B, T, H], on the CPU f64 if it was cast so: then calls do not round it. Without a key out = 0 and lse = -inf. Sum: out only.
struct AttentionState {
  Tensor out = {}, lse = {};
};

// The empty state for q. Pass it through any number of attend_block() calls, each with other keys.
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

// delta = dout . out - dlse per (query, head), f32. Compute it once, also where keys come in several sets. dlse may be undefined.
Tensor attention_delta(const Tensor& dout_BTHV, const Tensor& out_BTHV, const Tensor& dlse_BTH,
                       const AttentionOptions& options);
// Adds what these keys contribute to dq, dk, dv (f32 or f64 of the inputs' shapes; begin with zeros), and to the gradients of biases that
// are defined (f64, of the biases' shapes). lse and delta are those over all keys of the row, so the same call serves each of several sets
// of keys.
struct AttentionGrads {
  Tensor dq, dk, dv;
  Tensor dquery_bias = {}, dkey_bias = {};
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

// Statistics of the weights of a call, for any mask and score. They take one more pass over queries and keys, and O(T + S) memory. The
// share of a key is the size of its weight over the sum of the sizes in the row. `lse` is that of the forward call; under the sum
// normaliser it is the log of that sum. Dropout is left out.
struct AttentionStatistics {
  Tensor column_mass;  // [B, S, H] f32: sum over queries of the share that the key gets
  Tensor entropy;      // [B, T, H] f32: of the shares of a query, in nats; 0 without keys
  Tensor max_score;    // [B, T, H] f32: largest score of a query (|score| unless softmax); -inf without keys
};
AttentionStatistics attention_statistics(const Tensor& q_BTHK, const Tensor& k_BSGK, const Tensor& lse_BTH,
                                         const AttentionTokens& queries, const AttentionTokens& keys,
                                         const AttentionOptions& options);

}  // namespace weft::ops
