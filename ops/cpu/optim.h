// Optimiser kernels on the CPU: one fused pass over memory each. All tensors are row-major f32; `working` is bf16 or nullptr.
#pragma once

#include <cstdint>

#include "ops/cpu/isa.h"
#include "weft/core/dtype.h"
#include "weft/core/tensor.h"

namespace weft::cpu {

// What one AdamW step multiplies with; the bias corrections are folded in.
struct AdamWFactors {
  float beta1, rest1;  // moment1 = beta1 * moment1 + rest1 * g, rest1 = 1 - beta1
  float beta2, rest2;
  float grad_scale;
  float keep;        // 1 - lr * weight_decay
  float step_size;   // lr / (1 - beta1^step)
  float root_scale;  // 1 / sqrt(1 - beta2^step)
  float eps;
};
struct AdamWMemory {
  float* param;
  const float* grad;
  float *moment1, *moment2;
  BFloat16* working;
};

// What one Lion step multiplies with.
struct LionFactors {
  float beta1, rest1;  // update = sign(beta1 * moment1 + rest1 * g)
  float beta2, rest2;  // moment1 = beta2 * moment1 + rest2 * g
  float grad_scale;
  float keep;  // 1 - lr * weight_decay
  float lr;
};
// And one step of SGD: g = grad_scale * grad + decay * param, moment1 = momentum * moment1 + g.
struct SgdFactors {
  float momentum, grad_scale, decay, lr;
  bool is_nesterov;
};
// And of schedule-free AdamW: moment1 is z, the parameter y.
struct ScheduleFreeFactors {
  float beta2, rest2;
  float grad_scale, eps, decay, lr;
  float average;  // y += average * (z - y) - y_step * u
  float y_step;   // lr * (1 - beta1 * (1 - average))
};
// Of Lion and SGD; moment1 may be nullptr for SGD without momentum.
struct MomentMemory {
  float* param;
  const float* grad;
  float* moment1;
  BFloat16* working;
};

template <Isa I>
struct OptimKernels {
  static void adamw(const AdamWMemory& memory, const AdamWFactors& factors, int64_t begin, int64_t end);
  // buffer = buffer + rest * (g - buffer), g = grad_scale * grad; update = nesterov ? g + beta * (buffer - g) : buffer.
  static void muon_momentum(float* buffer, const float* grad, float* update, float beta, float grad_scale,
                            bool is_nesterov, int64_t begin, int64_t end);
  // param = keep * param - step_size * update.
  static void muon_apply(float* param, const float* update, BFloat16* working, float keep, float step_size,
                         int64_t begin, int64_t end);
  static void schedule_free(const AdamWMemory& memory, const ScheduleFreeFactors& factors, int64_t begin, int64_t end);
  static void lion(const MomentMemory& memory, const LionFactors& factors, int64_t begin, int64_t end);
  static void sgd(const MomentMemory& memory, const SgdFactors& factors, int64_t begin, int64_t end);
};

void adamw(Tensor& param, const Tensor& grad, Tensor& moment1, Tensor& moment2, Tensor& working,
           const AdamWFactors& factors);
void muon_momentum(Tensor& buffer, const Tensor& grad, Tensor& update, float beta, float grad_scale, bool is_nesterov);
void muon_apply(Tensor& param, const Tensor& update, Tensor& working, float keep, float step_size);
void schedule_free(Tensor& param, const Tensor& grad, Tensor& moment1, Tensor& moment2, Tensor& working,
                   const ScheduleFreeFactors& factors);
void lion(Tensor& param, const Tensor& grad, Tensor& moment1, Tensor& working, const LionFactors& factors);
void sgd(Tensor& param, const Tensor& grad, Tensor& moment1, Tensor& working, const SgdFactors& factors);

}  // namespace weft::cpu
