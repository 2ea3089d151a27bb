// The mixture over depth of residual streams, differentiable: see weft/ops/depth.h.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "weft/autograd/var.h"

namespace weft {

struct DepthMixVar {
  Var out;         // [..., D]
  Tensor weights;  // [..., N], for reports
};
// sum_i a_i v_i with weights made from the sources; direction [D].
DepthMixVar depth_mix(std::span<const Var> values, std::span<const Var> scales, const Var& direction, bool is_sigmoid);

// Softmax mixtures in two phases: S queries, directions [S, D], read the sources `values` together, forward and backward; each then adds
// sources of its own. The same function as one depth_mix() over all, with fewer readings. Scales as in depth_mix(), for all or none.
class DepthGroup {
 public:
  DepthGroup(std::span<const Var> values, std::span<const Var> scales, const Var& directions_SD);
  // Once per query; `direction` is its row of directions_SD. weights: of the group's sources and then its own, if they are wanted.
  DepthMixVar read(int64_t query, std::span<const Var> own_values, std::span<const Var> own_scales,
                   const Var& direction, bool wants_weights);

 private:
  struct State;
  std::shared_ptr<State> state_;
  std::vector<Var> outs_;
};

}  // namespace weft
