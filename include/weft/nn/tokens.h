// Tokens: what a layer may use besides its input. A token sees other tokens only through these calls. So the same code of a layer also
// works in decoding, for packed documents and under diagnostics.
// B batch rows, T tokens here, D model width, H query heads, G key/value heads, K head width, V value width.
#pragma once

#include <array>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "weft/nn/key_set.h"
#include "weft/nn/observation.h"

namespace weft {

struct RecurrenceVars;  // weft/autograd/recurrence.h
namespace ops {
struct RecurrenceOptions;
}

// What is known of the tokens is in TokenTable, what layers leave for others in Sharing, what diagnostics and probes see in Observation.
class Tokens : public TokenTable, public Sharing, public Observation {
 public:
  Tokens(TokenData data, TokensOptions options = {});
  ~Tokens();
  Tokens(const Tokens&) = delete;
  Tokens& operator=(const Tokens&) = delete;

  bool is_training() const { return options_.is_training; }
  double progress() const { return options_.progress; }  // of the training: 0 at its first step, 1 at its last
  bool is_decoding() const { return options_.cache != nullptr; }
  const ContextGroup* context() const { return options_.context; }  // ranks that share these rows, or null

  // Attention over all tokens of the row: {out [B, T, H, V], lse [B, T, H]}, both differentiable. Queries see keys of their own document
  // only. `sink` [B, T, H]: score of a sink that the caller merges afterwards; only diagnostics and probes read it. `bias`: of the scores
  // of these tokens, in any dtype; decoding keeps the biases of keys beside the keys. Running sums are best kept in f64: see scan().
  std::array<Var, 2> attend(const Var& q_BTHK, const Var& k_BTGK, const Var& v_BTGV, ops::AttentionOptions options = {},
                            const Var& sink = {}, const AttentionBias& bias = {});
  // For a mixer that computes its heads or queries in several parts: keys once, then any queries of these tokens. These parts are not shown
  // to diagnostics and probes. The mixer shows all of it once, by observe() with all queries and keys; `lse` may then be undefined.
  // A key that was not chosen is hidden there by a bias of -infinity.
  KeySet keys(const Var& k_BTGK, const Var& v_BTGV, const KeyOptions& options = {});
  QuerySet queries(const Var& q_BTHK, const Var& bias = {}) const;
  QuerySet queries(const Var& q_1NHK, int64_t row, std::span<const int32_t> which) const;  // of these tokens of a row
  std::array<Var, 2> attend_part(const QuerySet& queries, const KeySet& keys, ops::AttentionOptions options);
  std::array<Var, 2> attend_part(const Var& q_BTHK, const Var& k_BTGK, const Var& v_BTGV, ops::AttentionOptions options,
                                 const AttentionBias& bias = {}) {
    return attend_part(queries(q_BTHK, bias.query),
                       keys(k_BTGK, v_BTGV, {.window = look_back(options), .bias = bias.key, .serves_one_call = true}),
                       options);
  }
  void observe(const QuerySet& queries, const KeySet& keys, const Var& lse_BTH, ops::AttentionOptions options,
               const Var& sink);
  // attend() with the first `value_width` channels of the keys as values. The cache of a decoding then holds the keys only.
  std::array<Var, 2> attend_keys(const Var& q_BTHK, const Var& k_BTGK, int64_t value_width,
                                 ops::AttentionOptions options = {});
  // For mixers that compute scores of pairs themselves: the values [B, S, ...] of these T tokens and, in decoding, of the tokens before
  // them, in the order of positions. Every rank holds a copy of every token, which attend() avoids. `window`: how many tokens up to itself a
  // token reads (0: all); decoding keeps no others. The calls below name the same window.
  std::vector<Var> gather(std::span<const Var> values, int64_t window = 0);
  Tensor gathered_positions(
      int64_t window = 0) const;  // of the S gathered tokens: position within the document, [B, S] i32
  Tensor gathered_documents(int64_t window = 0) const;  // [B, S] i32, or undefined
  // Which gathered token each of these is, row by row; empty where token t of these is number S - T + t.
  std::span<const int32_t> gathered_places(int64_t window = 0) const;
  void check_in_order(std::string_view what) const;  // Error that begins with `what`, if there are any
  // Which of the first `num_keys` gathered tokens are seen by the tokens begin .. end - 1 of these: causal, in their document, the last
  // `window` (0: all). [B, end - begin, num_keys] bool. In decoding, begin may be negative, for tokens before these. `gathered`: the window
  // of gather().
  Tensor seen(int64_t begin, int64_t end, int64_t num_keys, int64_t window = 0, int64_t gathered = 0) const;
  // Inclusive running sum over the tokens of the document: y[t] = sum of x[s], s <= t, of the last `window` of them (0: all). Only what
  // is in the window is added, and nothing subtracted. x [B, T, ...].
  Var scan(const Var& x, int64_t window = 0);
  // y[t] = x[t - n] within the document, zeros before its start; n >= 0. x [B, T, ...].
  Var shift(const Var& x, int64_t n);
  // y[t] = bias + sum over w of weight[:, w] x[t - (W - 1) + w] within the document, zeros before its start. x [B, T, ...] with D numbers
  // per token, weight [D, W], bias [D] or undefined.
  Var conv(const Var& x, const Var& weight_DW, const Var& bias_D = {});
  // The gated linear recurrence along the tokens of the document (weft/ops/recurrence.h): [B, T, H, V]. Decoding keeps the state, whose size
  // does not grow. The fields state, documents and state_document stay undefined: they are the tokens' business.
  Var recur(const RecurrenceVars& input, const ops::RecurrenceOptions& options);
  Var recur(const RecurrenceVars& input);
  // recur() in chunks of so many tokens of the document, which the state keeps or forgets as a whole (NAtS-L, 2602.03681). A token reads what its
  // own chunk has written so far. Behind a chunk the state is D + keeps (S - D), of S with the chunk's writes and D with its decay alone; `keeps`
  // [B, T, H] is read at the chunk's last token. log_decay [B, T, H]. Chunk by chunk over all tokens of the row, of which every rank
  // has a copy; decoding keeps S and D.
  Var recur_chunks(const RecurrenceVars& input, const ops::RecurrenceOptions& options, const Var& keeps_BTH,
                   int64_t chunk);
  // y[t] = exp(log_decay[t]) y[t - 1] + x[t] within the document. x [B, T, D], log_decay at most 0, [D] or [B, T, D], in f32 (f64 for f64).
  Var decay_scan(const Var& x_BTD, const Var& log_decay);
  // Sums over tokens but padding, for losses and statistics only: they see the future. [B, T, ...] -> [B, ...] or [...].
  Var sum(const Var& x, Over over = Over::batch);
  Var num_counted() { return sum(cast(Var(counted()), kF64)); }  // [] f64: how many tokens sum() adds
  // How many keys each token sees under a causal mask within its document, the last `window` of them (0: all): [B, T] f32. They are
  // counted, so a row or document may begin at any position. Padding sees none and has 1 here, so that nothing is divided by 0.
  Tensor visible_keys(int64_t window = 0) const;
  // What the weights of attend() look like: see weft/ops/attention.h. lse from attend(), undefined where it has none.
  ops::AttentionStatistics statistics(const QuerySet& queries, const KeySet& keys, const Var& lse_BTH,
                                      ops::AttentionOptions options = {});
  ops::AttentionStatistics statistics(const Var& q_BTHK, const Var& k_BTGK, const Var& lse_BTH,
                                      ops::AttentionOptions options = {}) {
    return statistics(queries(q_BTHK), keys(k_BTGK, k_BTGK, {.window = look_back(options)}), lse_BTH, options);
  }
  // What each key gets of the weights of these queries: [B, S, H] f32. No array of T x T numbers is made.
  Tensor column_mass(const QuerySet& queries, const KeySet& keys, const Var& lse_BTH,
                     ops::AttentionOptions options = {}) {
    return statistics(queries, keys, lse_BTH, std::move(options)).column_mass;
  }

  // Random numbers of this step for one purpose of the running module.
  Rng random(std::string_view purpose) const;
  Var dropout(const Var& x_BTD, double p, std::string_view purpose);  // x itself outside training

  // Called by the model with the output of each mixer. What the mixer asked other ranks for has a backward on every rank then, also where
  // nothing used it, such as keys of a head that a router did not choose.
  Var settled(const Var& y_BTD);
  // Of the cache: called by the model after all layers have seen the new tokens.
  void finish_decode_step();

 private:
  static int64_t look_back(const ops::AttentionOptions& options);
  ops::AttentionOptions completed(ops::AttentionOptions options, const QuerySet& queries, const KeySet& keys) const;
  Tensor count_keys(int64_t window) const;
  void check_tokens(std::string_view what, const Var& x) const;

  TokensOptions options_;
  std::unique_ptr<Mixing> mixing_;
  mutable std::vector<std::pair<int64_t, Tensor>> visible_keys_;  // by window, when first asked for
};

}  // namespace weft
