// Sinks: a place beside the keys that takes weight. Softmax over {sink, keys} is a merge of (out, lse) with a block of one key:
//   share = sigmoid(lse - u), out' = share out + (1 - share) v*, with u = 0, b_h, or cap(scale q . k*_h)
// A sink that is a key has its score capped as the other keys have; it has no position, so nothing that reads one touches it, and no
// norm, gate or rotation of keys does. 0 and b_h are not scores of a key, and stay as they are.
// B batch, T tokens, H heads, K and V widths.
#pragma once

#include "weft/nn/mixers/softmax.h"

namespace weft {

class Sink final : public Module {
 public:
  // is_signed: the core's weights have signs, and its lse is that of |score|; the logit counts by its size too.
  Sink(const SinkOptions& options, int64_t heads, int64_t key_width, int64_t value_width, bool is_signed, double std,
       Rng rng);
  // The score u of the place, which expands to [B, T, H]; undefined for a value that everyone gets. q as it entered the core, whose scores
  // were scale * q.k, under a soft cap of `cap` if that is not 0.
  Var scores(const Var& q_BTHK, double scale, double cap) const;
  // Once, after the last merge of key blocks.
  Var operator()(const Var& out_BTHV, const Var& lse_BTH, const Var& scores) const;

 private:
  SinkKind kind_;
  bool is_signed_;
  std::unique_ptr<Param> logit_, key_, value_;  // [H], [H, K], [H, V]; H = 1 if the heads share it
};

}  // namespace weft
