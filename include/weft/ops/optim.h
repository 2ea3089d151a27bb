// Parameter updates in place, each in one pass over memory. Parameters, moments and gradients are f32, or all f64, which is slower. A call
// updates a group of parameters. On a GPU one kernel updates many of them, and Muon's matrices of one shape are one batch.
#pragma once

#include <span>

#include "weft/core/tensor.h"

namespace weft::ops {

// A parameter and what its update reads and writes. `working`, if defined, is the bf16 copy that the next forward reads; the update writes it
// too.
struct OptimTensors {
  Tensor param, grad;
  Tensor
      moment1;  // momentum of Muon and SGD, mean of Lion, z of schedule-free AdamW; undefined for SGD without momentum
  Tensor moment2 = {};  // of AdamW, schedule-free or not
  Tensor working = {};
};

// AdamW (Loshchilov & Hutter, 1711.05101). Weight decay is decoupled and multiplied by lr. Bias correction counts `step` from 1.
struct AdamWStep {
  double lr = 0, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0;
  int64_t step = 1;
  double grad_scale = 1;  // multiplies the gradient: clipping without a pass of its own
};
void adamw_(std::span<OptimTensors> group, const AdamWStep& options);

// Muon (K. Jordan, 2024). The momentum is a running mean of gradients. Five quintic Newton-Schulz steps make it nearly orthogonal. The
// update is lr * sqrt(max(1, rows / columns)) times that; torch.optim.Muon calls this scale "original".
struct MuonStep {
  double lr = 0, momentum = 0.95, weight_decay = 0;
  bool is_nesterov = true;
  int num_iterations = 5;
  double grad_scale = 1;
};
void muon_(std::span<OptimTensors> group, const MuonStep& options);             // matrices only
Tensor newton_schulz(const Tensor& matrix, int num_iterations);                 // [rows, columns], or a batch of those
double newton_schulz_flops(int64_t rows, int64_t columns, int num_iterations);  // of its products

// Lion (Chen et al., 2302.06675), decoupled weight decay times lr: param = (1 - lr weight_decay) param - lr sign(beta1 m + (1 - beta1) g),
// then m = beta2 m + (1 - beta2) g. The sign of 0 is 0, and of a NaN NaN.
struct LionStep {
  double lr = 0, beta1 = 0.9, beta2 = 0.99, weight_decay = 0;
  double grad_scale = 1;
};
void lion_(std::span<OptimTensors> group, const LionStep& options);

// Stochastic gradient descent as in torch.optim.SGD: g += weight_decay param (decay goes through the momentum), m = momentum m + g,
// param -= lr m; with nesterov param -= lr (g + momentum m); without momentum param -= lr g.
struct SgdStep {
  double lr = 0, momentum = 0, weight_decay = 0;
  bool is_nesterov = false;  // needs a momentum
  double grad_scale = 1;
};
void sgd_(std::span<OptimTensors> group, const SgdStep& options);

// AdamW without a schedule (Defazio et al., 2405.15682). The parameter is y, the point where gradients are taken. moment1 is z, which the
// steps move. With x the average of z: y = (1 - beta1) z + beta1 x.
//   v = beta2 v + (1 - beta2) g^2;  u = g / (sqrt(v) + eps) + weight_decay y;  z -= lr u;  x = (1 - average) x + average z
struct ScheduleFreeStep {
  double lr = 0, beta1 = 0.9, beta2 = 0.999, eps = 1e-8,
         weight_decay = 0;  // lr times sqrt(1 - beta2^step) corrects the bias of v
  double average = 1;       // the new z's share of x: lr^2 / sum of all lr^2
  double grad_scale = 1;
};
void schedule_free_adamw_(std::span<OptimTensors> group, const ScheduleFreeStep& options);
// x of a parameter y and its z, as a new tensor; beta1 > 0.
Tensor schedule_free_average(const Tensor& y, const Tensor& z, double beta1);

}  // namespace weft::ops
