// Attention over a sequence whose tokens are spread over ranks: ops::attend() of a rank's queries over the keys of all ranks. Every scheme is a
// schedule of calls of the same block core, with a running state that is f32 (f64 for f64) and rounded once. Positions are data, so any layout
// of tokens serves. B batch, n tokens of this rank, H query heads, G key/value heads, K key width, V value width, P ranks.
#pragma once

#include "weft/comm/communicator.h"
#include "weft/comm/layout.h"
#include "weft/ops/attention.h"

namespace weft::dist {

// ring        (Liu et al., 2310.01889) keys travel from rank r to r + 1, and the next ones are on their way during the work: memory of two ranks'
//             keys. In backward the sums of their gradients travel one hop behind them, and go home at once after the last hop with work
// all_gather  (Llama 3, 2407.21783) every rank holds the keys of all ranks: memory of P ranks' keys, no steps that wait for the slowest rank
enum class Scheme { ring, all_gather };
std::string_view to_string(Scheme scheme);

// Every rank calls it, with the same options but for the biases of its own tokens, and with the same plan: plan_hops() where the mask is causal,
// a window or documents; HopPlan::every_hop() for any mask. What has no work by plan is left out. With keys go their values, positions,
// documents and biases.
ops::Attention context_attention(Communicator& comm, Scheme scheme, const Tensor& q_BnHK, const Tensor& k_BnGK,
                                 const Tensor& v_BnGV, const ops::AttentionTokens& here,
                                 const ops::AttentionOptions& options, const HopPlan& plan);

// Gradients in the inputs' dtypes; their sums over ranks are f32 (f64 for f64, and for biases).
ops::AttentionGrads context_attention_backward(Communicator& comm, Scheme scheme, const Tensor& dout_BnHV,
                                               const Tensor& dlse_BnH, const Tensor& q_BnHK, const Tensor& k_BnGK,
                                               const Tensor& v_BnGV, const ops::Attention& result,
                                               const ops::AttentionTokens& here, const ops::AttentionOptions& options,
                                               const HopPlan& plan);

}  // namespace weft::dist
