// The mixture over depth of residual streams, differentiable: see weft/ops/depth.h.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "weft/autograd/var.h"
#include "weft/ops/depth.h"

namespace weft {

// A source that several mixtures over depth read. If each reader returned a gradient of the source, backward would hold one gradient per
// reader and source. Instead, each reader leaves a record of its reading in the source. When all readers have run backward, the gradient of
// the source is computed from the records in one pass.
class DepthSource {
 public:
  DepthSource() = default;
  // scale [..., 1] f32 (f64 for f64), or undefined for 1. Either all sources of a mixture have a scale, or none.
  explicit DepthSource(const Var& value, const Var& scale = {});
  const Var& value() const { return value_; }
  const Var& scale() const { return scale_; }

 private:
  friend struct DepthReaders;
  Var value_, scale_;
  std::shared_ptr<std::vector<ops::DepthReading>> readings_;
  Var ticket_;  // one number on the CPU that is an input of every reader, so that their backward runs before the source's
};

struct DepthMixVar {
  Var out;         // [..., D]
  Tensor weights;  // [..., N], for reports
};
// sum_i a_i v_i with weights made from the sources; direction [D].
DepthMixVar depth_mix(std::span<const DepthSource> sources, const Var& direction, bool is_sigmoid);

// Softmax mixtures in two phases. First, S queries with directions [S, D] read the common `sources` together, in forward and in backward.
// Then each query adds sources of its own. The result equals one depth_mix() per query over all its sources, but the common sources are read
// once instead of S times. keeps_outs: backward reuses the outputs of read(), if the caller keeps them anyway; otherwise it computes them
// again.
class DepthGroup {
 public:
  DepthGroup(std::span<const DepthSource> sources, const Var& directions_SD, bool keeps_outs);
  // Call it once per query. `direction` is the query's row of directions_SD. The result's weights, if they are wanted, are those of the
  // group's sources, followed by those of its own sources.
  DepthMixVar read(int64_t query, std::span<const DepthSource> own, const Var& direction, bool wants_weights);

 private:
  struct State;
  std::shared_ptr<State> state_;
  Var ticket_;
  bool keeps_outs_;
};

}  // namespace weft
