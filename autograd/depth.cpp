// The mixture over depth of residual streams.
#include "weft/ops/depth.h"

#include "weft/autograd/functions.h"
#include "weft/autograd/record.h"

namespace weft {

DepthMixVar depth_mix(std::span<const Var> values, std::span<const Var> scales, const Var& direction, bool is_sigmoid) {
  std::vector<Var> inputs(values.begin(), values.end());
  inputs.insert(inputs.end(), scales.begin(), scales.end());
  inputs.push_back(direction);
  std::vector<Tensor> v, s;
  for (const Var& x : values) v.push_back(x.value());
  for (const Var& x : scales) s.push_back(x.value());
  auto [out, weights] = ops::depth_mix(v, s, direction.value(), is_sigmoid);
  std::vector<Saved> kept;
  for (const auto& tensors : {v, s})
    for (const Tensor& tensor : tensors) kept.emplace_back(tensor);
  Var y = record("depth_mix", out, Inputs(inputs),
                 [kept = std::move(kept), count = v.size(), direction = Saved(direction.value()),
                  weights = Saved(weights), is_sigmoid](const Tensor& dout, Wants) {
                   std::vector<Tensor> all;
                   for (const Saved& tensor : kept) all.push_back(tensor.get());
                   std::span<const Tensor> sources(all.data(), count), scales(all.data() + count, all.size() - count);
                   ops::DepthMixGrads grads =
                       ops::depth_mix_backward(dout, weights, sources, scales, direction, is_sigmoid);
                   std::vector<Tensor> of_inputs = std::move(grads.dvalues);
                   for (Tensor& d : grads.dscales) of_inputs.push_back(std::move(d));
                   of_inputs.push_back(std::move(grads.ddirection));
                   return Grads(std::move(of_inputs));
                 });
  return {y, weights};
}

}  // namespace weft
