// Cross-entropy in nats over targets that are not ignored (id < 0 is ignored, id >= V is an Error). Logits become f32.
// Targets [N] i32 are on the CPU or on the device of the logits. On a CUDA device the CPU does not check them, because it would have to wait:
// there an id >= V makes the loss and gradient of that token NaN.
#pragma once

#include "weft/core/tensor.h"

namespace weft::ops {

// Losses per token of materialised logits [N, V].
struct CrossEntropy {
  Tensor losses;  // [N] f32 (f64 for f64), 0 where ignored
  Tensor lse;     // [N]
};
// loss = (1 - e) w[t] (lse - z[t]) + e / V sum_v w[v] (lse - z[v]) with e = label_smoothing, as in PyTorch. A class of weight 0 adds nothing,
// whatever its logit.
struct CrossEntropyTargets {
  double label_smoothing = 0;  // 0 to 1
  Tensor class_weights = {};   // w [V] f32 (f64 for f64), none below 0, on the device of the logits; undefined: ones
};
CrossEntropy cross_entropy(const Tensor& logits_NV, const Tensor& targets_N, const CrossEntropyTargets& options = {});
Tensor cross_entropy_backward(const Tensor& dlosses_N, const Tensor& logits_NV, const Tensor& targets_N,
                              const Tensor& lse_N, const CrossEntropyTargets& options = {});
// w[t] of each token, 0 where ignored. A mean divides by their sum. [N], dtype and device of the losses.
Tensor target_weights(const Tensor& logits_NV, const Tensor& targets_N, const CrossEntropyTargets& options = {});

// sum_v p[v] (log p[v] - log q[v]) of each row, p = softmax(target), q = softmax(logits): KL(p || q) in nats, [...] f32 (f64 for f64) of
// [..., V]. Log-probabilities may be given as logits. A class with p = 0 adds 0. A class with q = 0 and p > 0 makes the loss infinite; its
// gradient stays finite. A target row with only -inf has loss 0.
Tensor kl_divergence(const Tensor& logits, const Tensor& target);
struct KlGrads {
  Tensor dlogits, dtarget;  // undefined if not wanted
};
KlGrads kl_divergence_backward(const Tensor& dlosses, const Tensor& logits, const Tensor& target, const Tensor& losses,
                               bool wants_dlogits = true, bool wants_dtarget = true);

// The same from x [N, D] and the output weight [V, D]. It works on some tokens at a time, so that the logits of all tokens are never in
// memory together. Gradients, if wanted, are computed in the same pass, for the scalar `factor * sum of losses`.
struct LinearCrossEntropy {
  Tensor loss;     // scalar: factor * sum
  Tensor losses;   // [N], 0 where ignored; without factor
  Tensor dx;       // [N, D], dtype of x; undefined if not wanted
  Tensor dweight;  // [V, D] f32 (f64 for f64); undefined if not wanted
};
struct LinearCrossEntropyOptions {
  double factor = 1;   // usually 1 / number of targets of the whole step
  double softcap = 0;  // logits become cap * tanh(logits / cap); 0: off
  // Tokens at a time. 0: as many as have 8 MiB of logits, at least 256; on a CUDA device 512 MiB, at least 1024.
  int64_t chunk = 0;
  bool wants_dx = false, wants_dweight = false;
};
LinearCrossEntropy linear_cross_entropy(const Tensor& x_ND, const Tensor& weight_VD, const Tensor& targets_N,
                                        const LinearCrossEntropyOptions& options);

}  // namespace weft::ops
