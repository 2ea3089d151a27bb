// A router over depth: one softmax per token over n sources v_i [B, T, D],
//   r_i = 1 / sqrt(mean v_i^2 + eps),  s_i = r_i (v_i . (w gain)),  a = softmax(s),  h = sum_i a_i v_i
// r_i belongs to the source and is computed once for all routers that read it.
#pragma once

#include "weft/autograd/depth.h"
#include "weft/nn/residual.h"

namespace weft {

// A source [B, T, D] with its r, or without if scores read the bare value.
DepthSource depth_source(const Var& value, const RoutedResidualOptions& options, double eps);

// sum_i weights[..., i] * sources[i]; weights [B, T, n] f32 (f64), sources [B, T, D].
Var weighted_sum(const Var& weights_BTN, std::span<const DepthSource> sources);

class DepthRouter final : public Module {
 public:
  // num_sources: of the null source too, if there is one.
  DepthRouter(const RoutedResidualOptions& options, int64_t dim, int64_t num_sources, Rng rng);
  Var operator()(std::vector<DepthSource> sources, Tokens& tokens) const;
  // The same as query `query` of a group, with the sources that came after the group's.
  Var read(DepthGroup& group, int64_t query, std::span<const DepthSource> own, Tokens& tokens) const;
  Var direction(DType dtype) const;  // w gain [D]

 private:
  void report(const Var& weights_BTN, Tokens& tokens) const;

  RoutedResidualOptions o_;
  std::unique_ptr<Param> query_, gain_, scores_, null_;
};

}  // namespace weft
