// Ring attention (Liu et al., 2310.01889) for every normaliser, mask and layout: at hop s a rank has the keys and values of rank (r - s) mod P and merges
// them into its running state, which is f32 (f64 for f64) and rounded once. Positions are data, so any layout of tokens serves.
// B batch, n tokens of this rank, H query heads, G key/value heads, K key width, V value width.
#pragma once

#include "weft/comm/communicator.h"
#include "weft/comm/layout.h"
#include "weft/ops/attention.h"

namespace weft::dist {

// ops::attend() of the tokens `here` over the keys of all ranks. Every rank calls it, with the same options but for the biases of its own
// tokens, and with the same plan: plan_hops() where the mask is causal, a window or documents; HopPlan::every_hop() for any mask. Keys travel with
// their values, positions, documents and biases; the next hop's are on their way during the work of this one.
ops::Attention ring_attention(Communicator& comm, const Tensor& q_BnHK, const Tensor& k_BnGK, const Tensor& v_BnGV,
                              const ops::AttentionTokens& here, const ops::AttentionOptions& options,
                              const HopPlan& plan);

// Gradients in the inputs' dtypes. Keys travel once more, and the sums of their gradients, in f32 (f64 for f64, and for biases), one hop behind
// them; after the last hop with work they go home at once.
ops::AttentionGrads ring_attention_backward(Communicator& comm, const Tensor& dout_BnHV, const Tensor& dlse_BnH,
                                            const Tensor& q_BnHK, const Tensor& k_BnGK, const Tensor& v_BnGV,
                                            const ops::Attention& result, const ops::AttentionTokens& here,
                                            const ops::AttentionOptions& options, const HopPlan& plan);

}  // namespace weft::dist
