// Rotary position embedding in float64, one pair after the other.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace weft::reference {

// x [tokens, heads, K]; frequencies [R / 2] in radians per position, R <= K channels are rotated. direction -1:
// backward.
inline std::vector<double> rotary(const std::vector<double>& x, const std::vector<int64_t>& positions, int64_t heads,
                                  int64_t K, const std::vector<double>& frequencies, double amplitude, bool interleaved,
                                  double direction) {
  std::vector<double> y = x;
  const int64_t pairs = static_cast<int64_t>(frequencies.size());
  for (size_t t = 0; t < positions.size(); ++t)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t m = 0; m < pairs; ++m) {
        double angle = direction * static_cast<double>(positions[t]) * frequencies[static_cast<size_t>(m)];
        size_t head = (t * static_cast<size_t>(heads) + static_cast<size_t>(h)) * static_cast<size_t>(K);
        size_t a = head + static_cast<size_t>(interleaved ? 2 * m : m),
               b = head + static_cast<size_t>(interleaved ? 2 * m + 1 : m + pairs);
        y[a] = amplitude * (x[a] * std::cos(angle) - x[b] * std::sin(angle));
        y[b] = amplitude * (x[a] * std::sin(angle) + x[b] * std::cos(angle));
      }
  return y;
}

}  // namespace weft::reference
