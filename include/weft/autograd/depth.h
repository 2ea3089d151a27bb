// The mixture over depth of residual streams, differentiable: see weft/ops/depth.h.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "weft/autograd/var.h"
#include "weft/ops/depth.h"

namespace weft {

// A source of mixtures over depth. Its readers leave what they want of it, and its gradient is made at once when all have: beside the
// sources, backward holds one gradient per reader, whose own output it needs no more.
class DepthSource {
 public:
  DepthSource() = default;
  // scale [..., 1] f32 (f64 for f64), or undefined for 1; of all sources of a mixture, or of none.
  explicit DepthSource(const Var& value, const Var& scale = {});
  const Var& value() const { return value_; }
  const Var& scale() const { return scale_; }

 private:
  friend struct DepthReaders;
  Var value_, scale_;
  std::shared_ptr<std::vector<ops::DepthReading>> readings_;
  Var ticket_;  // one number on the CPU that readers take as their input: it orders them before the source's backward
};

struct DepthMixVar {
  Var out;         // [..., D]
  Tensor weights;  // [..., N], for reports
};
// sum_i a_i v_i with weights made from the sources; direction [D].
DepthMixVar depth_mix(std::span<const DepthSource> sources, const Var& direction, bool is_sigmoid);

// Softmax mixtures in two phases: S queries, directions [S, D], read `sources` together, forward and backward; each then adds sources of
// its own. The same function as one depth_mix() over all, with fewer readings. keeps_outs: backward uses what read() gave, which the caller
// keeps anyway; otherwise it computes that again.
class DepthGroup {
 public:
  DepthGroup(std::span<const DepthSource> sources, const Var& directions_SD, bool keeps_outs);
  // Once per query; `direction` is its row of directions_SD. weights: of the group's sources and then its own, if they are wanted.
  DepthMixVar read(int64_t query, std::span<const DepthSource> own, const Var& direction, bool wants_weights);

 private:
  struct State;
  std::shared_ptr<State> state_;
  Var ticket_;
  bool keeps_outs_;
};

}  // namespace weft
