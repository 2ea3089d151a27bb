// Attention over a sequence whose tokens are spread over ranks: ops::attend() of a rank's queries over the keys of all ranks. Every scheme is a
// schedule of calls of the same block core, with a running state that is f32 (f64 for f64) and rounded once. Positions are data, so any layout
// of tokens serves. B batch, n tokens of this rank, N = P n, H query heads, G key/value heads, K key width, V value width, P ranks, b bytes of
// an element.
#pragma once

#include <span>

#include "weft/comm/communicator.h"
#include "weft/comm/layout.h"
#include "weft/ops/attention.h"

namespace weft::dist {

// What a rank sends for one call, where every rank sees every other one (less where the plan has no work), beside a few bytes per token for
// positions and documents. M = n G (K + V) b is a rank's keys and values, A = n G (K + V) 4 the sums of their gradients.
//
// Of a packet only the tokens travel that the plan needs behind: of a window that ends in the neighbour's tokens, its last keys.
//
// ring                (Liu et al., 2310.01889) Keys travel from rank r to r + 1, and the next ones are on their way during the work: memory of
//                     two ranks' keys. In backward the sums of their gradients travel one hop behind them, and go home at once after the
//                     last hop with work. Forward (P - 1) M, backward (P - 1) (M + A). Where that is less, as with G = H, queries travel in
//                     backward, with dout, lse, delta and the sums of their gradients (BurstAttention, 2403.09347).
// bidirectional_ring  Keys travel both ways at once, each half of the way round: the bytes of a ring, half of them on each direction of a
//                     link. Memory of four ranks' keys.
// double_ring         (2403.09347, for ranks on several nodes) Keys travel within the node, and those with which a round begins also to the
//                     next node, which needs them a round later: of the bytes of a ring, only (P / node - 1) M leave the node, from every
//                     rank of it. Memory of three ranks' keys.
// all_gather          (Llama 3, 2407.21783) Every rank sends its keys to all that need them, at once: no step waits for the slowest rank.
//                     Memory of P ranks' keys, of heads_at_once heads where that is set: those of the next heads come during the work of
//                     these, so two chunks. Bytes of a ring.
// ulysses             (DeepSpeed, 2309.14509) Heads for tokens: each rank has all tokens of H / P query heads during the work, so any mask is
//                     balanced. P must divide H; a key/value head goes to each rank whose query heads read it. Forward
//                     (P - 1) / P n b (H K + H V + kP (K + V)) with k = max(G / P, 1), backward about twice that. Memory: as much as q, k, v and out.
// usp                 (2405.07719) ulysses inside groups of `group` ranks, the scheme ring among the ranks of one place in their groups:
//                     group must divide H. Bytes of ulysses over `group` ranks, and of a ring of P / group ranks.
enum class Scheme { ring, bidirectional_ring, double_ring, all_gather, ulysses, usp };
std::string_view to_string(Scheme scheme);
std::span<const Scheme> all_schemes();

// What travels in the backward of a ring: whatever has fewer bytes, or what is asked for.
enum class Travels { automatic, keys, queries };

struct SchemeOptions {
  int group = 0;              // usp: ranks that exchange heads, rank r in group r / group
  int node = 0;               // double_ring: ranks of a node, rank r on node r / node
  int64_t heads_at_once = 0;  // all_gather: key/value heads; 0: all
  Travels backward = Travels::automatic;
};

// The ranks of a sequence. A Communicator is enough for schemes that need no options.
struct ContextRanks {
  Communicator& all;
  SchemeOptions options = {};

  ContextRanks(Communicator& ranks, SchemeOptions scheme_options = {}) : all(ranks), options(scheme_options) {}
};

// Every rank calls it, with the same options but for the biases of its own tokens, and with the same plan: plan_hops() of the mask, or
// HopPlan::every_hop(). What has no work by plan is left out, and keys go only where they have work or pass through. With keys go their values,
// positions, documents and biases; values that are the first channels of the keys in memory, as those of a latent (MLA in its absorbed form), do
// not go twice, nor do their gradients. With one rank it is ops::attend().
ops::Attention context_attention(const ContextRanks& ranks, Scheme scheme, const Tensor& q_BnHK, const Tensor& k_BnGK,
                                 const Tensor& v_BnGV, const ops::AttentionTokens& here,
                                 const ops::AttentionOptions& options, const HopPlan& plan);

// Gradients in the inputs' dtypes; their sums over ranks are f32 (f64 for f64, and for biases). Where values are channels of the keys, dk is
// that of both, and dv is undefined.
ops::AttentionGrads context_attention_backward(const ContextRanks& ranks, Scheme scheme, const Tensor& dout_BnHV,
                                               const Tensor& dlse_BnH, const Tensor& q_BnHK, const Tensor& k_BnGK,
                                               const Tensor& v_BnGV, const ops::Attention& result,
                                               const ops::AttentionTokens& here, const ops::AttentionOptions& options,
                                               const HopPlan& plan);

// ops::attention_statistics() over the keys of all ranks: column mass of this rank's keys over the queries of all, entropy and largest score of
// this rank's queries. `lse` is that of context_attention(); under the sum normaliser as ops::attention_statistics() has it.
ops::AttentionStatistics context_statistics(const ContextRanks& ranks, Scheme scheme, const Tensor& q_BnHK,
                                            const Tensor& k_BnGK, const Tensor& lse_BnH,
                                            const ops::AttentionTokens& here, const ops::AttentionOptions& options,
                                            const HopPlan& plan);

// How the results of ranks meet in context_decode(), with 4 B T H (V + 1) bytes of a result:
//   all_gather  every rank gets those of all and merges them in the order of ranks: one message to each, P results of memory
//   tree        (Tree Attention, 2408.04093) they are merged in pairs up a binary tree, and the last one is broadcast: two results of memory,
//               2 log2 P messages one after another
// automatic is all_gather up to 16 ranks.
enum class DecodeMerge { automatic, all_gather, tree };

// Few queries that every rank has, over keys that are spread in any way: decoding from a cache over ranks. Every rank attends to its own keys,
// and their results are merged; every rank has the same bits. Ranks without keys come too.
ops::Attention context_decode(Communicator& comm, const Tensor& q_BTHK, const Tensor& k_BSGK, const Tensor& v_BSGV,
                              const ops::AttentionTokens& queries, const ops::AttentionTokens& keys,
                              const ops::AttentionOptions& options, DecodeMerge merge = DecodeMerge::automatic);

}  // namespace weft::dist
