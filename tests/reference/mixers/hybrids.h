// Mixers of attention and a recurrence in plain loops: for every token, all tokens before it one by one.
// B batch, T tokens, D model width, H heads, G key/value heads, K head width, E = H K, N state width. n: token of the B T.
#pragma once

#include <algorithm>

#include "weft/nn/mixers/hybrids.h"
#include "weft/trainers/reference.h"

namespace weft::reference {

class HybridMixer {
 public:
  HybridMixer(const MixerArgs& args, const Parameters& p, const Tensor& x_BTD, const TokenData& data)
      : args(args), p(p), s(x_BTD, data), x(values(x_BTD)), D(s.D) {}

  Numbers run(const HymbaOptions& o) {
    const int64_t H = o.heads, G = o.kv_heads ? o.kv_heads : H, K = o.head_dim ? o.head_dim : D / H, E = H * K;
    const int64_t N = o.state ? o.state : K;
    Numbers q = linear(x, D, p, "q"), k = linear(x, D, p, "k"), v = linear(x, D, p, "v");
    if (args.rotary) rotate(q, s, H, K), rotate(k, s, G, K);
    Numbers meta_k, meta_v, first;
    if (o.meta > 0)
      meta_k = parameter(p, "meta_k"), meta_v = parameter(p, "meta_v"), first = parameter(p, "meta_state");
    const double scale = 1 / std::sqrt(static_cast<double>(K));
    Numbers a(at(s.B * s.T * E)), m(a.size());
    for (int64_t n = 0; n < s.B * s.T; ++n)
      for (int64_t h = 0; h < H; ++h) {
        const int64_t b = n / s.T, g = h / (H / G);
        Numbers all = scores(s, H, G, K, q, k, scale, o.window, b, n % s.T, h);
        for (int64_t j = 0; j < o.meta; ++j) {
          double dot = 0;
          for (int64_t c = 0; c < K; ++c) dot += q[at((n * H + h) * K + c)] * meta_k[at((j * G + g) * K + c)];
          all.push_back(scale * dot);
        }
        const Numbers w = softmax(all);
        for (int64_t c = 0; c < K; ++c) {
          double& y = a[at(n * E + h * K + c)];
          for (int64_t j = 0; j < s.T; ++j) y += w[at(j)] * v[at(((b * s.T + j) * G + g) * K + c)];
          for (int64_t j = 0; j < o.meta; ++j) y += w[at(s.T + j)] * meta_v[at((j * G + g) * K + c)];
        }
      }
    const Numbers u = convolved("u", o.kernel), write = convolved("write", o.kernel),
                  read = convolved("read", o.kernel);
    const Numbers step = linear(x, D, p, "step"), bias = parameter(p, "step_bias"), rate = parameter(p, "log_rate"),
                  skip = parameter(p, "skip"), z = linear(x, D, p, "z");
    for (int64_t n = 0; n < s.B * s.T; ++n)
      for (int64_t h = 0; h < H; ++h) {
        auto softplus = [&](int64_t token) { return std::log1p(std::exp(step[at(token * H + h)] + bias[at(h)])); };
        Numbers state = first.empty() ? Numbers(at(N * K)) : Numbers();
        if (!first.empty())
          for (int64_t i = 0; i < N; ++i)
            for (int64_t c = 0; c < K; ++c) state.push_back(first[at(i * E + h * K + c)]);
        for (int64_t token : up_to(n))
          for (int64_t i = 0; i < N; ++i)
            for (int64_t c = 0; c < K; ++c) {
              double& e = state[at(i * K + c)];
              e = e * std::exp(-std::exp(rate[at(h)]) * softplus(token)) +
                  write[at(token * N + i)] * softplus(token) * u[at(token * E + h * K + c)];
            }
        for (int64_t c = 0; c < K; ++c) {
          double y = skip[at(h)] * u[at(n * E + h * K + c)];
          for (int64_t i = 0; i < N; ++i) y += read[at(n * N + i)] * state[at(i * K + c)];
          const double gate = z[at(n * E + h * K + c)];
          m[at(n * E + h * K + c)] = y * gate * sigmoid(gate);
        }
      }
    rms_norm(a, E, parameter(p, "norm_attention.weight"), args.norm_eps);
    rms_norm(m, E, parameter(p, "norm_recurrence.weight"), args.norm_eps);
    for (size_t i = 0; i < a.size(); ++i) a[i] = (a[i] + m[i]) / 2;
    return linear(a, E, p, "out");
  }

  Numbers run(const RatOptions& o) {
    const int64_t H = o.heads, K = o.head_dim ? o.head_dim : D / H, E = H * K;
    const int64_t groups = o.groups ? o.groups : H % 2 == 0 ? 2 : 1;
    Numbers q = spread(linear(x, D, p, "q"), groups, H, K), k = spread(linear(x, D, p, "k"), groups, H, K);
    Numbers v = linear(x, D, p, "v"), f = linear(x, D, p, "gate"), z = linear(x, D, p, "z");
    const Numbers bias = parameter(p, "gate_bias");
    // Means of values and keys within the chunk.
    Numbers means_v(v.size()), means_k(v.size());
    for (int64_t n = 0; n < s.B * s.T; ++n)
      for (int64_t token : up_to(n)) {
        if (chunk_of(token, o.chunk) != chunk_of(n, o.chunk)) continue;
        for (int64_t c = 0; c < E; ++c) {
          const double gate = sigmoid(f[at(token * E + c)] + bias[at(c)]);
          means_v[at(n * E + c)] = gate * means_v[at(n * E + c)] + (1 - gate) * v[at(token * E + c)];
          means_k[at(n * E + c)] = gate * means_k[at(n * E + c)] + (1 - gate) * k[at(token * E + c)];
        }
      }
    if (args.rotary) {  // by the number of the chunk
      Sequence chunks = s;
      for (size_t n = 0; n < chunks.local.size(); ++n)
        chunks.local[n] = static_cast<int32_t>(chunk_of(static_cast<int64_t>(n), o.chunk));
      rotate(q, chunks, H, K), rotate(means_k, chunks, H, K);
    }
    Numbers y(v.size());
    for (int64_t n = 0; n < s.B * s.T; ++n) {
      if (s.document[at(n)] < 0) continue;
      for (int64_t h = 0; h < H; ++h) {
        std::vector<int64_t> seen;
        for (int64_t token : up_to(n))
          if (token == n ||
              (chunk_of(token, o.chunk) < chunk_of(n, o.chunk) && s.local[at(token)] % o.chunk == o.chunk - 1))
            seen.push_back(token);
        Numbers all;
        for (int64_t token : seen) {
          double dot = 0;
          for (int64_t c = 0; c < K; ++c) dot += q[at(n * E + h * K + c)] * means_k[at(token * E + h * K + c)];
          all.push_back(dot / std::sqrt(static_cast<double>(K)));
        }
        const Numbers w = softmax(all);
        for (size_t j = 0; j < seen.size(); ++j)
          for (int64_t c = 0; c < K; ++c) y[at(n * E + h * K + c)] += w[j] * means_v[at(seen[j] * E + h * K + c)];
      }
    }
    for (size_t i = 0; i < y.size(); ++i) y[i] *= sigmoid(z[i]);
    return linear(y, E, p, "out");
  }

 private:
  static size_t at(int64_t i) { return static_cast<size_t>(i); }
  int64_t chunk_of(int64_t n, int64_t length) const { return s.local[at(n)] / length; }

  // The tokens of n's document up to n, in their order.
  std::vector<int64_t> up_to(int64_t n) const {
    std::vector<int64_t> tokens;
    const int64_t row = n / s.T * s.T;
    for (int64_t j = row; j < row + s.T; ++j)
      if (s.sees(n / s.T, n - row, j - row)) tokens.push_back(j);
    std::sort(tokens.begin(), tokens.end(),
              [&](int64_t a, int64_t b) { return s.position[at(a)] < s.position[at(b)]; });
    return tokens;
  }

  // silu of the convolution of a linear map.
  Numbers convolved(const std::string& name, int64_t kernel) const {
    const Numbers in = linear(x, D, p, name), weight = parameter(p, name + "_conv.weight");
    const auto C = static_cast<int64_t>(weight.size()) / kernel;
    Numbers out(in.size());
    for (int64_t n = 0; n < s.B * s.T; ++n)
      for (int64_t token : up_to(n)) {
        const int64_t back = s.local[at(n)] - s.local[at(token)];
        for (int64_t c = 0; c < C && back < kernel; ++c)
          out[at(n * C + c)] += weight[at(c * kernel + kernel - 1 - back)] * in[at(token * C + c)];
      }
    for (double& y : out) y *= sigmoid(y);
    return out;
  }

  // Groups repeated for their heads.
  Numbers spread(const Numbers& in, int64_t groups, int64_t H, int64_t K) const {
    Numbers out;
    for (int64_t n = 0; n < s.B * s.T; ++n)
      for (int64_t h = 0; h < H; ++h)
        for (int64_t c = 0; c < K; ++c) out.push_back(in[at((n * groups + h / (H / groups)) * K + c)]);
    return out;
  }

  const MixerArgs& args;
  const Parameters& p;
  Sequence s;
  Numbers x;
  int64_t D;
};

}  // namespace weft::reference
