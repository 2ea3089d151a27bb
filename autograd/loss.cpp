// Cross-entropy, materialised and in chunks through the output weight; KL divergence, squared error, binary cross-entropy.
#include "weft/ops/loss.h"

#include <array>

#include "weft/autograd/functions.h"
#include "weft/autograd/record.h"
#include "weft/core/error.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/reduce.h"

namespace weft {

namespace {

Var reduced(const Var& losses, Reduction reduction) {
  switch (reduction) {
    case Reduction::none: return losses;
    case Reduction::sum: return sum_all(losses);
    case Reduction::mean: break;
  }
  return mean_all(losses);
}

Tensor wide(const Tensor& x) { return x.defined() && x.dtype() == kBF16 ? ops::cast(x, kF32) : x; }

// What a bf16 operand is computed in. Two operands of different dtypes stay, for ops to refuse.
std::array<Tensor, 2> wide(const Var& a, const Var& b) {
  if (a.dtype() != b.dtype()) return {a.value(), b.value()};
  return {wide(a.value()), wide(b.value())};
}

}  // namespace

Var cross_entropy(const Var& logits_NV, const Tensor& targets_N, const CrossEntropyOptions& options) {
  const ops::CrossEntropyTargets soft{options.label_smoothing, options.class_weights};
  auto [losses, lse] = ops::cross_entropy(logits_NV.value(), targets_N, soft);
  Var each = record("cross_entropy", losses, {logits_NV},
                    [logits = Saved(logits_NV.value()), targets = Saved(targets_N), lse = Saved(lse),
                     smoothing = soft.label_smoothing, w = Saved(soft.class_weights)](const Tensor& dlosses, Wants) {
                      return Grads{ops::cross_entropy_backward(dlosses, logits, targets, lse, {smoothing, w})};
                    });
  if (options.reduction != Reduction::mean) return reduced(each, options.reduction);
  return sum_all(each) / Var(ops::sum_all(ops::target_weights(logits_NV.value(), targets_N, soft)));
}

Var kl_divergence(const Var& logits, const Var& target, Reduction reduction) {
  Tensor losses = ops::kl_divergence(logits.value(), target.value());
  Var each = record("kl_divergence", losses, {logits, target},
                    [logits = Saved(logits.value()), target = Saved(target.value()), losses = Saved(losses)](
                        const Tensor& dlosses, Wants wants) {
                      auto [dlogits, dtarget] =
                          ops::kl_divergence_backward(dlosses, logits, target, losses, wants[0], wants[1]);
                      return Grads{dlogits, dtarget};
                    });
  return reduced(each, reduction);
}

Var mse_loss(const Var& x, const Var& target, Reduction reduction) {
  auto [a, b] = wide(x, target);
  Var each = record("mse_loss", ops::squared_error(a, b), {x, target},
                    [x = Saved(x.value()), target = Saved(target.value())](const Tensor& dlosses, Wants wants) {
                      Tensor twice = ops::scale(ops::sub(wide(x), wide(target)), 2);
                      Tensor dx = ops::cast(ops::mul(twice, dlosses), x.get().dtype());
                      return Grads{wants[0] ? dx : Tensor(), wants[1] ? ops::neg(dx) : Tensor()};
                    });
  return reduced(each, reduction);
}

// The slope in the target is log(1 - sigmoid) - log(sigmoid) = -logits.
Var bce_with_logits(const Var& logits, const Var& target, Reduction reduction) {
  auto [a, b] = wide(logits, target);
  Var each =
      record("bce_with_logits", ops::bce_with_logits(a, b), {logits, target},
             [logits = Saved(logits.value()), target = Saved(target.value())](const Tensor& dlosses, Wants wants) {
               Tensor z = wide(logits), dlogits, dtarget;
               if (wants[0]) dlogits = ops::bce_with_logits_backward(dlosses, z, wide(target));
               if (wants[1]) dtarget = ops::neg(ops::mul(dlosses, z));
               auto back = [&](const Tensor& d) { return d.defined() ? ops::cast(d, logits.get().dtype()) : d; };
               return Grads{back(dlogits), back(dtarget)};
             });
  return reduced(each, reduction);
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
