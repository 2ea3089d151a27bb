// Mixture over depth with plain loops: sources [N][rows * D], scales [N][rows] or empty.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/reference/values.h"

namespace weft::reference {

using Numbers = std::vector<double>;

struct DepthReference {
  Numbers out, weights, ddirection;
  std::vector<Numbers> dvalues, dscales;

  DepthReference(const std::vector<Numbers>& v, const std::vector<Numbers>& scale, const Numbers& direction,
                 bool is_sigmoid, const Numbers& dout)
      : out(dout.size(), 0.0), ddirection(direction.size(), 0.0) {
    const size_t N = v.size(), D = direction.size(), rows = D > 0 ? dout.size() / D : 0;
    weights.assign(rows * N, 0.0);
    dvalues.assign(N, Numbers(dout.size(), 0.0));
    dscales.assign(scale.size(), Numbers(rows, 0.0));
    for (size_t r = 0; r < rows; ++r) {
      Numbers z(N, 0.0), a(N, 0.0), da(N, 0.0);
      double top = -HUGE_VAL, sum = 0, total = 0;
      for (size_t i = 0; i < N; ++i) {
        for (size_t c = 0; c < D; ++c) {
          z[i] += direction[c] * v[i][r * D + c];
          da[i] += dout[r * D + c] * v[i][r * D + c];
        }
        a[i] = z[i] * (scale.empty() ? 1 : scale[i][r]);
        top = std::max(top, a[i]);
      }
      for (size_t i = 0; i < N; ++i) sum += a[i] = is_sigmoid ? 1 / (1 + std::exp(-a[i])) : std::exp(a[i] - top);
      for (size_t i = 0; i < N; ++i) {
        if (!is_sigmoid) a[i] /= sum;
        weights[r * N + i] = a[i];
        total += a[i] * da[i];
        for (size_t c = 0; c < D; ++c) out[r * D + c] += a[i] * v[i][r * D + c];
      }
      for (size_t i = 0; i < N; ++i) {
        double ds = is_sigmoid ? da[i] * a[i] * (1 - a[i]) : a[i] * (da[i] - total),
               s = scale.empty() ? 1 : scale[i][r];
        if (!scale.empty()) dscales[i][r] = ds * z[i];
        for (size_t c = 0; c < D; ++c) {
          dvalues[i][r * D + c] = a[i] * dout[r * D + c] + ds * s * direction[c];
          ddirection[c] += ds * s * v[i][r * D + c];
        }
      }
    }
  }
};

}  // namespace weft::reference
