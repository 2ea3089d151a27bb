// Attention of a mixer with a mask and a score of your own: include this in a program compiled for the CPU it runs on (-march=native).
//   struct Dilated { ... };                                               // every second key; contract in weft/ops/attention_core.h
//   auto [out, lse] = attend_with(Dilated{}, ops::PlainScore{}, tokens, q, k, v);
// A query sees what the mask of `options` shows (causal, in its own document) and your mask keeps. So positions, documents, decoding and
// gradients work as in Tokens::attend(). Diagnostics and probes do not see the weights of such a call.
#pragma once

#include "weft/autograd/attend_with.h"
#include "weft/nn/mixers/softmax.h"
#include "weft/nn/tokens.h"

namespace weft {
namespace {

template <class Mask, class Score, class Normaliser = ops::SoftmaxNormaliser>
std::array<Var, 2> attend_with(const Mask& mask, const Score& score, Tokens& tokens, const Var& q_BTHK,
                               const Var& k_BTGK, const Var& v_BTGV, ops::AttentionOptions options = {},
                               Normaliser normaliser = {}) {
  const ops::AttentionScore& unread = options.score;
  WEFT_CHECK(
      unread.softcap == 0 && !unread.alibi_slopes.defined() && !unread.query_bias.defined() &&
          !unread.key_bias.defined() && unread.shift == 0,
      "attend_with: options give a soft cap, slopes, biases or a shift, which a score functor takes the place of",
      "let the functor compute them");
  const QuerySet queries = tokens.queries(q_BTHK);
  const KeySet keys = tokens.keys(k_BTGK, v_BTGV);
  options.mask.same_document = keys.tokens.documents.defined();
  options.first_row = queries.first_row;
  if (!tokens.is_training() || tokens.is_decoding()) options.dropout = 0;
  return attend_with(ops::And{ops::StandardMask(options.mask), mask}, score, normaliser, queries.q, keys.k, keys.v,
                     queries.tokens, keys.tokens, options);
}

// As the attention of a softmax mixer: SoftmaxOptions{.heads = 8, .own_attention = functor_attention(Dilated{})}.
template <class Mask, class Score = ops::PlainScore>
OwnAttention functor_attention(const Mask& mask, const Score& score = {}) {
  return [mask, score](Tokens& tokens, const Var& q, const Var& k, const Var& v, const ops::AttentionOptions& options) {
    return attend_with(mask, score, tokens, q, k, v, options);
  };
}

}  // namespace
}  // namespace weft
