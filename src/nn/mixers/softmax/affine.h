// Affine-scaled attention (Bae et al., 2602.23057): weights a_ih P_ijh + (m_h - a_ih) / N on visible keys, so that
//   out' = a out + (m - a) S / N,  S_i the sum of the values that query i sees,  a = act(x W), m its running mean.
// With N the number of visible keys every row of weights sums to m.
// B batch, T tokens, D model width, H query heads, G value heads, V width of values.
#pragma once

#include "weft/nn/mixers/softmax.h"

namespace weft {

class Affine final : public Module {
 public:
  Affine(const AffineOptions& options, int64_t dim, int64_t heads, int64_t context, int64_t window, double std,
         Rng rng);
  Var operator()(const Var& out_BTHV, const Var& v_BTGV, const Var& x_BTD, Tokens& tokens);

 private:
  AffineOptions o_;
  int64_t heads_, context_, window_;
  Linear alpha_;
  Buffer mean_;  // [H]
};

}  // namespace weft
