// Causal depthwise convolution in float64, one product after the other.
#pragma once

#include <cstdint>
#include <vector>

namespace weft::reference {

struct Conv {
  std::vector<double> y, dx, dweight, dbias;  // [B, T, D], the same, [D, W], [D]
};

// x, dy [B, T, D], weight [D, W], bias [D] or empty, documents [B, T] or empty.
inline Conv causal_conv(const std::vector<double>& x, int64_t B, int64_t T, int64_t D,
                        const std::vector<double>& weight, int64_t W, const std::vector<double>& bias,
                        const std::vector<int64_t>& documents, const std::vector<double>& dy) {
  Conv r;
  r.y.assign(x.size(), 0), r.dx.assign(x.size(), 0), r.dweight.assign(weight.size(), 0),
      r.dbias.assign(static_cast<size_t>(D), 0);
  auto at = [&](int64_t b, int64_t t, int64_t d) { return static_cast<size_t>((b * T + t) * D + d); };
  for (int64_t b = 0; b < B; ++b)
    for (int64_t t = 0; t < T; ++t)
      for (int64_t d = 0; d < D; ++d) {
        r.y[at(b, t, d)] = bias.empty() ? 0 : bias[static_cast<size_t>(d)];
        r.dbias[static_cast<size_t>(d)] += dy[at(b, t, d)];
        for (int64_t w = 0; w < W; ++w) {
          const int64_t s = t - (W - 1) + w;
          if (s < 0) continue;
          if (!documents.empty() &&
              documents[static_cast<size_t>(b * T + s)] != documents[static_cast<size_t>(b * T + t)])
            continue;
          const size_t tap = static_cast<size_t>(d * W + w);
          r.y[at(b, t, d)] += weight[tap] * x[at(b, s, d)];
          r.dx[at(b, s, d)] += weight[tap] * dy[at(b, t, d)];
          r.dweight[tap] += dy[at(b, t, d)] * x[at(b, s, d)];
        }
      }
  return r;
}

}  // namespace weft::reference
