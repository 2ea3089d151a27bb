// Mixers of attention and a recurrence in plain loops: for every token, all tokens before it one by one.
// B batch, T tokens, D model width, H heads, G key/value heads, K head width, E = H K, N state width. n: token of the B T.
#pragma once

#include <algorithm>
#include <limits>
#include <map>
#include <optional>

#include "weft/nn/mixers/hybrids.h"
#include "weft/trainers/reference.h"

namespace weft::reference {

class HybridMixer {
 public:
  HybridMixer(const MixerArgs& args, const Parameters& p, const Tensor& x_BTD, const TokenData& data)
      : args(args), p(p), s(x_BTD, data), x(values(x_BTD)), D(s.D) {}

  // NAtS-L: parameters whose type.weight makes shares of softmax. Those of `p` choose; a chosen type is 1 or 0 plus how far its share moves.
  std::optional<Parameters> of_shares;

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

  Numbers run(const NatsOptions& o) {
    const int64_t H = o.heads, G = o.kv_heads ? o.kv_heads : H, K = o.head_dim ? o.head_dim : D / H;
    Numbers q = linear(x, D, p, "q"), k = linear(x, D, p, "k"), v = linear(x, D, p, "v");
    if (args.rotary) rotate(q, s, H, K), rotate(k, s, G, K);
    const Numbers logits = linear(x, D, p, "type"), bias = parameter(p, "type_bias");
    enum Type { global, local, sliding };
    auto type = [&](int64_t n, int64_t g) {
      int best = 0;
      auto logit = [&](int c) { return logits[at((n * G + g) * 3 + c)] + bias[at(g * 3 + c)]; };
      for (int c = 1; c < 3; ++c)
        if (logit(c) > logit(best)) best = c;
      return static_cast<Type>(best);
    };
    auto weights = [&](int64_t b, int64_t i, int64_t h) {
      Numbers all = scores(s, H, G, K, q, k, 1 / std::sqrt(static_cast<double>(K)), 0, b, i, h);
      const int64_t g = h / (H / G), first = b * s.T;
      for (int64_t j = 0; j < s.T; ++j) {
        if (!s.sees(b, i, j) || s.position[at(first + i)] - s.position[at(first + j)] < o.window) continue;
        bool is_seen = type(first + j, g) == global;
        if (type(first + j, g) == local) {
          is_seen = true;
          for (int64_t between = 0; between < s.T; ++between)
            if (s.sees(b, i, between) && s.position[at(first + between)] > s.position[at(first + j)])
              is_seen = is_seen && type(first + between, g) != global;
        }
        if (!is_seen) all[at(j)] = -std::numeric_limits<double>::infinity();
      }
      return softmax(all);
    };
    return linear(mix(s, H, G, K, v, weights), H * K, p, "out");
  }

  Numbers run(const NatsLinearOptions& o) {
    const int64_t H = o.heads, K = o.head_dim ? o.head_dim : 3 * D / 4 / H, V = o.value_dim ? o.value_dim : 2 * K;
    const int64_t N = o.softmax_heads ? o.softmax_heads : K % 2 == 0 && V % 2 == 0 ? 2 * H : H;
    const int64_t KN = H * K / N, VN = H * V / N, E = H * V;
    const Numbers q = convolved("q", o.kernel), k = convolved("k", o.kernel), v = convolved("v", o.kernel);
    const Numbers logits = linear(x, D, p, "type");
    // Of the chunk of a token that n sees whole: how far softmax is before linear.
    auto lead = [&](const Numbers& of, int64_t n, int64_t token, int64_t h) {
      double sum = 0, count = 0;
      for (int64_t other : up_to(n))
        if (chunk_of(other, o.chunk) == chunk_of(token, o.chunk))
          sum += of[at((other * H + h) * 2)] - of[at((other * H + h) * 2 + 1)], ++count;
      return sum / count;
    };
    auto is_softmax = [&](int64_t n, int64_t token, int64_t h) { return lead(logits, n, token, h) >= 0; };
    const Numbers moved = of_shares ? linear(x, D, *of_shares, "type") : Numbers();
    auto change = [&](int64_t n, int64_t token, int64_t h) {  // of the chunk's share of softmax
      return of_shares ? sigmoid(lead(moved, n, token, h)) - sigmoid(lead(logits, n, token, h)) : 0;
    };
    Numbers a(at(s.B * s.T * E)), m(a.size());
    Numbers qn = q, kn = k;
    rms_norm(qn, KN, parameter(p, "q_norm.weight"), args.norm_eps);
    rms_norm(kn, KN, parameter(p, "k_norm.weight"), args.norm_eps);
    for (int64_t n = 0; n < s.B * s.T; ++n)
      for (int64_t h = 0; h < N; ++h) {
        std::vector<int64_t> seen;
        Numbers all;
        for (int64_t token : up_to(n)) {
          const bool is_own = chunk_of(token, o.chunk) == chunk_of(n, o.chunk);
          if (!is_own && !is_softmax(n, token, h / (N / H))) continue;
          double dot = 0;
          for (int64_t c = 0; c < KN; ++c) dot += qn[at((n * N + h) * KN + c)] * kn[at((token * N + h) * KN + c)];
          seen.push_back(token);
          all.push_back(dot / std::sqrt(static_cast<double>(KN)) +
                        (is_own ? 0 : std::log1p(change(n, token, h / (N / H)))));
        }
        const Numbers w = softmax(all);
        for (size_t j = 0; j < seen.size(); ++j)
          for (int64_t c = 0; c < VN; ++c) a[at((n * N + h) * VN + c)] += w[j] * v[at((seen[j] * N + h) * VN + c)];
      }
    const Numbers strength = linear(x, D, p, "strength"), decay = linear(x, D, p, "decay"),
                  rate = parameter(p, "log_rate"), bias = parameter(p, "step_bias");
    Numbers ql = q, kl = k;
    l2_norm(ql, K), l2_norm(kl, K);
    for (int64_t n = 0; n < s.B * s.T; ++n)
      for (int64_t h = 0; h < H; ++h) {
        Numbers state(at(K * V)), decayed(state.size());  // with the chunk's writes, and with its decay alone
        int64_t before = -1;
        for (int64_t token : up_to(n)) {
          if (before >= 0 && chunk_of(before, o.chunk) != chunk_of(token, o.chunk)) {
            const double kept = (is_softmax(n, before, h) ? 0 : 1) - change(n, before, h);
            for (size_t i = 0; i < state.size(); ++i) state[i] = decayed[i] + kept * (state[i] - decayed[i]);
            decayed = state;
          }
          before = token;
          const double step = std::log1p(std::exp(decay[at(token * H + h)] + bias[at(h)])),
                       keep = std::exp(-std::exp(rate[at(h)]) * step);
          for (double& e : state) e *= keep;
          for (double& e : decayed) e *= keep;
          for (int64_t c = 0; c < V; ++c) {
            double answer = 0;
            for (int64_t i = 0; i < K; ++i) answer += kl[at((token * H + h) * K + i)] * state[at(i * V + c)];
            const double write = sigmoid(strength[at(token * H + h)]) * (v[at(token * E + h * V + c)] - answer);
            for (int64_t i = 0; i < K; ++i) state[at(i * V + c)] += kl[at((token * H + h) * K + i)] * write;
          }
        }
        for (int64_t c = 0; c < V; ++c)
          for (int64_t i = 0; i < K; ++i)
            m[at(n * E + h * V + c)] +=
                ql[at((n * H + h) * K + i)] * state[at(i * V + c)] / std::sqrt(static_cast<double>(K));
      }
    rms_norm(a, V, parameter(p, "norm_softmax.weight"), args.norm_eps);
    rms_norm(m, V, parameter(p, "norm_linear.weight"), args.norm_eps);
    const Numbers shares = linear(q, H * K, p, "share"), gate = linear(x, D, p, "gate");
    for (size_t i = 0; i < a.size(); ++i) {
      const size_t head = i / static_cast<size_t>(V);
      const double share = sigmoid(shares[2 * head] - shares[2 * head + 1]);
      a[i] = (share * a[i] + (1 - share) * m[i]) * gate[i] * sigmoid(gate[i]);
    }
    return linear(a, E, p, "out");
  }

  // Every layer chooses by attention of its own.
  Numbers run(const HySparseOptions& o) {
    const int64_t H = o.heads, G = o.kv_heads ? o.kv_heads : H, K = o.head_dim ? o.head_dim : D / H, R = H / G;
    Numbers q = linear(x, D, p, "q"), far_k = linear(x, D, p, "block_k"), near_k = linear(x, D, p, "k");
    const Numbers far_v = linear(x, D, p, "block_v"), near_v = linear(x, D, p, "v"), gates = linear(x, D, p, "gates");
    if (args.rotary) rotate(q, s, H, K), rotate(far_k, s, G, K), rotate(near_k, s, G, K);
    const double scale = 1 / std::sqrt(static_cast<double>(K));
    auto far_weights = [&](int64_t b, int64_t i, int64_t h) {
      std::map<int64_t, double> largest;  // weight by block
      for (int64_t other = h / R * R; other < (h / R + 1) * R; ++other) {
        const Numbers w = softmax(scores(s, H, G, K, q, far_k, scale, 0, b, i, other));
        for (int64_t j = 0; j < s.T; ++j)
          if (s.sees(b, i, j)) {
            double& most = largest[chunk_of(b * s.T + j, o.block)];
            most = std::max(most, w[at(j)]);
          }
      }
      std::vector<std::pair<double, int64_t>> order;
      for (const auto& [block, weight] : largest) order.emplace_back(-weight, block);
      std::sort(order.begin(), order.end());
      order.resize(std::min(order.size(), at(o.blocks)));
      Numbers all = scores(s, H, G, K, q, far_k, scale, 0, b, i, h);
      for (int64_t j = 0; j < s.T; ++j) {
        bool is_chosen = false;
        for (const auto& chosen : order) is_chosen = is_chosen || chosen.second == chunk_of(b * s.T + j, o.block);
        if (!is_chosen) all[at(j)] = -std::numeric_limits<double>::infinity();
      }
      return softmax(all);
    };
    auto near_weights = [&](int64_t b, int64_t i, int64_t h) {
      return softmax(scores(s, H, G, K, q, near_k, scale, o.window, b, i, h));
    };
    Numbers y = mix(s, H, G, K, far_v, far_weights);
    const Numbers near = mix(s, H, G, K, near_v, near_weights);
    for (size_t i = 0; i < y.size(); ++i) {
      const size_t n = i / at(H * K), h = i / at(K) % at(H);
      y[i] = sigmoid(gates[n * at(2 * H) + h]) * y[i] + sigmoid(gates[n * at(2 * H) + at(H) + h]) * near[i];
    }
    return linear(y, H * K, p, "out");
  }

  Numbers run(const FluxOptions& o) {
    const int64_t H = o.heads, G = o.kv_heads ? o.kv_heads : H, K = o.head_dim ? o.head_dim : D / H;
    Numbers q = linear(x, D, p, "q"), k = linear(x, D, p, "k"), v = linear(x, D, p, "v");
    if (args.rotary) rotate(q, s, H, K), rotate(k, s, G, K);
    auto weights = [&](int64_t b, int64_t i, int64_t h) {
      Numbers mean(at(D));
      double count = 0;
      for (int64_t token : up_to(b * s.T + i))
        if (s.local[at(token)] < o.prompt) {
          for (int64_t c = 0; c < D; ++c) mean[at(c)] += x[at(token * D + c)];
          ++count;
        }
      for (double& c : mean) c /= std::max(count, 1.0);
      Numbers hidden = linear(mean, D, p, "router.up");
      for (double& c : hidden) c *= sigmoid(c);
      const Numbers logits = linear(hidden, o.hidden, p, "router.down");
      const bool sees_all = logits[0] >= logits[1];
      return softmax(scores(s, H, G, K, q, k, 1 / std::sqrt(static_cast<double>(K)), sees_all ? 0 : o.window, b, i, h));
    };
    return linear(mix(s, H, G, K, v, weights), H * K, p, "out");
  }

  Numbers run(const ReplacementOptions& o) {
    const int64_t H = o.heads, G = o.kv_heads ? o.kv_heads : H, K = o.head_dim ? o.head_dim : D / H;
    const Numbers v = linear(x, D, p, "v");
    if (o.kind == ReplacementKind::identity) {
      auto itself = [&](int64_t, int64_t i, int64_t) {
        Numbers w(at(s.T));
        w[at(i)] = 1;
        return w;
      };
      return linear(mix(s, H, G, K, v, itself), H * K, p, "out");
    }
    Numbers q = linear(x, D, p, "q"), k = linear(x, D, p, "k");
    if (args.rotary && o.position == MixerPosition::model) rotate(q, s, H, K), rotate(k, s, G, K);
    for (Numbers* features : {&q, &k})
      for (double& f : *features) f = f > 0 ? f + 1 : std::exp(f);
    auto weights = [&](int64_t b, int64_t i, int64_t h) {
      Numbers w = scores(s, H, G, K, q, k, 1, o.window, b, i, h);
      double sum = 1e-8;
      for (double& weight : w) weight = std::isinf(weight) ? 0 : weight, sum += weight;
      for (double& weight : w) weight /= sum;
      return w;
    };
    return linear(mix(s, H, G, K, v, weights), H * K, p, "out");
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

  static void l2_norm(Numbers& rows, int64_t width) {
    for (size_t r = 0; r < rows.size(); r += at(width)) {
      double sum = 1e-6;
      for (size_t c = 0; c < at(width); ++c) sum += rows[r + c] * rows[r + c];
      for (size_t c = 0; c < at(width); ++c) rows[r + c] /= std::sqrt(sum);
    }
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
