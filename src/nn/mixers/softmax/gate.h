// Gates (Qiu et al., 2505.06708): y * act(x W) or y + act(x W).
// B batch, T tokens, D model width, H heads of what is gated, C channels of a head.
#pragma once

#include "weft/nn/mixers/softmax.h"

namespace weft {

class Gate final : public Module {
 public:
  // What is gated has `heads` heads of `width` channels; 1 head for the layer's output.
  Gate(const GateOptions& options, int64_t dim, int64_t heads, int64_t width, double std, Rng rng);
  Var operator()(const Var& y_BTHC, const Var& x_BTD, Tokens& tokens) const;

 private:
  Var activate(const Var& x) const;

  GateOptions o_;
  int64_t heads_, width_;  // of the gate: width 1 per head
  std::unique_ptr<Linear> project_;
  std::unique_ptr<Param> constant_;  // [heads, width] when the input is not read
};

}  // namespace weft
