// Mixing over depth: for each token a weighted sum of N sources, with weights made from the sources themselves (Attention Residuals,
// 2603.15031). One reading of the sources forward and one backward, instead of several per source.
//   s_i = scale_i (direction . v_i),  a = softmax(s) or sigmoid(s) each,  out = sum_i a_i v_i
#pragma once

#include <span>
#include <vector>

#include "weft/core/tensor.h"

namespace weft::ops {

struct DepthMix {
  Tensor out;      // [..., D] in the dtype of the sources
  Tensor weights;  // [..., N] f32 (f64 for f64)
};
// values: N row-major tensors [..., D] of one shape and dtype; scales: N of [..., 1] f32 (f64), or none at all (1);
// direction [D] f32 (f64).
DepthMix depth_mix(std::span<const Tensor> values, std::span<const Tensor> scales, const Tensor& direction,
                   bool is_sigmoid);

struct DepthMixGrads {
  std::vector<Tensor> dvalues, dscales;  // dscales: empty without scales
  Tensor ddirection;
};
DepthMixGrads depth_mix_backward(const Tensor& dout, const Tensor& weights, std::span<const Tensor> values,
                                 std::span<const Tensor> scales, const Tensor& direction, bool is_sigmoid);

}  // namespace weft::ops
