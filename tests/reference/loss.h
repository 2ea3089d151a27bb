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
