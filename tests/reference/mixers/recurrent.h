// Recurrent mixers in plain loops: the state of every head, token after token.
// B batch, T tokens, D model width, H heads, G key heads, K key width, V value width. n: token of the B T.
#pragma once

#include "weft/nn/mixers/recurrent.h"
#include "weft/trainers/reference.h"

namespace weft::reference {

class RecurrentMixer {
 public:
  RecurrentMixer(const MixerArgs& args, const Parameters& p, const Tensor& x_BTD, const TokenData& data)
      : args(args), p(p), s(x_BTD, data), x(values(x_BTD)), D(s.D), N(s.B * s.T) {}

  Numbers run(const GlaOptions& o) {
    const int64_t H = o.heads, K = D / 2 / H, V = D / H;
    const Numbers q = silu_of("q", o.kernel), k = silu_of("k", o.kernel), v = silu_of("v", o.kernel);
    Numbers z = linear(linear(x, D, p, "decay_down"), o.gate_rank, p, "decay_up");
    Numbers y = recur({.H = H, .G = H, .K = K, .V = V, .q = q, .k = k, .v = v, .scale = root(K)},
                      [&](int64_t n, int64_t h, int64_t c, int64_t) {
                        return std::max(std::log(sigmoid(z[at((n * H + h) * K + c)])) / 16, o.clamp_min);
                      });
    rms_norm(y, V, parameter(p, "head_norm.weight"), 1e-5);
    return linear(times(y, each(of("gate"), silu)), D, p, "out");
  }

  Numbers run(const DeltaOptions& o) {
    const bool is_per_head = o.decay == DeltaDecay::head, is_per_channel = o.decay == DeltaDecay::channel;
    const int64_t H = o.heads, G = o.key_heads ? o.key_heads : H;
    const int64_t K = o.head_dim ? o.head_dim : (is_per_head ? 3 * D / 4 : D) / H;
    const int64_t V = o.value_dim ? o.value_dim : is_per_head ? 2 * K : K;
    auto made = [&](const std::string& name) { return each(convolved(name, o.kernel), silu); };
    Numbers beta = each(of("strength"), sigmoid);
    for (double& b : beta) b *= o.has_negative_eigenvalues ? 2 : 1;
    Numbers z, rate, bias, gate;
    if (is_per_head) z = of("decay"), gate = each(of("gate"), silu);
    if (is_per_channel) {
      z = linear(of("decay_down"), V, p, "decay");
      gate = each(linear(of("gate_down"), V, p, "gate"), sigmoid);
    }
    if (!z.empty()) rate = parameter(p, "log_rate"), bias = parameter(p, "step_bias");
    auto log_decay = [&](int64_t n, int64_t h, int64_t c, int64_t) {
      if (is_per_head) return -std::exp(rate[at(h)]) * softplus(z[at(n * H + h)] + bias[at(h)]);
      if (!is_per_channel) return 0.0;
      const double step = z[at((n * H + h) * K + c)] + bias[at(h * K + c)];
      return o.has_safe_gate ? -5 * sigmoid(std::exp(rate[at(h)]) * step) : -std::exp(rate[at(h)]) * softplus(step);
    };
    Numbers y = recur({.H = H,
                       .G = G,
                       .K = K,
                       .V = V,
                       .q = unit(made("q"), K),
                       .k = unit(made("k"), K),
                       .v = made("v"),
                       .beta = beta,
                       .scale = root(K)},
                      log_decay);
    rms_norm(y, V, parameter(p, "head_norm.weight"), o.norm_eps);
    return linear(gate.empty() ? y : times(y, gate), H * V, p, "out");
  }

  // As sums over all pairs of tokens.
  Numbers run(const LinearAttentionOptions& o) {
    const bool is_elu = o.feature_map == FeatureMap::elu1;
    const int64_t H = o.heads, K = o.head_dim ? o.head_dim : D / H;
    Numbers q = silu_of("q", o.kernel), k = silu_of("k", o.kernel), v = silu_of("v", o.kernel);
    for (Numbers* side : {&q, &k}) {
      if (is_elu) *side = each(*side, elu1);
      else standardise(*side, K);
    }
    Numbers y = mix(s, H, H, K, v, [&](int64_t b, int64_t i, int64_t h) {
      Numbers w = scores(s, H, H, K, q, k, 1, 0, b, i, h);
      double sum = 0;
      for (double& a : w) sum += a = std::isinf(a) ? 0 : is_elu ? a : 1 + a + a * a / 2;
      for (double& a : w) a /= sum + 1e-6;
      return w;
    });
    if (is_elu) rms_norm(y, K, parameter(p, "head_norm.weight"), 1e-5);
    return linear(y, H * K, p, "out");
  }

  Numbers run(const RetnetOptions& o) {
    const int64_t H = o.heads, K = D / H;
    Numbers q = silu_of("q", o.kernel), k = silu_of("k", o.kernel), v = silu_of("v", o.kernel);
    rotate(q, s, H, K), rotate(k, s, H, K);
    Numbers y = recur(
        {.H = H, .G = H, .K = K, .V = 2 * K, .q = q, .k = k, .v = v, .scale = root(K)},
        [&](int64_t, int64_t h, int64_t, int64_t) { return std::log(1 - std::pow(2.0, -5 - static_cast<double>(h))); });
    rms_norm(y, 2 * K, parameter(p, "head_norm.weight"), 1e-5);
    return linear(times(y, each(of("gate"), silu)), 2 * D, p, "out");
  }

  Numbers run(const LightningOptions& o) {
    const int64_t H = o.heads, K = D / H;
    const double L = static_cast<double>(args.layers), l = static_cast<double>(args.layer);
    auto made = [&](const std::string& name) { return each(convolved(name, o.kernel), silu); };
    Numbers y = recur({.H = H, .G = H, .K = K, .V = K, .q = made("q"), .k = made("k"), .v = made("v")},
                      [&](int64_t, int64_t h, int64_t, int64_t) {
                        const double share = static_cast<double>(h) / static_cast<double>(H);
                        if (o.decay == LightningDecay::linear) return -8 * share * (1 - l / L);
                        return -std::pow(2.0, -8 * share - 8 / static_cast<double>(H)) * (1 - l / (L - 1) + 1e-5);
                      });
    rms_norm(y, D, {}, args.norm_eps);
    Numbers gate = linear(of("gate_down"), K, p, "gate");
    return linear(times(y, each(gate, sigmoid)), D, p, "out");
  }

  Numbers run(const Mamba2Options& o) {
    const int64_t H = o.heads, G = o.groups, E = 2 * D, V = E / H;
    auto made = [&](const std::string& name) {
      return each(conv(of(name), parameter(p, name + "_conv.weight"), o.kernel, parameter(p, name + "_conv.bias")),
                  silu);
    };
    const Numbers inner = made("x"), rate = parameter(p, "log_rate"), bias = parameter(p, "step_bias"),
                  skip = parameter(p, "skip");
    Numbers step = of("step"), written = inner;
    for (int64_t i = 0; i < N * H; ++i) step[at(i)] = softplus(step[at(i)] + bias[at(i % H)]);
    for (int64_t i = 0; i < N * E; ++i) written[at(i)] *= step[at(i / V)];
    Numbers y =
        recur({.H = H, .G = G, .K = o.state_dim, .V = V, .q = made("c"), .k = made("b"), .v = written},
              [&](int64_t n, int64_t h, int64_t, int64_t) { return -std::exp(rate[at(h)]) * step[at(n * H + h)]; });
    for (int64_t i = 0; i < N * E; ++i) y[at(i)] += skip[at(i / V % H)] * inner[at(i)];
    y = times(y, each(of("z"), silu));
    rms_norm(y, E / G, {}, 1e-5);
    const Numbers gain = parameter(p, "norm_gain");
    for (int64_t i = 0; i < N * E; ++i) y[at(i)] *= gain[at(i % E)];
    return linear(y, E, p, "out");
  }

  Numbers run(const HgrnOptions& o) {
    const Numbers bounds = parameter(p, "bounds");
    Numbers f = each(convolved("decay", o.kernel), sigmoid), write, v = convolved("v", o.kernel);
    for (int64_t i = 0; i < N * D; ++i) {
      double sum = 0, low = 0;
      for (int64_t l = 0; l < args.layers; ++l) sum += std::exp(bounds[at(l * D + i % D)]);
      for (int64_t l = 1; l <= args.layer; ++l) low += std::exp(bounds[at(l * D + i % D)]) / sum;
      f[at(i)] = low + (1 - low) * f[at(i)];
      write.push_back(1 - f[at(i)]);
    }
    const int64_t H = o.heads ? o.heads : D, K = D / H;
    auto log_decay = [&](int64_t n, int64_t h, int64_t c, int64_t) { return std::log(f[at((n * H + h) * K + c)]); };
    if (o.heads == 0) {
      const Numbers ones(at(N * D), 1.0);
      Numbers h =
          recur({.H = D, .G = D, .K = 1, .V = 1, .q = ones, .k = ones, .v = times(each(v, silu), write)}, log_decay);
      rms_norm(h, D, parameter(p, "norm.weight"), 1e-5);
      return linear(times(h, each(of("gate"), silu)), D, p, "out");
    }
    Numbers y = recur({.H = H,
                       .G = H,
                       .K = K,
                       .V = K,
                       .q = each(convolved("q", o.kernel), silu),
                       .k = write,
                       .v = v,
                       .scale = root(K)},
                      log_decay);
    rms_norm(y, D, parameter(p, "norm.weight"), 1e-5);
    return linear(y, D, p, "out");
  }

  Numbers run(const GatedSlotsOptions& o) {
    const int64_t H = o.heads, G = o.kv_heads ? o.kv_heads : H, K = D / H, M = o.slots;
    // What the heads of queries of a group have together, once for each.
    auto repeated = [&](const Numbers& of_groups, int64_t width) {
      Numbers out;
      for (int64_t i = 0; i < N * H * width; ++i)
        out.push_back(of_groups[at((i / (H * width) * G + i / width % H / (H / G)) * width + i % width)]);
      return out;
    };
    auto made = [&](const std::string& name) { return each(convolved(name, o.kernel), silu); };
    Numbers f = repeated(each(of("decay"), sigmoid), M), write;
    for (double& e : f) e = std::pow(e, 1.0 / 8), write.push_back(1 - e);
    auto side = [&](bool of_values) {
      return [&, of_values](int64_t n, int64_t h, int64_t c, int64_t e) {
        return std::log(f[at((n * H + h) * M + (of_values ? e : c))]);
      };
    };
    Numbers a =
        recur({.H = H, .G = H, .K = K, .V = M, .q = made("q"), .k = repeated(made("k"), K), .v = write}, side(true));
    Numbers y =
        recur({.H = H, .G = H, .K = M, .V = K, .q = softmax_rows(a, M), .k = write, .v = repeated(made("v"), K)},
              side(false));
    y = each(y, silu);
    rms_norm(y, D, parameter(p, "norm.weight"), 1e-5);
    return linear(y, D, p, "out");
  }

  // As softmax over positions, slot by slot.
  Numbers run(const AdditiveSlotsOptions& o) {
    const bool has_agents = o.kind == SlotKind::agent || o.kind == SlotKind::flare;
    const int64_t H = o.heads, K = D / H, M = has_agents ? (o.slots ? o.slots : 32) : K;
    const double scale = o.kind == SlotKind::agent ? root(K) : 1;
    auto of_slots = [&](const Numbers& of_heads) {
      if (!has_agents) return of_heads;
      const Numbers agents = parameter(p, "agents");
      Numbers out(at(N * H * M), 0.0);
      for (int64_t r = 0; r < N * H; ++r)
        for (int64_t m = 0; m < M; ++m)
          for (int64_t c = 0; c < K; ++c)
            out[at(r * M + m)] += scale * of_heads[at(r * K + c)] * agents[at((r % H * M + m) * K + c)];
      return out;
    };
    Numbers logits = of_slots(convolved("k", o.kernel)), v = convolved("v", o.kernel), choice;
    if (o.kind == SlotKind::lightnet) {
      choice = each(convolved("q", o.kernel), silu);
      for (double& c : choice) c *= root(K);
    } else {
      choice = softmax_rows(o.kind == SlotKind::flare ? logits : of_slots(of("q")), M);
    }
    Numbers y(at(N * D), 0.0);
    for (int64_t n = 0; n < N; ++n)
      for (int64_t h = 0; h < H; ++h)
        for (int64_t m = 0; m < M; ++m) {
          Numbers of_tokens(at(s.T), -std::numeric_limits<double>::infinity());
          for (int64_t j = 0; j < s.T; ++j)
            if (s.sees(n / s.T, n % s.T, j)) of_tokens[at(j)] = logits[at(((n / s.T * s.T + j) * H + h) * M + m)];
          const Numbers w = softmax(of_tokens);
          for (int64_t j = 0; j < s.T; ++j)
            for (int64_t c = 0; c < K; ++c)
              y[at((n * H + h) * K + c)] +=
                  choice[at((n * H + h) * M + m)] * w[at(j)] * v[at(((n / s.T * s.T + j) * H + h) * K + c)];
        }
    if (o.kind == SlotKind::agent) {
      const Numbers more = conv(v, parameter(p, "v_conv.weight"), 4);
      for (size_t i = 0; i < y.size(); ++i) y[i] += more[i];
    }
    if (o.kind == SlotKind::lightnet) {
      const int64_t rank = o.gate_rank ? o.gate_rank : std::min<int64_t>(128, D);
      rms_norm(y, D, parameter(p, "norm.weight"), 1e-5);
      y = times(y, each(linear(of("gate_down"), rank, p, "gate"), silu));
    }
    return linear(y, D, p, "out");
  }

  Numbers run(const FlowOptions& o) {
    const int64_t H = o.heads, K = D / H;
    const double eps = 1e-6;
    Numbers q = each(of("q"), sigmoid), k = each(of("k"), sigmoid), v = of("v");
    auto dot = [&](const Numbers& a, int64_t n, const Numbers& b, int64_t h) {
      double sum = 0;
      for (int64_t c = 0; c < K; ++c) sum += (a[at((n * H + h) * K + c)] + eps) * (b[at((n * H + h) * K + c)] + eps);
      return sum;
    };
    auto weighted = [&](Numbers a, const Numbers& w) {
      for (size_t i = 0; i < a.size(); ++i) a[i] *= w[i / at(K)];
      return a;
    };
    const Numbers sum_k = sums(k), sum_q = sums(q);
    Numbers into(at(N * H)), out_of = into, kept_into = into, kept_out = into;
    auto all = [&](Numbers& to, const Numbers& a, const Numbers& b, bool is_flow) {
      for (int64_t n = 0; n < N; ++n)
        for (int64_t h = 0; h < H; ++h)
          to[at(n * H + h)] = is_flow ? count(n) / dot(a, n, b, h) : dot(a, n, b, h) / count(n);
    };
    all(into, q, sum_k, true), all(out_of, k, sum_q, true);
    all(kept_into, q, sums(weighted(k, out_of)), false), all(kept_out, k, sums(weighted(q, into)), false);
    for (double& e : kept_out) e = std::exp(std::min(std::max(e, -1.0), 1.0));
    const Numbers sum_out = sums(kept_out);
    for (int64_t i = 0; i < N * H; ++i) {
      kept_out[at(i)] *= count(i / H) / sum_out[at(i)];
      into[at(i)] /= count(i / H);
    }
    Numbers y = recur({.H = H, .G = H, .K = K, .V = K, .q = weighted(q, into), .k = k, .v = weighted(v, kept_out)},
                      [](int64_t, int64_t, int64_t, int64_t) { return 0.0; });
    return linear(weighted(y, each(kept_into, sigmoid)), D, p, "out");
  }

  Numbers run(const RalaOptions& o) {
    const int64_t H = o.heads, K = D / H;
    Numbers q = each(of("q"), elu1), k = each(of("k"), elu1), v = of("v"), size(at(N * H), 0.0);
    const Numbers sum_q = sums(q);
    for (int64_t i = 0; i < N * D; ++i) size[at(i / K)] += k[at(i)] * sum_q[at(i)] / count(i / D) * root(K);
    for (double& e : size) e = std::exp(e);
    const Numbers sum_size = sums(size);
    for (int64_t i = 0; i < N * D; ++i) k[at(i)] *= count(i / D) * size[at(i / K)] / sum_size[at(i / K)];
    const Numbers sum_k = sums(k);
    Numbers norm(at(N * H), 1e-6);
    for (int64_t i = 0; i < N * D; ++i) norm[at(i / K)] += q[at(i)] * sum_k[at(i)] / count(i / D);
    rotate(q, s, H, K), rotate(k, s, H, K);
    Numbers y = recur({.H = H, .G = H, .K = K, .V = K, .q = q, .k = k, .v = v},
                      [](int64_t, int64_t, int64_t, int64_t) { return 0.0; });
    const Numbers more = conv(v, parameter(p, "v_conv.weight"), o.kernel);
    for (int64_t i = 0; i < N * D; ++i) y[at(i)] = y[at(i)] / (norm[at(i / K)] * count(i / D)) + more[at(i)];
    return linear(times(y, of("gate")), D, p, "out");
  }

  Numbers run(const PoolingOptions& o) {
    const Numbers v = of("v");
    Numbers y = sums(v);
    for (int64_t i = 0; i < N * D; ++i) {
      y[at(i)] /= count(i / D);
      if (o.kind == PoolingKind::broadcast) y[at(i)] = (v[at(i)] + y[at(i)]) / 2;
    }
    return linear(y, D, p, "out");
  }

 protected:
  struct Core {
    int64_t H, G, K, V;
    Numbers q, k, v, beta = {};
    double scale = 1;
  };

  // S = a S, then S += k^T u with u = v, or beta (v - k S); out = scale q S. log_decay(token, head, key channel, value channel).
  template <class LogDecay>
  Numbers recur(const Core& core, const LogDecay& log_decay) const {
    const auto [H, G, K, V, q, k, v, beta, scale] = core;
    Numbers out(at(N * H * V), 0.0);
    for (int64_t b = 0; b < s.B; ++b)
      for (int64_t h = 0; h < H; ++h) {
        Numbers state(at(K * V), 0.0);
        for (int64_t t = 0; t < s.T; ++t) {
          const int64_t n = b * s.T + t, key = (n * G + h / (H / G)) * K;
          if (t > 0 && s.document[at(n)] != s.document[at(n - 1)]) std::fill(state.begin(), state.end(), 0.0);
          for (int64_t c = 0; c < K; ++c)
            for (int64_t e = 0; e < V; ++e) state[at(c * V + e)] *= std::exp(log_decay(n, h, c, e));
          for (int64_t e = 0; e < V; ++e) {
            double known = 0, read = 0;
            for (int64_t c = 0; c < K; ++c) known += k[at(key + c)] * state[at(c * V + e)];
            const double value = v[at((n * H + h) * V + e)];
            const double u = beta.empty() ? value : beta[at(n * H + h)] * (value - known);
            for (int64_t c = 0; c < K; ++c) {
              state[at(c * V + e)] += k[at(key + c)] * u;
              read += q[at(key + c)] * state[at(c * V + e)];
            }
            out[at((n * H + h) * V + e)] = scale * read;
          }
        }
      }
    return out;
  }

  static size_t at(int64_t i) { return static_cast<size_t>(i); }
  static double root(int64_t width) { return 1 / std::sqrt(static_cast<double>(width)); }
  static double silu(double z) { return z * sigmoid(z); }
  static double softplus(double z) { return std::log1p(std::exp(z)); }
  static double elu1(double z) { return z > 0 ? z + 1 : std::exp(z); }

  Numbers of(const std::string& name) const { return linear(x, D, p, name); }
  // The same, with a kernel convolved; with a silu where it is.
  Numbers convolved(const std::string& name, int64_t kernel) const {
    return kernel ? conv(of(name), parameter(p, name + "_conv.weight"), kernel) : of(name);
  }
  Numbers silu_of(const std::string& name, int64_t kernel) const {
    return kernel ? each(convolved(name, kernel), silu) : of(name);
  }
  static Numbers each(Numbers numbers, double (*f)(double)) {
    for (double& e : numbers) e = f(e);
    return numbers;
  }
  static Numbers times(Numbers a, const Numbers& b) {
    for (size_t i = 0; i < a.size(); ++i) a[i] *= b[i];
    return a;
  }
  static Numbers softmax_rows(Numbers a, int64_t width) {
    for (auto row = a.begin(); row != a.end(); row += width) {
      const Numbers w = softmax(Numbers(row, row + width));
      std::copy(w.begin(), w.end(), row);
    }
    return a;
  }
  // Heads divided by their length.
  static Numbers unit(Numbers a, int64_t width) {
    rms_norm(a, width, Numbers(at(width), root(width)), 1e-6 / static_cast<double>(width));
    return a;
  }
  // Heads with mean 0 and variance 1.
  static void standardise(Numbers& a, int64_t width) {
    for (size_t r = 0; r < a.size(); r += at(width)) {
      double mean = 0;
      for (size_t c = 0; c < at(width); ++c) mean += a[r + c] / static_cast<double>(width);
      for (size_t c = 0; c < at(width); ++c) a[r + c] -= mean;
    }
    rms_norm(a, width, {}, 1e-6);
  }

  // How many tokens token n sees, and sums of a over them.
  double count(int64_t n) const { return s.local[at(n)] + 1; }
  Numbers sums(const Numbers& a) const {
    const auto width = static_cast<int64_t>(a.size()) / N;
    Numbers out(a.size(), 0.0);
    for (int64_t n = 0; n < N; ++n)
      for (int64_t j = 0; j < s.T; ++j)
        if (s.sees(n / s.T, n % s.T, j))
          for (int64_t c = 0; c < width; ++c) out[at(n * width + c)] += a[at((n / s.T * s.T + j) * width + c)];
    return out;
  }
  // Over this token and the `kernel` - 1 before it, as far as they are of its document.
  Numbers conv(const Numbers& a, const Numbers& weight, int64_t kernel, const Numbers& bias = {}) const {
    const auto width = static_cast<int64_t>(a.size()) / N;
    Numbers out(a.size(), 0.0);
    for (int64_t n = 0; n < N; ++n)
      for (int64_t c = 0; c < width; ++c) {
        double& sum = out[at(n * width + c)];
        sum = bias.empty() ? 0 : bias[at(c)];
        for (int64_t back = 0; back < kernel && back <= n % s.T; ++back)
          if (s.document[at(n - back)] == s.document[at(n)])
            sum += weight[at(c * kernel + kernel - 1 - back)] * a[at((n - back) * width + c)];
      }
    return out;
  }

  const MixerArgs& args;
  const Parameters& p;
  Sequence s;
  Numbers x;
  int64_t D, N;
};

}  // namespace weft::reference
