// What diagnostics and probes see of a forward. Attention is shown to them where it is computed; what only a layer knows, it shows here.
// B batch rows, T tokens here, S tokens of the row, D model width, H query heads, G key/value heads, V value width.
#pragma once

#include <string_view>

#include "weft/nn/sharing.h"

namespace weft {

class Mixing;

class Observation {
 public:
  Observation(const TokenTable& table, Sharing& reports, const TokensOptions& options);
  Observation(const Observation&) = delete;
  Observation& operator=(const Observation&) = delete;

  bool is_watched() const;  // whether anybody wants to see attention; never in decoding
  // For a mixer that computes its weights itself: statistics of the queries and keys here if takes_reports(), weights [B, T, H, S] if
  // shows_weights(). Every rank calls it. A query whose max_score is -infinity sees no key: it has no say in means of weights.
  bool shows_weights() const;
  void report_attention(const ops::AttentionStatistics& statistics, const Var& v_BTGV);
  Tensor sum_of_ranks(
      const Tensor& x) const;  // over those that share these rows: of mass that other ranks' queries give the keys
  void show_weights(const Tensor& weights_BTHS, bool is_softmax) const;
  // A mixer passes the outputs of its heads through here and joins what this returns: a probe may mask heads.
  Var heads(const Var& y_BTHV) const;
  // The embedding and later states of the residual stream, for a probe; it may change the first.
  Var embedding(const Var& x_BTD) const;
  void show_state(std::string_view name, const Var& x_BTD) const;
  bool shows_states() const;  // whether a probe sees them

 protected:
  void look_through(Mixing& mixing) { mixing_ = &mixing; }

 private:
  const TokenTable& table_;
  Sharing& reports_;
  bool is_decoding_;
  const Probe* probe_;        // null in decoding
  Mixing* mixing_ = nullptr;  // where documents of which other ranks have a part are seen whole

  void report_documents(const Tensor& mass_BTH, const Tensor& has_keys_BTH, const Var& v_BTGV);
};

}  // namespace weft
