// AdamW, schedule-free AdamW, Muon, Lion and SGD in float64, plain loops.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "weft/ops/optim.h"

namespace weft::reference {

using Numbers = std::vector<double>;

inline void adamw(Numbers& param, const Numbers& grad, Numbers& moment1, Numbers& moment2, const ops::AdamWStep& o) {
  for (size_t i = 0; i < param.size(); ++i) {
    double g = grad[i] * o.grad_scale;
    moment1[i] = o.beta1 * moment1[i] + (1 - o.beta1) * g;
    moment2[i] = o.beta2 * moment2[i] + (1 - o.beta2) * g * g;
    double m = moment1[i] / (1 - std::pow(o.beta1, static_cast<double>(o.step)));
    double v = moment2[i] / (1 - std::pow(o.beta2, static_cast<double>(o.step)));
    param[i] -= o.lr * o.weight_decay * param[i];
    param[i] -= o.lr * m / (std::sqrt(v) + o.eps);
  }
}

// x, y and z as published, one after the other; the library keeps y and z.
inline void schedule_free_adamw(Numbers& x, Numbers& y, Numbers& z, const Numbers& grad, Numbers& moment2,
                                const ops::ScheduleFreeStep& o) {
  for (size_t i = 0; i < y.size(); ++i) {
    double g = grad[i] * o.grad_scale;
    moment2[i] = o.beta2 * moment2[i] + (1 - o.beta2) * g * g;
    z[i] -= o.lr * g / (std::sqrt(moment2[i]) + o.eps) + o.lr * o.weight_decay * y[i];
    x[i] = (1 - o.average) * x[i] + o.average * z[i];
    y[i] = (1 - o.beta1) * z[i] + o.beta1 * x[i];
  }
}

inline void lion(Numbers& param, const Numbers& grad, Numbers& moment1, const ops::LionStep& o) {
  for (size_t i = 0; i < param.size(); ++i) {
    double g = grad[i] * o.grad_scale, u = o.beta1 * moment1[i] + (1 - o.beta1) * g;
    double direction = u > 0 ? 1 : u < 0 ? -1 : 0;
    param[i] -= o.lr * (direction + o.weight_decay * param[i]);
    moment1[i] = o.beta2 * moment1[i] + (1 - o.beta2) * g;
  }
}

inline void sgd(Numbers& param, const Numbers& grad, Numbers& moment1, const ops::SgdStep& o) {
  for (size_t i = 0; i < param.size(); ++i) {
    double g = grad[i] * o.grad_scale + o.weight_decay * param[i];
    if (o.momentum > 0) moment1[i] = o.momentum * moment1[i] + g;
    if (o.momentum > 0 && o.is_nesterov) g += o.momentum * moment1[i];
    else if (o.momentum > 0) g = moment1[i];
    param[i] -= o.lr * g;
  }
}

// The published form: wide matrices as they are, tall ones transposed.
inline Numbers newton_schulz(Numbers x, size_t rows, size_t columns, int num_iterations) {
  bool is_tall = rows > columns;
  auto transposed = [](const Numbers& m, size_t r, size_t c) {
    Numbers t(m.size());
    for (size_t i = 0; i < r; ++i)
      for (size_t j = 0; j < c; ++j) t[j * r + i] = m[i * c + j];
    return t;
  };
  if (is_tall) {
    x = transposed(x, rows, columns);
    std::swap(rows, columns);
  }
  double norm = 0;
  for (double v : x) norm += v * v;
  for (double& v : x) v /= std::sqrt(norm) + 1e-7;
  for (int step = 0; step < num_iterations; ++step) {
    Numbers gram(rows * rows), squared(rows * rows), next(x.size());
    for (size_t i = 0; i < rows; ++i)
      for (size_t j = 0; j < rows; ++j)
        for (size_t k = 0; k < columns; ++k) gram[i * rows + j] += x[i * columns + k] * x[j * columns + k];
    for (size_t i = 0; i < rows; ++i)
      for (size_t j = 0; j < rows; ++j)
        for (size_t k = 0; k < rows; ++k) squared[i * rows + j] += gram[i * rows + k] * gram[k * rows + j];
    for (size_t i = 0; i < rows; ++i)
      for (size_t j = 0; j < columns; ++j) {
        double y = 3.4445 * x[i * columns + j];
        for (size_t k = 0; k < rows; ++k)
          y += (-4.7750 * gram[i * rows + k] + 2.0315 * squared[i * rows + k]) * x[k * columns + j];
        next[i * columns + j] = y;
      }
    x = next;
  }
  return is_tall ? transposed(x, rows, columns) : x;
}

inline void muon(Numbers& param, const Numbers& grad, Numbers& momentum, size_t rows, size_t columns,
                 const ops::MuonStep& o) {
  Numbers update(param.size());
  for (size_t i = 0; i < param.size(); ++i) {
    double g = grad[i] * o.grad_scale;
    momentum[i] = o.momentum * momentum[i] + (1 - o.momentum) * g;
    update[i] = o.is_nesterov ? o.momentum * momentum[i] + (1 - o.momentum) * g : momentum[i];
  }
  update = newton_schulz(update, rows, columns, o.num_iterations);
  double scale = std::sqrt(std::max(1.0, static_cast<double>(rows) / static_cast<double>(columns)));
  for (size_t i = 0; i < param.size(); ++i)
    param[i] = param[i] * (1 - o.lr * o.weight_decay) - o.lr * scale * update[i];
}

}  // namespace weft::reference
