// Mixing over depth (Attention Residuals, 2603.15031): for each token, weighted sums of N sources. The weights are made from the sources.
// All S queries are computed together, so that each source is read once.
//   s_qi = scale_i (direction_q . v_i),  a_q = softmax(s_q) or sigmoid(s_q) each,  out_q = sum_i a_qi v_i
// Backward has two halves. The first, of a mixture, computes ds from the sources. The second, of a source, adds what all its readers
// contribute to its gradient. So the gradient of one source is complete before that of the next is allocated.
#pragma once

#include <span>
#include <vector>

#include "weft/core/tensor.h"

namespace weft::ops {

struct DepthMixOptions {
  bool is_sigmoid = false;
  Tensor first_scores = {};  // [..., S] f32 (f64): scores of source 0, in place of computed ones; forward only
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
  Tensor dscores;      // [..., S, N], of s
  Tensor ddirections;  // [S, D]
};
DepthMixGrads depth_mix_backward(std::span<const Tensor> douts, const Tensor& weights, std::span<const Tensor> values,
                                 std::span<const Tensor> scales, const Tensor& directions,
                                 const DepthMixOptions& options = {});

// What query `query` of a mixture read as its source `source`: the gradient of its out [..., D], and the mixture's weights, dscores
// [..., S, N] and directions [S, D].
struct DepthReading {
  Tensor dout, weights, dscores, directions;
  int64_t query = 0, source = 0;
};
struct DepthSourceGrads {
  Tensor dvalue, dscale;  // as value, scale; dscale undefined without a scale
};
// dvalue = sum of a dout + ds scale direction, dscale = sum of ds (direction . value) over the readings, in their order.
DepthSourceGrads depth_source_backward(std::span<const DepthReading> readings, const Tensor& value,
                                       const Tensor& scale);

}  // namespace weft::ops
