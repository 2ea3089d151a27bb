// Cross-entropy, materialised and in chunks through the output weight.
#include "weft/ops/loss.h"

#include "weft/autograd/functions.h"
#include "weft/autograd/record.h"
#include "weft/core/error.h"
#include "weft/ops/elementwise.h"

namespace weft {

Var cross_entropy(const Var& logits_NV, const Tensor& targets_N) {
  auto [losses, lse] = ops::cross_entropy(logits_NV.value(), targets_N);
  return record(
      "cross_entropy", losses, {logits_NV},
      [logits = Saved(logits_NV.value()), targets = Saved(targets_N), lse = Saved(lse)](const Tensor& dlosses, Wants) {
        return Grads{ops::cross_entropy_backward(dlosses, logits, targets, lse)};
      });
}

// The gradients exist already when the forward ends; backward multiplies them by the incoming scalar, usually 1.
LinearCrossEntropyVar linear_cross_entropy(const Var& x_ND, const Var& weight_VD, const Tensor& targets_N,
                                           ops::LinearCrossEntropyOptions options) {
  options.wants_dx = is_recording() && x_ND.wants_grad();
  options.wants_dweight = is_recording() && weight_VD.wants_grad();
  ops::LinearCrossEntropy result = ops::linear_cross_entropy(x_ND.value(), weight_VD.value(), targets_N, options);
  auto backward_of = [dx = Saved(result.dx), dweight = Saved(result.dweight)](const Tensor& dy, Wants wants) {
    // On a device the factor stays where it is: to read it, the CPU would wait for all work before.
    double factor = dy.is_cuda() ? 0 : dy.item();
    auto times = [&](const Tensor& grad) {
      if (dy.is_cuda()) return ops::cast(ops::mul(ops::cast(grad, dy.dtype()), dy), grad.dtype());
      return factor == 1 ? grad : ops::scale(grad, factor);
    };
    return Grads{wants[0] ? times(dx) : Tensor(), wants[1] ? times(dweight) : Tensor()};
  };
  Var loss = record("linear_cross_entropy", result.loss, {x_ND, weight_VD}, std::move(backward_of));
  return {loss, result.losses};
}

}  // namespace weft
