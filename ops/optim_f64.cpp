#include "ops/optim_f64.h"

#include <algorithm>
#include <cmath>

#include "weft/ops/elementwise.h"

namespace weft::ops {

namespace {

// mean = decay mean + (1 - decay) x
void follow(Tensor& mean, const Tensor& x, double decay) {
  scale_(mean, decay);
  add_(mean, x, 1 - decay);
}

// Decoupled decay, then a step along `update`.
void move(Tensor& param, const Tensor& update, double lr, double weight_decay, double step_size) {
  scale_(param, 1 - lr * weight_decay);
  add_(param, update, -step_size);
}

}  // namespace

void adamw_f64(std::span<OptimTensors> group, const AdamWStep& o) {
  const auto steps = static_cast<double>(o.step);
  const double step_size = o.lr / (1 - std::pow(o.beta1, steps));
  const double root_scale = 1 / std::sqrt(1 - std::pow(o.beta2, steps));
  for (OptimTensors& t : group) {
    const Tensor g = scale(t.grad, o.grad_scale);
    follow(t.moment1, g, o.beta1);
    follow(t.moment2, square(g), o.beta2);
    const Tensor root = add_scalar(scale(sqrt(t.moment2), root_scale), o.eps);
    move(t.param, div(t.moment1, root), o.lr, o.weight_decay, step_size);
  }
}

void muon_f64(std::span<OptimTensors> group, const MuonStep& o) {
  for (OptimTensors& t : group) {
    if (t.param.num_elements() == 0) continue;
    Tensor update = scale(t.grad, o.grad_scale);
    follow(t.moment1, update, o.momentum);
    if (o.is_nesterov) {  // g + momentum (mean - g)
      scale_(update, 1 - o.momentum);
      add_(update, t.moment1, o.momentum);
    } else {
      update = t.moment1;
    }
    const double ratio = static_cast<double>(t.param.size(0)) / static_cast<double>(t.param.size(1));
    move(t.param, newton_schulz(update, o.num_iterations), o.lr, o.weight_decay,
         o.lr * std::sqrt(std::max(1.0, ratio)));
  }
}

void schedule_free_f64(std::span<OptimTensors> group, const ScheduleFreeStep& o) {
  for (OptimTensors& t : group) {
    const Tensor g = scale(t.grad, o.grad_scale);
    Tensor &y = t.param, &z = t.moment1, &v = t.moment2;
    follow(v, square(g), o.beta2);
    Tensor u = div(g, add_scalar(sqrt(v), o.eps));
    add_(u, y, o.weight_decay);
    add_(y, sub(z, y), o.average);  // the old z; its step is in the next line
    add_(y, u, -o.lr * (1 - o.beta1 * (1 - o.average)));
    add_(z, u, -o.lr);
  }
}

void lion_f64(std::span<OptimTensors> group, const LionStep& o) {
  for (OptimTensors& t : group) {
    const Tensor g = scale(t.grad, o.grad_scale);
    Tensor u = scale(t.moment1, o.beta1);
    add_(u, g, 1 - o.beta1);
    const Tensor one = Tensor::full({}, 1, kF64, u.device());
    const Tensor sign = where(greater(u, 0), one, where(less(u, 0), scale(one, -1), u));  // 0 and NaN as they are
    move(t.param, sign, o.lr, o.weight_decay, o.lr);
    follow(t.moment1, g, o.beta2);
  }
}

void sgd_f64(std::span<OptimTensors> group, const SgdStep& o) {
  for (OptimTensors& t : group) {
    Tensor g = scale(t.grad, o.grad_scale);
    add_(g, t.param, o.weight_decay);
    if (o.momentum > 0) {
      scale_(t.moment1, o.momentum);
      add_(t.moment1, g);
      if (o.is_nesterov) add_(g, t.moment1, o.momentum);
      else g = t.moment1;
    }
    add_(t.param, g, -o.lr);
  }
}

}  // namespace weft::ops
