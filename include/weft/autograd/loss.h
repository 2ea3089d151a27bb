// Losses, in nats where they are logarithms. Results are f32 (f64 for f64), also of bf16. Whether they are summed or averaged is
// said at the call: a wrong guess would only change the scale of gradients, which nobody sees.
//   Var loss = mse_loss(model(x), y, Reduction::mean);
#pragma once

#include "weft/autograd/var.h"
#include "weft/ops/loss.h"

namespace weft {

// The mean of nothing is NaN.
enum class Reduction { none, sum, mean };

// Of logits [N, V] against targets [N] i32, of which those below 0 are ignored: per token, 0 where ignored, unless asked otherwise.
struct CrossEntropyOptions {
  // The mean divides by the targets that are not ignored, or by the sum of their class weights.
  Reduction reduction = Reduction::none;
  double label_smoothing = 0;  // 0 to 1: this share of the target goes to all V classes alike
  Tensor class_weights = {};   // [V] f32 (f64 for f64), none below 0
};
Var cross_entropy(const Var& logits_NV, const Tensor& targets_N, const CrossEntropyOptions& options = {});

// KL(softmax(target) || softmax(logits)) over the last dimension: the distillation loss of a student's logits against a teacher's
// (detach() the teacher, or it learns too). One loss per row [...] of [..., V]; the mean is over rows. ops::kl_divergence says what
// -inf does. With a temperature: kl_divergence(s / T, t / T, ...) * (T * T).
Var kl_divergence(const Var& logits, const Var& target, Reduction reduction);

// (x - target)^2 of each element; both of one shape. Gradients of both.
Var mse_loss(const Var& x, const Var& target, Reduction reduction);

// -target log(sigmoid(logits)) - (1 - target) log(1 - sigmoid(logits)) of each element, from the side that does not overflow; targets
// are 0 to 1, of the shape of the logits. Gradients of both.
Var bce_with_logits(const Var& logits, const Var& target, Reduction reduction);

struct LinearCrossEntropyVar {
  Var loss;       // scalar, options.factor * sum
  Tensor losses;  // per token, for reports
};
LinearCrossEntropyVar linear_cross_entropy(const Var& x_ND, const Var& weight_VD, const Tensor& targets_N,
                                           ops::LinearCrossEntropyOptions options = {});

}  // namespace weft
