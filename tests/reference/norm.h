// RMSNorm and LayerNorm in float64, one row after the other.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

namespace weft::reference {

struct Norm {
  std::vector<double> y, mean, inv;        // [rows, D], [rows], [rows]
  std::vector<double> dx, dweight, dbias;  // [rows, D], [D], [D]
};

// Forward, and backward of dy. `centred` is LayerNorm; empty weight: ones; empty bias: zeros; empty dy: no backward.
inline Norm norm(const std::vector<double>& x, size_t D, const std::vector<double>& weight,
                 const std::vector<double>& bias, double eps, bool centred, const std::vector<double>& dy) {
  const size_t rows = D ? x.size() / D : 0;
  auto w = [&](size_t d) { return weight.empty() ? 1.0 : weight[d]; };
  Norm r;
  r.y.resize(x.size()), r.dx.resize(x.size()), r.dweight.assign(D, 0), r.dbias.assign(D, 0);
  for (size_t i = 0; i < rows; ++i) {
    const double* row = &x[i * D];
    double mean = 0, square = 0;
    for (size_t d = 0; centred && d < D; ++d) mean += row[d] / static_cast<double>(D);
    for (size_t d = 0; d < D; ++d) square += (row[d] - mean) * (row[d] - mean) / static_cast<double>(D);
    double inv = 1 / std::sqrt(square + eps);
    r.mean.push_back(mean), r.inv.push_back(inv);
    for (size_t d = 0; d < D; ++d) r.y[i * D + d] = (row[d] - mean) * inv * w(d) + (bias.empty() ? 0 : bias[d]);
    if (dy.empty()) continue;
    double g_mean = 0, gh_mean = 0;
    for (size_t d = 0; d < D; ++d) {
      double h = (row[d] - mean) * inv, g = dy[i * D + d] * w(d);
      r.dweight[d] += dy[i * D + d] * h;
      r.dbias[d] += dy[i * D + d];
      if (centred) g_mean += g / static_cast<double>(D);
      gh_mean += g * h / static_cast<double>(D);
    }
    for (size_t d = 0; d < D; ++d)
      r.dx[i * D + d] = inv * (dy[i * D + d] * w(d) - g_mean - (row[d] - mean) * inv * gh_mean);
  }
  return r;
}

}  // namespace weft::reference
