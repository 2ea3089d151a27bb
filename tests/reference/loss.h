// Cross-entropy in float64: of logits, and of x W^T with an optional soft cap.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace weft::reference {

struct CrossEntropy {
  std::vector<double> losses, lse, dlogits;  // [N], [N], [N, V]
};

// dlosses [N] scales each token's gradient. A target below 0 is ignored.
inline CrossEntropy cross_entropy(const std::vector<double>& logits, size_t V, const std::vector<int64_t>& targets,
                                  const std::vector<double>& dlosses) {
  CrossEntropy r;
  for (size_t n = 0; n < targets.size(); ++n) {
    const double* z = &logits[n * V];
    const double top = *std::max_element(z, z + V);
    double sum = 0;
    for (size_t v = 0; v < V; ++v) sum += std::exp(z[v] - top);
    const bool counts = targets[n] >= 0;
    r.lse.push_back(top + std::log(sum));
    r.losses.push_back(counts ? std::log(sum) + top - z[targets[n]] : 0);
    for (size_t v = 0; v < V; ++v) {
      double d = std::exp(z[v] - top) / sum - (static_cast<int64_t>(v) == targets[n] ? 1 : 0);
      r.dlogits.push_back(counts ? dlosses[n] * d : 0);
    }
  }
  return r;
}

// With label smoothing e and class weights w: loss = -sum_v goal[v] log p[v], goal[v] = (1 - e) w[t] [v = t] + e / V w[v].
inline CrossEntropy softened_cross_entropy(const std::vector<double>& logits, size_t V,
                                           const std::vector<int64_t>& targets, const std::vector<double>& dlosses,
                                           double e, const std::vector<double>& w) {
  CrossEntropy r = cross_entropy(logits, V, targets, dlosses);
  for (size_t n = 0; n < targets.size(); ++n) {
    r.losses[n] = 0;
    double mass = 0;
    std::vector<double> goals(V);
    for (size_t v = 0; v < V; ++v) {
      const bool is_target = static_cast<int64_t>(v) == targets[n];
      mass += goals[v] = targets[n] < 0 ? 0 : (is_target ? (1 - e) * w[v] : 0) + e / static_cast<double>(V) * w[v];
      if (goals[v] != 0) r.losses[n] += goals[v] * (r.lse[n] - logits[n * V + v]);
    }
    for (size_t v = 0; v < V; ++v)
      r.dlogits[n * V + v] = dlosses[n] * (mass * std::exp(logits[n * V + v] - r.lse[n]) - goals[v]);
  }
  return r;
}

struct Kl {
  std::vector<double> losses, dlogits, dtarget;
};

// sum_v p[v] (log p[v] - log q[v]) per row, p = softmax(target), q = softmax(logits).
inline Kl kl_divergence(const std::vector<double>& logits, const std::vector<double>& target, size_t V,
                        const std::vector<double>& dlosses) {
  Kl r;
  for (size_t n = 0; n < dlosses.size(); ++n) {
    auto logarithms = [&](const std::vector<double>& z) {
      std::vector<double> row(z.begin() + static_cast<int64_t>(n * V), z.begin() + static_cast<int64_t>((n + 1) * V));
      const double top = *std::max_element(row.begin(), row.end());
      double sum = 0;
      for (double x : row) sum += std::exp(x - top);
      for (double& x : row) x = (x - top) - std::log(sum);
      return row;
    };
    const std::vector<double> log_q = logarithms(logits), log_p = logarithms(target);
    double loss = 0;
    for (size_t v = 0; v < V; ++v)
      if (std::exp(log_p[v]) > 0) loss += std::exp(log_p[v]) * (log_p[v] - log_q[v]);
    r.losses.push_back(loss);
    for (size_t v = 0; v < V; ++v) {
      const double p = std::exp(log_p[v]);
      r.dlogits.push_back(dlosses[n] * (std::exp(log_q[v]) - p));
      r.dtarget.push_back(p > 0 ? dlosses[n] * p * (log_p[v] - log_q[v] - loss) : 0);
    }
  }
  return r;
}

struct LinearCrossEntropy {
  double loss = 0;
  std::vector<double> losses, dx, dweight;
};

inline LinearCrossEntropy linear_cross_entropy(const std::vector<double>& x, const std::vector<double>& weight,
                                               size_t D, const std::vector<int64_t>& targets, double factor,
                                               double softcap) {
  const size_t N = targets.size(), V = weight.size() / D;
  std::vector<double> logits(N * V), slopes(N * V, 1);
  for (size_t n = 0; n < N; ++n)
    for (size_t v = 0; v < V; ++v) {
      double z = 0;
      for (size_t d = 0; d < D; ++d) z += x[n * D + d] * weight[v * D + d];
      if (softcap > 0) {
        const double t = std::tanh(z / softcap);
        z = softcap * t;
        slopes[n * V + v] = 1 - t * t;
      }
      logits[n * V + v] = z;
    }
  CrossEntropy ce = cross_entropy(logits, V, targets, std::vector<double>(N, factor));
  LinearCrossEntropy r;
  r.losses = ce.losses;
  r.dx.assign(x.size(), 0), r.dweight.assign(weight.size(), 0);
  for (size_t n = 0; n < N; ++n) {
    r.loss += factor * ce.losses[n];
    for (size_t v = 0; v < V; ++v) {
      const double d_logit = ce.dlogits[n * V + v] * slopes[n * V + v];
      for (size_t d = 0; d < D; ++d) {
        r.dx[n * D + d] += d_logit * weight[v * D + d];
        r.dweight[v * D + d] += d_logit * x[n * D + d];
      }
    }
  }
  return r;
}

}  // namespace weft::reference
