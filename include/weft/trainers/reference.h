// Plain float64 loops for the reference of a mixer (weft/trainers/cli.h): linear maps, norms, rotation, masks, attention. No operation
// of the library is used here, so that a fault in one cannot hide. tools/examples/own_mixer.cpp has a reference made of them.
// B batch, T tokens, D model width, H heads, G key/value heads, K head width. Numbers are row-major doubles.
#pragma once

#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "weft/core/error.h"
#include "weft/nn/mixer.h"

namespace weft::reference {

using Numbers = std::vector<double>;
using Parameters = std::map<std::string, Tensor>;

inline Numbers values(const Tensor& f64) { return f64.defined() ? f64.to_vector<double>() : Numbers(); }
inline Numbers parameter(const Parameters& all, const std::string& name) {
  auto found = all.find(name);
  WEFT_CHECK(found != all.end(), str("reference: no parameter ", name), "name it as the mixer does");
  return values(found->second);
}

// What is known of the tokens of x [B, T, D], as plain numbers.
struct Sequence {
  int64_t B, T, D;
  std::vector<int32_t> position, document, local;  // [B, T]; local: position within the document

  Sequence(const Tensor& x_BTD, const TokenData& data)
      : B(x_BTD.size(0)), T(x_BTD.size(1)), D(x_BTD.size(2)), position(data.positions.to_vector<int32_t>()) {
    document =
        data.documents.defined() ? data.documents.to_vector<int32_t>() : std::vector<int32_t>(position.size(), 0);
    local = data.document_positions.defined() ? data.document_positions.to_vector<int32_t>() : position;
  }
  // Whether query i of row b sees key j: causal, its own document, the last `window` tokens (0: all). Padding sees and is seen by nobody.
  bool sees(int64_t b, int64_t i, int64_t j, int64_t window = 0) const {
    auto q = static_cast<size_t>(b * T + i), k = static_cast<size_t>(b * T + j);
    return position[k] <= position[q] && document[k] == document[q] && document[q] >= 0 &&
           (window == 0 || position[q] - position[k] < window);
  }
};

// y = x W^T + bias for rows of x; W [out, in].
inline Numbers linear(const Numbers& x, int64_t in, const Numbers& weight, const Numbers& bias = {}) {
  auto rows = static_cast<int64_t>(x.size()) / in, out = static_cast<int64_t>(weight.size()) / in;
  Numbers y(static_cast<size_t>(rows * out));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t o = 0; o < out; ++o) {
      double sum = bias.empty() ? 0 : bias[static_cast<size_t>(o)];
      for (int64_t i = 0; i < in; ++i)
        sum += x[static_cast<size_t>(r * in + i)] * weight[static_cast<size_t>(o * in + i)];
      y[static_cast<size_t>(r * out + o)] = sum;
    }
  return y;
}
inline Numbers linear(const Numbers& x, int64_t in, const Parameters& all, const std::string& name) {
  return linear(x, in, parameter(all, name + ".weight"),
                all.count(name + ".bias") ? parameter(all, name + ".bias") : Numbers());
}

// Rows of `width`, divided by their root mean square and multiplied by `gain` (empty: ones).
inline void rms_norm(Numbers& x, int64_t width, const Numbers& gain, double eps) {
  for (size_t r = 0; r < x.size(); r += static_cast<size_t>(width)) {
    double sum = 0;
    for (int64_t i = 0; i < width; ++i) sum += x[r + static_cast<size_t>(i)] * x[r + static_cast<size_t>(i)];
    double scale = 1 / std::sqrt(sum / static_cast<double>(width) + eps);
    for (int64_t i = 0; i < width; ++i)
      x[r + static_cast<size_t>(i)] *= scale * (gain.empty() ? 1 : gain[static_cast<size_t>(i)]);
  }
}

// Rotary phases in half-split layout on x [B, T, H, K], by the position within the document; cos and sin are rounded to f32, as
// the library's tables are.
inline void rotate(Numbers& x, const Sequence& s, int64_t heads, int64_t width, double base = 10000) {
  for (int64_t row = 0; row < s.B * s.T; ++row)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t m = 0; m < width / 2; ++m) {
        double angle = s.local[static_cast<size_t>(row)] *
                       std::pow(base, -2.0 * static_cast<double>(m) / static_cast<double>(width));
        double &a = x[static_cast<size_t>((row * heads + h) * width + m)],
               &b = x[static_cast<size_t>((row * heads + h) * width + m + width / 2)];
        double a0 = a, b0 = b, cos = static_cast<float>(std::cos(angle)), sin = static_cast<float>(std::sin(angle));
        a = a0 * cos - b0 * sin;
        b = a0 * sin + b0 * cos;
      }
}

// Weights of all keys for one query from their scores (masked: -infinity).
inline Numbers softmax(const Numbers& scores) {
  double top = -std::numeric_limits<double>::infinity(), sum = 0;
  for (double s : scores) top = std::max(top, s);
  Numbers w(scores.size(), 0.0);
  if (top == -std::numeric_limits<double>::infinity()) return w;
  for (size_t j = 0; j < scores.size(); ++j) sum += w[j] = std::exp(scores[j] - top);
  for (double& x : w) x /= sum;
  return w;
}

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// out[b, i, h] = sum_j weights(b, i, h)[j] v[b, j, g(h)]: v [B, T, G, V] -> [B, T, H, V].
inline Numbers mix(const Sequence& s, int64_t heads, int64_t kv_heads, int64_t width, const Numbers& v,
                   const std::function<Numbers(int64_t b, int64_t i, int64_t h)>& weights) {
  Numbers out(static_cast<size_t>(s.B * s.T * heads * width), 0.0);
  for (int64_t b = 0; b < s.B; ++b)
    for (int64_t i = 0; i < s.T; ++i)
      for (int64_t h = 0; h < heads; ++h) {
        Numbers w = weights(b, i, h);
        for (int64_t j = 0; j < s.T; ++j)
          for (int64_t c = 0; c < width; ++c)
            out[static_cast<size_t>(((b * s.T + i) * heads + h) * width + c)] +=
                w[static_cast<size_t>(j)] *
                v[static_cast<size_t>(((b * s.T + j) * kv_heads + h / (heads / kv_heads)) * width + c)];
      }
  return out;
}

// scale * q_i . k_j for visible keys of a query, -infinity for others: q [B, T, H, K], k [B, T, G, K].
inline Numbers scores(const Sequence& s, int64_t heads, int64_t kv_heads, int64_t width, const Numbers& q,
                      const Numbers& k, double scale, int64_t window, int64_t b, int64_t i, int64_t h) {
  Numbers out(static_cast<size_t>(s.T), -std::numeric_limits<double>::infinity());
  for (int64_t j = 0; j < s.T; ++j) {
    if (!s.sees(b, i, j, window)) continue;
    double dot = 0;
    for (int64_t c = 0; c < width; ++c)
      dot += q[static_cast<size_t>(((b * s.T + i) * heads + h) * width + c)] *
             k[static_cast<size_t>(((b * s.T + j) * kv_heads + h / (heads / kv_heads)) * width + c)];
    out[static_cast<size_t>(j)] = scale * dot;
  }
  return out;
}

}  // namespace weft::reference
