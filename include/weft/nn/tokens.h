// Tokens: what a layer may use besides its input. A token sees other tokens only through these calls. So the same code of a layer also
// works in decoding, for packed documents and under diagnostics.
// B batch rows, T tokens here, D model width, H query heads, G key/value heads, K head width, V value width.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "weft/autograd/functions.h"
#include "weft/nn/module.h"
#include "weft/nn/token_table.h"

namespace weft {

class Tokens : public TokenTable {
 public:
  Tokens(TokenData data, TokensOptions options = {});
  ~Tokens();
  Tokens(const Tokens&) = delete;
  Tokens& operator=(const Tokens&) = delete;

  bool is_training() const { return options_.is_training; }
  bool is_decoding() const { return options_.cache != nullptr; }

  // Attention over all tokens of the row: {out [B, T, H, V], lse [B, T, H]}, both differentiable. Queries see keys of their own document
  // only. `sink` [B, T, H]: score of a sink that the caller merges afterwards; only diagnostics and probes read it. `bias`: of the scores
  // of these tokens; decoding keeps the biases of keys beside the keys.
  std::array<Var, 2> attend(const Var& q_BTHK, const Var& k_BTGK, const Var& v_BTGV, ops::AttentionOptions options = {},
                            const Var& sink = {}, const AttentionBias& bias = {});
  // For a mixer that computes its heads in several parts. attend_part() is attend() without reports to diagnostics and probes. The mixer
  // reports once, by observe() with the queries, keys and values of all heads; its `lse` may then be undefined.
  std::array<Var, 2> attend_part(const Var& q_BTHK, const Var& k_BTGK, const Var& v_BTGV, ops::AttentionOptions options,
                                 const AttentionBias& bias = {});
  void observe(const Var& q_BTHK, const Var& k_BTGK, const Var& v_BTGV, Var lse_BTH, ops::AttentionOptions options,
               const Var& sink);
  // For a mixer that computes its weights itself: statistics over all T keys if takes_reports(), weights [B, T, H, T] if shows_weights().
  bool shows_weights() const;
  void report_attention(const ops::AttentionStatistics& statistics, const Var& v_BTGV);
  void show_weights(const Tensor& weights_BTHT, bool is_softmax) const;
  // A mixer passes the outputs of its heads through here and joins what this returns: a probe may mask heads.
  Var heads(const Var& y_BTHV) const;
  // The embedding and later states of the residual stream, for a probe; it may change the first.
  Var embedding(const Var& x_BTD) const;
  void show_state(std::string_view name, const Var& x_BTD) const;
  // attend() with the first `value_width` channels of the keys as values. The cache of a decoding then holds the keys only.
  std::array<Var, 2> attend_keys(const Var& q_BTHK, const Var& k_BTGK, int64_t value_width,
                                 ops::AttentionOptions options = {});
  // attend() of the queries q [1, n, H, K] of the tokens `which` of one batch row, on its k and v. Not in decoding, no dropout.
  std::array<Var, 2> attend_some(const Var& q_1NHK, const Var& k_1TGK, const Var& v_1TGV, int64_t row,
                                 std::span<const int32_t> which, ops::AttentionOptions options = {});
  // For mixers that compute scores of pairs themselves: the values [B, S, ...] of these T tokens and, in decoding, of all tokens before
  // them, in the order of positions. Every rank holds a copy of every token, which attend() avoids.
  std::vector<Var> gather(std::span<const Var> values);
  Tensor gathered_positions() const;  // of the S gathered tokens: position within the document, [B, S] i32
  // Which gathered token each of these is, row by row; empty where token t of these is number S - T + t.
  std::span<const int32_t> gathered_places() const;
  // Which of the first `num_keys` gathered tokens are seen by the tokens begin .. end - 1 of these: causal, in their document, the last
  // `window` (0: all). [B, end - begin, num_keys] bool. In decoding, begin may be negative, for tokens before these.
  Tensor seen(int64_t begin, int64_t end, int64_t num_keys, int64_t window = 0) const;
  // Inclusive running sum over the tokens of the document: y[t] = sum of x[s], s <= t, of the last `window` of them (0: all). Only what
  // is in the window is added, and nothing subtracted. x [B, T, ...]. In decoding one document per row.
  Var scan(const Var& x, int64_t window = 0);
  // y[t] = x[t - n] within the document, zeros before its start; n >= 0. x [B, T, ...]. In decoding one document per row.
  Var shift(const Var& x, int64_t n);
  // Sum over all tokens of the global batch but padding, for losses and statistics only: it sees the future. [B, T, ...] -> [...].
  Var sum(const Var& x);
  // How many keys each token sees under a causal mask within its document, the last `window` of them (0: all): [B, T] f32. They are
  // counted, so a row or document may begin at any position. Padding sees none and has 1 here, so that nothing is divided by 0.
  Tensor visible_keys(int64_t window = 0) const;
  // What the weights of attend() look like: see weft/ops/attention.h. lse from attend(), undefined where it has none.
  ops::AttentionStatistics statistics(const Var& q_BTHK, const Var& k_BTGK, const Var& lse_BTH,
                                      ops::AttentionOptions options = {});

  // Random numbers of this step for one purpose of the running module.
  Rng random(std::string_view purpose) const;
  Var dropout(const Var& x_BTD, double p, std::string_view purpose);  // x itself outside training

  // Values of an earlier layer or of the model, by name.
  void share(std::string_view name, const Var& value);
  const Var& shared(std::string_view name) const;  // Error that lists the names if it is missing
  bool has_shared(std::string_view name) const;

  // Auxiliary losses (weighted, added to the model's) and statistics; nothing is added when a forward is recomputed.
  struct Loss {
    std::string name;  // path of the module that added it, and which: "model.layers.0.mixer.router.balance_loss"
    Var value;         // scalar
    double weight;
  };
  struct Report {
    std::string name;  // path of the module that reported, and what
    double sum, count;
    bool is_max = false;  // the largest `sum` instead of sum / count
  };
  void add_loss(std::string_view name, const Var& value, double weight);
  // Adds to a Buffer's mean: in training, once per layer and micro-batch. `sum` has the buffer's shape, `count` is one number.
  void accumulate(Buffer& buffer, const Var& sum, const Var& count);
  // Whether report() is heard: not outside diagnostics, and not when a forward is run again.
  bool takes_reports() const;
  void report(std::string_view name, double sum, double count);  // nothing where nothing was counted
  void report_max(std::string_view name, double value);
  // Mean of x [B, T, ..., N] over all but the last dimension, without padding; one report per index of that: name/0, name/1, ...
  void report_means(std::string_view name, const Var& x);
  const std::vector<Loss>& losses() const { return losses_; }
  const std::vector<Report>& reports() const { return reports_; }

  // f(x) by recompute(): what f shares, takes from shared() or adds as a loss is carried in and out, with its gradients.
  Var recomputed(const std::function<Var(const Var&)>& f, const Var& x_BTD);

  // Of the cache: called by the model after all layers have seen the new tokens.
  void finish_decode_step();

 private:
  using Shared = std::vector<std::pair<std::string, Var>>;
  std::array<Var, 2> decode_attend(const Var& q_BTHK, const Var& k_BTGK, const Var& v_BTGV, int64_t value_width,
                                   ops::AttentionOptions options, AttentionBias bias = {});
  ops::AttentionTokens here(ops::AttentionOptions& options) const;
  Var merged_lse(const Var& q, const Var& k, const Var& lse, const Var& sink,
                 const ops::AttentionOptions& options) const;
  Tensor weights(const Var& q, const Var& k, const Var& lse, const Var& merged,
                 const ops::AttentionOptions& options) const;
  void check_recorded(std::string_view what, std::string_view name) const;
  const Runs* order_here() const;  // null in decoding too
  Tensor gathered(const Tensor& of_these) const;
  Tensor count_keys(int64_t window) const;
  Tensor count_cached_keys(int64_t window) const;

  TokensOptions options_;
  mutable std::vector<int32_t> places_;                           // when first asked for
  mutable std::vector<std::pair<int64_t, Tensor>> visible_keys_;  // by window, when first asked for
  Shared shared_;
  std::vector<Loss> losses_;
  std::vector<Report> reports_;
  size_t next_slot_ = 0;      // of the cache
  int recomputed_depth_ = 0;  // inside how many recomputed()
};

}  // namespace weft
