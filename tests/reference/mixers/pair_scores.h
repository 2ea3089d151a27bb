// Mixers with scores of pairs, materialised, one token after the other.
#pragma once

#include <numbers>

#include "weft/nn/mixers/pair_scores.h"
#include "weft/trainers/reference.h"

namespace weft::reference {

class PairMixer {
 public:
  PairMixer(const MixerArgs& args, const Parameters& p, const Tensor& x_BTD, const TokenData& data)
      : args(args), p(p), s(x_BTD, data), x(values(x_BTD)), D(s.D) {}

  Numbers run(const TapaOptions& o) {
    sizes(o.heads, o.kv_heads, o.head_dim);
    q = linear(x, D, p, "q"), k = linear(x, D, p, "k"), v = linear(x, D, p, "v");
    auto A = static_cast<int64_t>(std::lround(o.amplitude_share * static_cast<double>(K)));
    return attend(o.window, [&](int64_t b, int64_t i, int64_t j, int64_t h) {
      double amplitude = 0, phase = 0;
      for (int64_t c = 0; c < K; ++c) (c < A ? amplitude : phase) += query(b, i, h, c) * key(b, j, h, c);
      amplitude /= std::sqrt(static_cast<double>(A)), phase /= std::sqrt(static_cast<double>(K - A));
      double distance = i == j ? 0 : std::pow(static_cast<double>(i - j), o.power);
      return amplitude * std::cos(2 * std::numbers::pi * distance * phase);
    });
  }

  Numbers run(const NeuralOptions& o) {
    sizes(o.heads, o.kv_heads, o.head_dim);
    q = linear(x, D, p, "q"), k = linear(x, D, p, "k"), v = linear(x, D, p, "v");
    rotate(q, s, H, K);
    rotate(k, s, G, K);
    const int64_t P = o.hidden ? o.hidden : std::max<int64_t>(K / 32, 2);
    Numbers down_q = parameter(p, "query_down"), bias_q = parameter(p, "query_down_bias");
    Numbers down_k = parameter(p, "key_down"), bias_k = parameter(p, "key_down_bias");
    Numbers in_q = parameter(p, "query_in"), in_k = parameter(p, "key_in"), bias = parameter(p, "in_bias");
    Numbers middle = parameter(p, "middle"), middle_bias = parameter(p, "middle_bias"), last = parameter(p, "last");
    return attend(o.window, [&](int64_t b, int64_t i, int64_t j, int64_t h) {
      Numbers narrow_q = bias_q, narrow_k = bias_k, first = bias, second = middle_bias;
      for (int64_t a = 0; a < P; ++a)
        for (int64_t c = 0; c < K; ++c) {
          narrow_q[at(a)] += query(b, i, h, c) * down_q[at(a * K + c)];
          narrow_k[at(a)] += key(b, j, h, c) * down_k[at(a * K + c)];
        }
      for (int64_t a = 0; a < P; ++a)
        for (int64_t c = 0; c < P; ++c)
          first[at(a)] += narrow_q[at(c)] * in_q[at(a * P + c)] + narrow_k[at(c)] * in_k[at(a * P + c)];
      double sum = 0;
      for (int64_t a = 0; a < P / 2; ++a) {
        for (int64_t c = 0; c < P; ++c) second[at(a)] += std::max(first[at(c)], 0.0) * middle[at(a * P + c)];
        sum += std::max(second[at(a)], 0.0) * last[at(a)];
      }
      return sum;
    });
  }

  Numbers run(const RcmhaOptions& o) {
    sizes(o.heads, o.kv_heads, o.head_dim);
    q = convolved(linear(x, D, p, "q"), "q_conv", H * K, o.kernel);
    k = convolved(linear(x, D, p, "k"), "k_conv", G * K, o.kernel);
    v = convolved(linear(x, D, p, "v"), "v_conv", G * K, o.kernel);
    Numbers u = parameter(p, "content_bias"), t = parameter(p, "position_bias"), w = parameter(p, "position.weight");
    return attend(o.window, [&](int64_t b, int64_t i, int64_t j, int64_t h) {
      double sum = 0;
      for (int64_t c = 0; c < K; ++c) {
        double by_distance = 0;
        for (int64_t m = 0; m < D; ++m) {
          double angle = static_cast<double>(i - j) *
                         std::pow(10000.0, -static_cast<double>(m % (D / 2)) / static_cast<double>(D / 2));
          auto r = static_cast<double>(static_cast<float>(m < D / 2 ? std::sin(angle) : std::cos(angle)));
          by_distance += r * w[at((h * K + c) * D + m)];
        }
        sum += (query(b, i, h, c) + u[at(h * K + c)]) * key(b, j, h, c) +
               (query(b, i, h, c) + t[at(h * K + c)]) * by_distance;
      }
      return sum / std::sqrt(static_cast<double>(K));
    });
  }

  Numbers run(const RelativeBiasOptions& o) {
    sizes(o.heads, o.kv_heads, o.head_dim);
    q = linear(x, D, p, "q"), k = linear(x, D, p, "k"), v = linear(x, D, p, "v");
    Numbers bias = parameter(p, "bias");
    return attend(o.window, [&](int64_t b, int64_t i, int64_t j, int64_t h) {
      int64_t half = o.buckets / 2, bucket = i - j;
      if (bucket >= half) {
        double share = std::log(static_cast<double>(i - j) / static_cast<double>(half)) /
                       std::log(static_cast<double>(o.max_distance) / static_cast<double>(half));
        bucket = std::min(half + static_cast<int64_t>(share * static_cast<double>(half)), o.buckets - 1);
      }
      return dot(b, i, j, h) / std::sqrt(static_cast<double>(K)) + bias[at(bucket * H + h)];
    });
  }

  // A ridge regression per query, solved with Sigma and its Cholesky factor.
  Numbers run(const LocalLinearOptions& o) {
    sizes(o.heads, o.kv_heads, o.head_dim);
    q = linear(x, D, p, "q"), k = linear(x, D, p, "k"), v = linear(x, D, p, "v");
    rms_norm(q, K, {}, args.norm_eps), rms_norm(k, K, {}, args.norm_eps);
    if (args.rotary) rotate(q, s, H, K), rotate(k, s, G, K);
    const Numbers ridge = parameter(p, "ridge");
    Numbers y = mix(s, H, G, K, v, [&](int64_t b, int64_t i, int64_t h) {
      Numbers w(at(s.T), 0.0), sigma(at(K * K), 0.0), rho(at(K), 0.0);
      auto z = [&](int64_t j, int64_t c) { return key(b, j, h, c) - query(b, i, h, c); };
      for (int64_t c = 0; c < K; ++c) sigma[at(c * K + c)] = std::log1p(std::exp(ridge[at(h)]));
      for (int64_t j = 0; j < s.T; ++j) {
        if (!s.sees(b, i, j)) continue;
        w[at(j)] = std::exp(dot(b, i, j, h) / std::sqrt(static_cast<double>(K)));
        for (int64_t c = 0; c < K; ++c) {
          rho[at(c)] += w[at(j)] * z(j, c);
          for (int64_t e = 0; e < K; ++e) sigma[at(c * K + e)] += w[at(j)] * z(j, c) * z(j, e);
        }
      }
      cholesky_solve(sigma, rho);
      double total = 0;
      for (int64_t j = 0; j < s.T; ++j) {
        double along = 0;
        for (int64_t c = 0; c < K; ++c) along += z(j, c) * rho[at(c)];
        total += w[at(j)] *= 1 - along;
      }
      for (double& a : w) a = total > 0 ? a / total : 0;
      return w;
    });
    return linear(y, H * K, p, "out");
  }

  Numbers run(const MultiTokenOptions& o) {
    sizes(o.heads, o.heads, o.head_dim);
    q = linear(x, D, p, "q"), k = linear(x, D, p, "k"), v = linear(x, D, p, "v");
    rotate(q, s, H, K);
    rotate(k, s, H, K);
    const int64_t T = s.T;
    Numbers y(at(s.B * T * H * K), 0.0);
    for (int64_t b = 0; b < s.B; ++b) {
      Numbers a(at(H * T * T), 0.0);
      for (int64_t h = 0; h < H; ++h)
        for (int64_t i = 0; i < T; ++i)
          for (int64_t j = 0; j < T; ++j)
            if (s.sees(b, i, j, o.window))
              a[at((h * T + i) * T + j)] = dot(b, i, j, h) / std::sqrt(static_cast<double>(K));
      a = convolved_pairs(o, a, "kernel", b);
      if (o.mixes_scores) a = mixed(a, parameter(p, "score_mix"), H, false);
      for (int64_t r = 0; r < H * T; ++r) {
        Numbers row(at(T), -std::numeric_limits<double>::infinity());
        for (int64_t j = 0; j < T; ++j)
          if (s.sees(b, r % T, j, o.window)) row[at(j)] = a[at(r * T + j)];
        row = softmax(row);
        std::copy(row.begin(), row.end(), a.begin() + r * T);
      }
      if (o.has_weight_conv) {
        a = convolved_pairs(o, a, "weight_kernel", b);
        for (int64_t r = 0; r < H * T; ++r)
          for (int64_t j = 0; j < T; ++j)
            if (!s.sees(b, r % T, j, o.window)) a[at(r * T + j)] = 0;
      }
      if (int64_t group = o.group ? o.group : H; group > 1) a = mixed(a, parameter(p, "weight_mix"), group, true);
      for (int64_t h = 0; h < H; ++h)
        for (int64_t i = 0; i < T; ++i)
          for (int64_t j = 0; j < T; ++j)
            for (int64_t c = 0; c < K; ++c)
              y[at(((b * T + i) * H + h) * K + c)] += a[at((h * T + i) * T + j)] * v[at(((b * T + j) * H + h) * K + c)];
    }
    rms_norm(y, K, parameter(p, "norm.weight"), args.norm_eps);
    if (o.has_gate) {
      Numbers gate = linear(y, K, p, "gate");
      for (size_t i = 0; i < y.size(); ++i) y[i] *= sigmoid(gate[i / at(K)]);
    }
    return linear(y, H * K, p, "out");
  }

 private:
  static size_t at(int64_t i) { return static_cast<size_t>(i); }
  void sizes(int64_t heads, int64_t kv_heads, int64_t head_dim) {
    H = heads, G = kv_heads ? kv_heads : heads, K = head_dim ? head_dim : D / heads;
  }
  double query(int64_t b, int64_t i, int64_t h, int64_t c) const { return q[at(((b * s.T + i) * H + h) * K + c)]; }
  double key(int64_t b, int64_t j, int64_t h, int64_t c) const {
    return k[at(((b * s.T + j) * G + h / (H / G)) * K + c)];
  }
  double dot(int64_t b, int64_t i, int64_t j, int64_t h) const {
    double sum = 0;
    for (int64_t c = 0; c < K; ++c) sum += query(b, i, h, c) * key(b, j, h, c);
    return sum;
  }

  // A becomes its Cholesky factor L, b the solution of L L^T x = b.
  void cholesky_solve(Numbers& a, Numbers& b) const {
    for (int64_t r = 0; r < K; ++r)
      for (int64_t c = 0; c <= r; ++c) {
        double sum = a[at(r * K + c)];
        for (int64_t m = 0; m < c; ++m) sum -= a[at(r * K + m)] * a[at(c * K + m)];
        a[at(r * K + c)] = r == c ? std::sqrt(sum) : sum / a[at(c * K + c)];
      }
    for (int64_t r = 0; r < K; ++r) {
      for (int64_t m = 0; m < r; ++m) b[at(r)] -= a[at(r * K + m)] * b[at(m)];
      b[at(r)] /= a[at(r * K + r)];
    }
    for (int64_t r = K - 1; r >= 0; --r) {
      for (int64_t m = r + 1; m < K; ++m) b[at(r)] -= a[at(m * K + r)] * b[at(m)];
      b[at(r)] /= a[at(r * K + r)];
    }
  }

  Numbers attend(int64_t window, const std::function<double(int64_t, int64_t, int64_t, int64_t)>& score) const {
    Numbers y = mix(s, H, G, K, v, [&](int64_t b, int64_t i, int64_t h) {
      Numbers a(at(s.T), -std::numeric_limits<double>::infinity());
      for (int64_t j = 0; j < s.T; ++j)
        if (s.sees(b, i, j, window)) a[at(j)] = score(b, i, j, h);
      return softmax(a);
    });
    return linear(y, H * K, p, "out");
  }

  // Causal, per channel, within the document.
  Numbers convolved(const Numbers& in, const std::string& name, int64_t channels, int64_t kernel) const {
    Numbers w = parameter(p, name), out(in.size(), 0.0);
    for (int64_t b = 0; b < s.B; ++b)
      for (int64_t t = 0; t < s.T; ++t)
        for (int64_t n = 0; n < kernel && n <= t; ++n) {
          if (!s.sees(b, t, t - n)) continue;
          for (int64_t c = 0; c < channels; ++c)
            out[at((b * s.T + t) * channels + c)] +=
                w[at(c * kernel + kernel - 1 - n)] * in[at((b * s.T + t - n) * channels + c)];
        }
    return out;
  }

  // a [H, T, T]
  Numbers convolved_pairs(const MultiTokenOptions& o, const Numbers& a, const std::string& name, int64_t b) const {
    const int64_t T = s.T, Q = o.query_kernel, P = o.key_kernel;
    Numbers w = parameter(p, name), out(a.size(), 0.0);
    for (int64_t h = 0; h < H; ++h)
      for (int64_t i = 0; i < T; ++i)
        for (int64_t j = 0; j < T; ++j)
          for (int64_t back = 0; back < Q && back <= i; ++back) {
            if (!s.sees(b, i, i - back)) continue;
            for (int64_t n = 0; n < P; ++n) {
              int64_t other = j + n - (P - 1) / 2;
              if (other < 0 || other >= T) continue;
              out[at((h * T + i) * T + j)] +=
                  w[at((h * Q + Q - 1 - back) * P + n)] * a[at((h * T + i - back) * T + other)];
            }
          }
    return out;
  }

  // Heads of each group: out_h = sum_n w[n, h] a_n (from_rows) or w[h, n] a_n.
  Numbers mixed(const Numbers& a, const Numbers& w, int64_t group, bool from_rows) const {
    const int64_t pairs = s.T * s.T;
    Numbers out(a.size(), 0.0);
    for (int64_t h = 0; h < H; ++h)
      for (int64_t n = 0; n < group; ++n) {
        int64_t base = h / group * group, mine = h % group;
        double weight = w[at(h / group * group * group + (from_rows ? n * group + mine : mine * group + n))];
        for (int64_t e = 0; e < pairs; ++e) out[at(h * pairs + e)] += weight * a[at((base + n) * pairs + e)];
      }
    return out;
  }

  MixerArgs args;
  const Parameters& p;
  Sequence s;
  Numbers x, q, k, v;
  int64_t D, H = 1, G = 1, K = 1;
};

}  // namespace weft::reference
