// The gated linear recurrence: one core for linear attention of every kind. Per head, with the state S [K, V] and decay a_t = exp(g_t):
//   S'_t = a_t S_{t-1}                      the decay: one number, or one per key channel (rows of S) or value channel (columns)
//   u_t  = v_t                              plain write
//        | beta_t (v_t - k_t S'_t)          delta rule: what the state answers to k_t is replaced
//   S_t  = S'_t + k_t^T u_t
//   o_t  = scale q_t S_t                    read after write
// Computed in chunks of tokens (Yang et al., 2406.06484; 2312.06635). The chunk length changes results by rounding only.
// On a GPU a decay that is above 0 or not finite makes what depends on it NaN; on the CPU it is an Error.
#pragma once

#include <optional>

#include "weft/core/tensor.h"

namespace weft::ops {

enum class DecaySide { key, value };

struct RecurrenceOptions {
  double scale = 1;                 // of what is read
  DecaySide side = DecaySide::key;  // of a decay per channel; value: without beta
  // Tokens, 1 to 1024; chosen if it is not given. Kernels take at most as many as they can hold: 64 on a GPU; on the CPU 128, and 16 with a
  // decay per channel.
  std::optional<int64_t> chunk = {};
  bool checks_decay = true;  // false: log_decay is known to be finite and at most 0
};

// f32, bf16 or f64; "wide" is f32, or f64 for f64. G divides H: head h reads and writes with the q and k of head h / (H / G).
struct RecurrenceInput {
  Tensor q_BTGK, k_BTGK, v_BTHV;
  Tensor log_decay =
      {};  // wide, at most 0 and finite: [H] | [B, T, H] | [B, T, H, K] | [B, T, H, V] for side value. Undefined: 0
  Tensor beta = {};  // wide [B, T, H]: the delta rule. Undefined: plain
  // bool [B, T, H]: which tokens write. Another token has u_t = 0: the state decays and is read, nothing is added to it.
  Tensor writes = {};
  Tensor state = {};  // wide [B, H, K, V]: before the first token. Undefined: zeros
  // i32 [B, T]: where the number changes the state begins with zeros. A negative number is padding: such a token leaves the state alone,
  // its output and its gradients are 0, and its q, k, v, beta and dout have no effect, whatever they are.
  Tensor documents = {};
  Tensor state_document =
      {};  // i32 [B]: which document `state` is of. Undefined: that of the first token that is no padding
};

struct Recurrence {
  Tensor out;    // [B, T, H, V] in the dtype of v
  Tensor state;  // wide [B, H, K, V]: after the last token
};
Recurrence recur(const RecurrenceInput& input, const RecurrenceOptions& options = {});
Tensor recur_state(const RecurrenceInput& input,
                   const RecurrenceOptions& options = {});  // only the state; q is not read

// Gradients of the inputs, in their dtypes. Either of dout and dstate may be undefined, for zeros. States are computed again, one per chunk.
// What `wants` does not name stays undefined, and its work is left out where it can be.
struct RecurrenceGrads {
  Tensor dq = {}, dk = {}, dv = {}, dlog_decay = {}, dbeta = {}, dstate = {};
};
struct RecurrenceWants {
  bool q = true, k = true, v = true, log_decay = true, beta = true, state = true;
};
RecurrenceGrads recur_backward(const Tensor& dout_BTHV, const Tensor& dstate, const RecurrenceInput& input,
                               const RecurrenceOptions& options = {}, const RecurrenceWants& wants = {});

// Only dstate, for which no state is needed: input.state is not read.
Tensor recur_state_gradient(const Tensor& dout_BTHV, const Tensor& dstate, const RecurrenceInput& input,
                            const RecurrenceOptions& options = {});

// Two passes, where the state that comes in is known later, such as that of another rank. The first keeps states of chunks as they are without
// it, the second corrects them: both together are as much work as one pass. Not for the delta rule.
struct RecurrenceStates {
  Tensor states;  // wide [B, H, n + 1, K, V]: before each of n chunks and behind the last token, from zeros
  Tensor
      decays;  // wide [B, H, n + 1, K], with side value [.., V]: what is left there of a state before the first token
};
RecurrenceStates recur_states(const RecurrenceInput& input,
                              const RecurrenceOptions& options = {});  // input.state is not read

// Into tensors that exist, such as some heads of larger ones: of the shapes and dtypes that recur() and recur_backward() return, with any
// strides but for a contiguous width. `kept`: of these inputs, or null. Returns the state behind the last token.
Tensor recur_into(Tensor& out, const RecurrenceInput& input, const RecurrenceOptions& options,
                  const RecurrenceStates* kept = nullptr);
// Wanted gradients that are undefined, and always dstate and that of a decay per head, are made.
void recur_backward_into(RecurrenceGrads& grads, const Tensor& dout_BTHV, const Tensor& dstate,
                         const RecurrenceInput& input, const RecurrenceOptions& options,
                         const RecurrenceWants& wants = {}, const RecurrenceStates* kept = nullptr);

// The document of the state after these tokens, i32 [B]: the state_document of the tokens that follow. `before` as state_document. Without
// any token but padding and without `before`: -1.
Tensor state_documents(const Tensor& documents_BT, const Tensor& before = {});

// The element-wise recurrence y_t = exp(g_t) y_{t-1} + x_t (HGRN, exponential moving averages).
struct DecayScanInput {
  Tensor x_BTD;           // f32, bf16 or f64
  Tensor log_decay;       // wide, at most 0 and finite: [D] | [B, T, D]
  Tensor state = {};      // wide [B, D]: y before the first token. Undefined: zeros
  Tensor documents = {};  // as above
  Tensor state_document = {};
};
struct DecayScan {
  Tensor y;      // [B, T, D] in the dtype of x
  Tensor state;  // wide [B, D]: after the last token
};
DecayScan decay_scan(const DecayScanInput& input);
struct DecayScanGrads {
  Tensor dx, dlog_decay, dstate;
};
DecayScanGrads decay_scan_backward(const Tensor& dy_BTD, const Tensor& dstate, const DecayScanInput& input);

}  // namespace weft::ops
