// Mixing over depth: for each token weighted sums of N sources, with weights made from the sources themselves (Attention Residuals,
// 2603.15031). One reading of the sources forward and one backward, for all S queries together.
//   s_qi = scale_i (direction_q . v_i),  a_q = softmax(s_q) or sigmoid(s_q) each,  out_q = sum_i a_qi v_i
#pragma once

#include <span>
#include <vector>

#include "weft/core/tensor.h"

namespace weft::ops {

struct DepthMixOptions {
  bool is_sigmoid = false;
  Tensor first_scores = {};  // [..., S] f32 (f64): of source 0 instead of its own; forward only
  Tensor totals = {};        // [..., S], backward: sum_j a_j da_j where the softmax ran over more sources than these
};
struct DepthMix {
  std::vector<Tensor> outs = {};  // S of [..., D] in the dtype of the sources
  Tensor weights = {};            // [..., S, N] f32 (f64 for f64)
  Tensor lse = {};                // [..., S], log of the sum of exp(s); undefined for sigmoid
};
// values: N row-major tensors [..., D] of one shape and dtype; scales: N of [..., 1] f32 (f64), or none at all (1);
// directions [S, D] f32 (f64).
DepthMix depth_mix(std::span<const Tensor> values, std::span<const Tensor> scales, const Tensor& directions,
                   const DepthMixOptions& options = {});

struct DepthMixGrads {
  std::vector<Tensor> dvalues, dscales;  // dscales: empty without scales
  Tensor ddirections;                    // [S, D]
};
DepthMixGrads depth_mix_backward(std::span<const Tensor> douts, const Tensor& weights, std::span<const Tensor> values,
                                 std::span<const Tensor> scales, const Tensor& directions,
                                 const DepthMixOptions& options = {});

}  // namespace weft::ops
