// How a differentiable function is made: compute the result on tensors, then record how gradients flow back.
//   Var softcap(const Var& x, double cap) {
//     Tensor y = ops::softcap(x.value(), cap);
//     return record("softcap", y, {x}, [y = Saved(y), cap](const Tensor& dy, Wants) {
//       return Grads{ops::softcap_backward(dy, y, cap)};
//     });
//   }
// What the closure captures is what backward keeps, nothing else. Never capture a Var. Capture tensors as Saved, so that a
// change in place before backward is an Error rather than a wrong gradient.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "weft/autograd/node.h"
#include "weft/autograd/var.h"

namespace weft {

// A tensor kept for backward, with the version that it had.
class Saved {
 public:
  explicit Saved(const Tensor& tensor) : tensor_(tensor), version_(tensor.version()) {}
  operator const Tensor&() const { return get(); }  // NOLINT: reads like the tensor; Error if it was changed
  const Tensor& get() const;

 private:
  Tensor tensor_;
  uint64_t version_;
};

// One output: `backward(const Tensor& dy, Wants) -> Grads`. A constant if no input wants a gradient or under NoGrad.
template <class F>
Var record(const char* op, Tensor value, const Inputs& inputs, F&& backward) {
  std::span<const Tensor> outputs(&value, 1);
  if (anomaly_mode()) autograd::check_recorded(op, outputs);
  if (!autograd::wants_node(inputs)) return Var(std::move(value));
  autograd::Node* node = autograd::make_node(op, outputs, inputs, std::forward<F>(backward));
  return Var(std::move(value), node, 0);
}

// Several outputs: `backward(std::span<const Tensor> dys, Wants) -> Grads`; dys[i] is undefined if nothing used output i.
template <size_t N, class F>
std::array<Var, N> record(const char* op, std::array<Tensor, N> values, const Inputs& inputs, F&& backward) {
  std::array<Var, N> vars;
  if (anomaly_mode()) autograd::check_recorded(op, values);
  autograd::Node* node = autograd::wants_node(inputs) ? autograd::make_node(op, std::span<const Tensor>(values), inputs,
                                                                            std::forward<F>(backward))
                                                      : nullptr;
  for (size_t i = 0; i < N; ++i) {
    if (node && i > 0) autograd::retain(node);
    vars[i] = node ? Var(std::move(values[i]), node, static_cast<int>(i)) : Var(std::move(values[i]));
  }
  return vars;
}
template <class F>
std::vector<Var> record(const char* op, std::vector<Tensor> values, const Inputs& inputs, F&& backward) {
  std::vector<Var> vars;
  if (anomaly_mode()) autograd::check_recorded(op, values);
  autograd::Node* node = autograd::wants_node(inputs) ? autograd::make_node(op, std::span<const Tensor>(values), inputs,
                                                                            std::forward<F>(backward))
                                                      : nullptr;
  for (size_t i = 0; i < values.size(); ++i) {
    if (node && i > 0) autograd::retain(node);
    vars.push_back(node ? Var(std::move(values[i]), node, static_cast<int>(i)) : Var(std::move(values[i])));
  }
  return vars;
}

}  // namespace weft
