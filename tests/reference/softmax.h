// Softmax and logsumexp over rows in float64.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace weft::reference {

struct Softmax {
  std::vector<double> y, lse;  // [rows, D], [rows]; a row of -inf gives zeros and -inf
  std::vector<double> dx;      // of dy through softmax
  std::vector<double> dx_lse;  // of dl through logsumexp
};

inline Softmax softmax(const std::vector<double>& x, size_t D, const std::vector<double>& dy,
                       const std::vector<double>& dl) {
  const double infinity = std::numeric_limits<double>::infinity();
  const size_t rows = D ? x.size() / D : dl.size();
  Softmax r;
  for (size_t i = 0; i < rows; ++i) {
    double top = -infinity, sum = 0, mean = 0;
    for (size_t d = 0; d < D; ++d) top = std::max(top, x[i * D + d]);
    const double shift = top == -infinity ? 0 : top;
    for (size_t d = 0; d < D; ++d) sum += std::exp(x[i * D + d] - shift);
    r.lse.push_back(shift + std::log(sum));
    for (size_t d = 0; d < D; ++d) r.y.push_back(sum == 0 ? 0 : std::exp(x[i * D + d] - shift) / sum);
    for (size_t d = 0; d < D; ++d) mean += r.y[i * D + d] * dy[i * D + d];
    for (size_t d = 0; d < D; ++d) r.dx.push_back(r.y[i * D + d] * (dy[i * D + d] - mean));
    for (size_t d = 0; d < D; ++d) r.dx_lse.push_back(r.y[i * D + d] * dl[i]);
  }
  return r;
}

}  // namespace weft::reference
