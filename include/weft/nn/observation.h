// What diagnostics and probes see of a forward. Attention is shown to them where it is computed; what only a layer knows, it shows here.
// B batch rows, T tokens, D model width, H query heads, G key/value heads, V value width.
#pragma once

#include <string_view>

#include "weft/nn/sharing.h"

namespace weft {

class Observation {
 public:
  Observation(const TokenTable& table, Sharing& reports, const TokensOptions& options);
  Observation(const Observation&) = delete;
  Observation& operator=(const Observation&) = delete;

  // For a mixer that computes its weights itself: statistics over all T keys if takes_reports(), weights [B, T, H, T] if shows_weights().
  bool shows_weights() const;
  void report_attention(const ops::AttentionStatistics& statistics, const Var& v_BTGV);
  void show_weights(const Tensor& weights_BTHT, bool is_softmax) const;
  // A mixer passes the outputs of its heads through here and joins what this returns: a probe may mask heads.
  Var heads(const Var& y_BTHV) const;
  // The embedding and later states of the residual stream, for a probe; it may change the first.
  Var embedding(const Var& x_BTD) const;
  void show_state(std::string_view name, const Var& x_BTD) const;

 protected:
  bool is_watched() const;  // whether anybody wants to see attention

 private:
  const TokenTable& table_;
  Sharing& reports_;
  bool is_decoding_;
  const Probe* probe_;  // null in decoding
};

}  // namespace weft
