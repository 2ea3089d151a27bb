// Mixers of several calls of attention, materialised, one token after the other.
#pragma once

#include <algorithm>

#include "weft/nn/mixers/compositions.h"
#include "weft/trainers/reference.h"

namespace weft::reference {

class ComposedMixer {
 public:
  ComposedMixer(const MixerArgs& args, const Parameters& p, const Tensor& x_BTD, const TokenData& data)
      : args(args), p(p), s(x_BTD, data), x(values(x_BTD)), D(s.D), N(s.B * s.T) {}

  Numbers run(const MlaOptions& o) {
    const int64_t H = o.heads, n = o.head_dim ? o.head_dim : D / H, r = o.rope_dim ? o.rope_dim : n / 2;
    const int64_t C = o.kv_rank ? o.kv_rank : 2 * n;
    Numbers c = linear(x, D, p, "kv_down");
    rms_norm(c, C, parameter(p, "kv_norm.weight"), args.norm_eps);
    Numbers kc = linear(c, C, p, "key_up"), v = linear(c, C, p, "value_up"), kr = linear(x, D, p, "key_rope"), q;
    if (o.q_rank > 0) {
      Numbers cq = linear(x, D, p, "query_down");
      rms_norm(cq, o.q_rank, parameter(p, "query_norm.weight"), args.norm_eps);
      q = linear(cq, o.q_rank, p, "query");
    } else {
      q = linear(x, D, p, "query");
    }
    rotate(kr, s, 1, r);
    Numbers qc(at(N * H * n)), qr(at(N * H * r));
    for (int64_t t = 0; t < N * H; ++t)
      for (int64_t i = 0; i < n + r; ++i) (i < n ? qc[at(t * n + i)] : qr[at(t * r + i - n)]) = q[at(t * (n + r) + i)];
    rotate(qr, s, H, r);
    double scale = 1 / std::sqrt(static_cast<double>(n + r));
    Numbers y = mix(s, H, H, n, v, [&](int64_t b, int64_t i, int64_t h) {
      Numbers a = scores(s, H, H, n, qc, kc, scale, 0, b, i, h), e = scores(s, H, 1, r, qr, kr, scale, 0, b, i, h);
      for (size_t j = 0; j < a.size(); ++j) a[j] += e[j];
      return softmax(a);
    });
    return linear(y, H * n, p, "out");
  }

  Numbers run(const NexusOptions& o) {
    sizes(o.heads, o.kv_heads, o.head_dim);
    auto normed = [&](Numbers y, const char* name) {
      if (o.has_qk_norm) rms_norm(y, K, parameter(p, name), args.norm_eps);
      return y;
    };
    Numbers q = normed(linear(x, D, p, "q"), "q_norm.weight"), k = normed(linear(x, D, p, "k"), "k_norm.weight");
    Numbers v = linear(x, D, p, "v");
    for (int64_t order = 1; order < o.order; ++order) {
      q = attend(q, q, o.has_values_of_layer ? v : q, H, H);
      k = attend(k, k, o.has_values_of_layer ? v : k, G, G);
    }
    if (o.order > 1) q = normed(q, "q_norm.weight"), k = normed(k, "k_norm.weight");
    return linear(attend(q, k, v, H, G), H * K, p, "out");
  }

  Numbers run(const HopfieldOptions& o) {
    sizes(o.heads, o.kv_heads, o.head_dim);
    Numbers state = linear(x, D, p, "q"), k = linear(x, D, p, "k"), v = linear(x, D, p, "v");
    Numbers log_beta = parameter(p, "log_beta");
    for (int64_t step = 0; step <= o.steps; ++step) {
      for (int64_t r = 0; r < N * H * K; ++r)
        state[at(r)] *= std::exp(log_beta[at(r / K % H)]) * std::sqrt(static_cast<double>(K));
      state = attend(state, k, step < o.steps ? k : v, H, G);
    }
    return linear(state, H * K, p, "out");
  }

  Numbers run(const ForgettingOptions& o) {
    sizes(o.heads, o.kv_heads, o.head_dim);
    Numbers q = linear(x, D, p, "q"), k = linear(x, D, p, "k"), v = linear(x, D, p, "v");
    Numbers gate = linear(x, D, p, "gate");
    if (o.has_rotation) rotate(q, s, H, K), rotate(k, s, G, K);
    Numbers y = mix(s, H, G, K, v, [&](int64_t b, int64_t i, int64_t h) {
      Numbers a = scores(s, H, G, K, q, k, 1 / std::sqrt(static_cast<double>(K)), 0, b, i, h);
      for (int64_t j = 0; j < i; ++j)
        for (int64_t l = j + 1; l <= i; ++l) a[at(j)] += std::log(sigmoid(gate[at((b * s.T + l) * H + h)]));
      return softmax(a);
    });
    return linear(y, H * K, p, "out");
  }

  Numbers run(const DifferentialOptions& o) {
    sizes(o.heads, o.kv_heads, o.head_dim);
    const int64_t half = K / 2;
    Numbers q = linear(x, D, p, "q"), k = linear(x, D, p, "k"), v = linear(x, D, p, "v");
    auto half_of = [&](const Numbers& all, int64_t heads, int64_t n) {
      Numbers part;
      for (int64_t r = 0; r < N * heads; ++r)
        part.insert(part.end(), all.begin() + r * K + n * half, all.begin() + r * K + (n + 1) * half);
      rotate(part, s, heads, half);
      return part;
    };
    auto exp_of = [&](const char* a, const char* b) {
      Numbers left = parameter(p, a), right = parameter(p, b);
      double sum = 0;
      for (size_t i = 0; i < left.size(); ++i) sum += left[i] * right[i];
      return std::exp(sum);
    };
    const double init = 0.8 - 0.6 * std::exp(-0.3 * static_cast<double>(args.layer));
    const double lambda = exp_of("lambda_q1", "lambda_k1") - exp_of("lambda_q2", "lambda_k2") + init;
    const Numbers q1 = half_of(q, H, 0), q2 = half_of(q, H, 1), k1 = half_of(k, G, 0), k2 = half_of(k, G, 1);
    const double scale = 1 / std::sqrt(static_cast<double>(half));
    Numbers y = mix(s, H, G, K, v, [&](int64_t b, int64_t i, int64_t h) {
      Numbers w = softmax(scores(s, H, G, half, q1, k1, scale, 0, b, i, h));
      Numbers other = softmax(scores(s, H, G, half, q2, k2, scale, 0, b, i, h));
      for (size_t j = 0; j < w.size(); ++j) w[j] -= lambda * other[j];
      return w;
    });
    rms_norm(y, K, parameter(p, "head_norm.weight"), args.norm_eps);
    for (double& e : y) e *= 1 - init;
    return linear(y, H * K, p, "out");
  }

  Numbers run(const SimplifiedOptions& o) {
    sizes(o.heads, o.heads, 0);
    Numbers q = linear(x, D, p, "q"), k = o.kind == SimplifiedKind::optimised ? linear(x, D, p, "k") : x, v = x;
    if (o.kind == SimplifiedKind::super) {
      Numbers w = parameter(p, "mix");
      std::fill(v.begin(), v.end(), 0.0);
      for (int64_t b = 0; b < s.B; ++b)
        for (int64_t i = 0; i < s.T; ++i)
          for (int64_t j = 0; j < s.T; ++j) {
            if (!s.sees(b, i, j)) continue;
            double weight = w[at(s.local[at(b * s.T + i)] * args.context + s.local[at(b * s.T + j)])];
            for (int64_t c = 0; c < D; ++c) v[at((b * s.T + i) * D + c)] += weight * x[at((b * s.T + j) * D + c)];
          }
    }
    return linear(attend(q, k, v, H, H), D, p, "out");
  }

  Numbers run(const DeconstructedOptions& o) {
    if (o.kind == DeconstructedKind::none) {
      Numbers gate = linear(x, D, p, "ffn.gate"), up = linear(x, D, p, "ffn.up");
      for (size_t i = 0; i < up.size(); ++i) up[i] *= gate[i] * sigmoid(gate[i]);
      return linear(up, static_cast<int64_t>(up.size()) / N, p, "ffn.down");
    }
    sizes(o.heads, o.heads, 0);
    Numbers e = x;
    if (o.kind == DeconstructedKind::static_embedding)
      for (double& c : e) c *= 0.5;  // the embedding that the checks share
    bool is_fixed = o.kind == DeconstructedKind::random_embedding || o.kind == DeconstructedKind::fixed_text;
    if (is_fixed)  // the sequence that the checks share
      for (int64_t i = 0; i < N * D; ++i)
        e[at(i)] = static_cast<double>(Rng(77).normal(static_cast<uint64_t>(s.local[at(i / D)] * D + i % D)));
    Numbers q = linear(e, D, p, "q"), k = linear(e, D, p, "k"), v = linear(x, D, p, "v");
    if (is_fixed || o.kind == DeconstructedKind::static_embedding) return linear(attend(q, k, v, H, H), D, p, "out");
    Numbers y = mix(s, H, H, K, v, [&](int64_t b, int64_t i, int64_t h) {
      Numbers a(at(s.T), -std::numeric_limits<double>::infinity());
      for (int64_t j = 0; j < s.T; ++j) {
        if (!s.sees(b, i, j)) continue;
        double sum = 0;
        for (int64_t c = 0; c < K; ++c) {
          size_t n = at(((b * s.T + j) * H + h) * K + c);
          sum += q[n] * sigmoid(q[n]) * k[n];
        }
        a[at(j)] = sum / std::sqrt(static_cast<double>(K));
      }
      return softmax(a);
    });
    return linear(y, D, p, "out");
  }

  Numbers run(const NapOptions& o) {
    sizes(o.heads, o.kv_heads, o.head_dim);
    Numbers q = linear(x, D, p, "q"), k = linear(x, D, p, "k"), v = linear(x, D, p, "v");
    Numbers gain = parameter(p, "gain"), bias = parameter(p, "bias");
    rotate(q, s, H, K);
    rotate(k, s, G, K);
    double scale = 1 / std::sqrt(static_cast<double>(K));
    Numbers y = mix(s, H, G, K, v, [&](int64_t b, int64_t i, int64_t h) {
      Numbers a = scores(s, H, G, K, q, k, scale, o.window, b, i, h);
      double n = 0, mean = 0, variance = 0;
      for (double e : a)
        if (std::isfinite(e)) n += 1, mean += e;
      mean /= n;
      for (double e : a)
        if (std::isfinite(e)) variance += (e - mean) * (e - mean) / n;
      for (double& e : a) {
        e = std::isfinite(e) ? gain[at(h)] * (e - mean) / std::sqrt(variance + 1e-5) + bias[at(h)] : 0;
        if (o.divides_by_root) e /= std::sqrt(n);
      }
      return a;
    });
    return linear(y, H * K, p, "out");
  }

  Numbers run(const DualOptions& o) {
    const int64_t all = o.heads + o.relational_heads, R = o.relations ? o.relations : o.relational_heads;
    sizes(all, all, 0);
    Numbers q = linear(x, D, p, "q"), k = linear(x, D, p, "k"), v = linear(x, D, p, "v");
    Numbers rq = linear(x, D, p, "relation_q"), rk = linear(x, D, p, "relation_k");
    Numbers choice = linear(linear(x, D, p, "symbol_q"), D, parameter(p, "symbol_keys"));
    Numbers library = parameter(p, "symbols"), symbols(at(N * D), 0.0);
    for (int64_t t = 0; t < N; ++t) {
      Numbers w = softmax(Numbers(choice.begin() + t * o.symbols, choice.begin() + (t + 1) * o.symbols));
      for (int64_t n = 0; n < o.symbols; ++n)
        for (int64_t c = 0; c < D; ++c) symbols[at(t * D + c)] += w[at(n)] * library[at(n * D + c)];
    }
    Numbers symbol_values = linear(symbols, D, p, "symbol_out"), relation_out = parameter(p, "relation_out");
    rotate(q, s, H, K);
    rotate(k, s, H, K);
    Numbers sensory(at(N * o.heads * K), 0.0), relational(at(N * o.relational_heads * K), 0.0);
    for (int64_t b = 0; b < s.B; ++b)
      for (int64_t i = 0; i < s.T; ++i)
        for (int64_t h = 0; h < all; ++h) {
          Numbers w = softmax(scores(s, H, H, K, q, k, 1 / std::sqrt(static_cast<double>(K)), 0, b, i, h));
          for (int64_t j = 0; j < s.T; ++j) {
            int64_t ti = b * s.T + i, tj = b * s.T + j, e = h - o.heads;
            for (int64_t c = 0; c < K; ++c) {
              if (h < o.heads) {
                sensory[at((ti * o.heads + h) * K + c)] += w[at(j)] * v[at((tj * o.heads + h) * K + c)];
                continue;
              }
              double value = symbol_values[at((tj * o.relational_heads + e) * K + c)];
              for (int64_t l = 0; l < R; ++l) {
                double relation = 0;
                for (int64_t m = 0; m < K; ++m) relation += rq[at((ti * R + l) * K + m)] * rk[at((tj * R + l) * K + m)];
                value += relation * relation_out[at((e * R + l) * K + c)];
              }
              relational[at((ti * o.relational_heads + e) * K + c)] += w[at(j)] * value;
            }
          }
        }
    Numbers a = linear(sensory, o.heads * K, p, "out");
    Numbers r = linear(relational, o.relational_heads * K, p, "relational_out"), y;
    for (int64_t t = 0; t < N; ++t) {
      y.insert(y.end(), a.begin() + t * o.heads * K, a.begin() + (t + 1) * o.heads * K);
      y.insert(y.end(), r.begin() + t * o.relational_heads * K, r.begin() + (t + 1) * o.relational_heads * K);
    }
    return y;
  }

  // Window by window, with the scores of every pair.
  Numbers run(const TlinformerOptions& o) {
    sizes(o.heads, 0, o.head_dim);
    struct Window {
      std::vector<int64_t> tokens, history, last;  // of the N; `last` of the history, as many as there are rows
      Numbers rows = {};                           // [rows, D]
    };
    std::vector<Window> windows;
    for (int64_t n = 0; n < N; ++n) {
      const int64_t begin = s.local[at(n)] / o.window * o.window;
      if (s.document[at(n)] < 0) continue;
      Window w;
      for (int64_t j = n / s.T * s.T; j < n / s.T * s.T + s.T; ++j) {
        if (s.document[at(j)] != s.document[at(n)] || s.local[at(j)] >= begin + o.window) continue;
        (s.local[at(j)] < begin ? w.history : w.tokens).push_back(j);
      }
      if (w.tokens[0] != n) continue;
      w.last.assign(w.history.end() - std::min(o.rows, static_cast<int64_t>(w.history.size())), w.history.end());
      windows.push_back(w);
    }
    Numbers h = x;
    for (int64_t layer = 0; layer < o.depth; ++layer) {
      const std::string name = str("layers.", layer, ".");
      const Numbers q = projected(h, name, "q", s), k = projected(h, name, "k", s), v = projected(h, name, "v", s);
      Numbers read(at(N * H * K), 0.0);
      for (Window& w : windows) {
        if (layer == 0) w.rows = taken(h, w.last, D);
        Sequence places = s;
        places.B = 1, places.T = static_cast<int64_t>(w.last.size()), places.local.clear();
        for (int64_t j : w.last) places.local.push_back(s.local[at(j)]);
        const Numbers rq = projected(w.rows, name, "q", places), rk = projected(w.rows, name, "k", places),
                      rv = projected(w.rows, name, "v", places);
        const int64_t width = H * K;
        const Numbers far_k = layer == 0 ? taken(k, w.history, width) : rk,
                      far_v = layer == 0 ? taken(v, w.history, width) : rv;
        for (size_t i = 0; i < w.tokens.size(); ++i) {
          const std::vector<int64_t> seen(w.tokens.begin(), w.tokens.begin() + static_cast<std::ptrdiff_t>(i) + 1);
          const Numbers mine = taken(q, {w.tokens[i]}, width);
          const Numbers near = attended(mine, taken(k, seen, width), taken(v, seen, width)),
                        far = attended(mine, far_k, far_v);
          for (int64_t c = 0; c < width; ++c) read[at(w.tokens[i] * width + c)] = near[at(c)] + far[at(c)];
        }
        if (layer + 1 < o.depth) w.rows = after(w.rows, attended(rq, far_k, far_v), name);
      }
      h = after(h, read, name);
    }
    for (int64_t i = 0; i < N * D; ++i) h[at(i)] -= x[at(i)];
    return h;
  }

 private:
  // Of TLinFormer: heads of normed h, queries and keys rotated.
  Numbers projected(Numbers h, const std::string& layer, const std::string& what, const Sequence& places) const {
    rms_norm(h, D, parameter(p, layer + "norm.weight"), args.norm_eps);
    Numbers y = linear(h, D, p, layer + what);
    if (args.rotary && what != "v") rotate(y, places, H, K);
    return y;
  }
  // Of TLinFormer: h plus what was read, then plus SwiGLU.
  Numbers after(Numbers h, const Numbers& read, const std::string& layer) const {
    auto add = [&](const Numbers& y) {
      for (size_t i = 0; i < h.size(); ++i) h[i] += y[i];
    };
    add(linear(read, H * K, p, layer + "out"));
    Numbers normed = h;
    rms_norm(normed, D, parameter(p, layer + "ffn_norm.weight"), args.norm_eps);
    Numbers gate = linear(normed, D, p, layer + "ffn.gate"), up = linear(normed, D, p, layer + "ffn.up");
    for (size_t i = 0; i < up.size(); ++i) up[i] *= gate[i] * sigmoid(gate[i]);
    const auto hidden = static_cast<int64_t>(parameter(p, layer + "ffn.down.weight").size()) / D;
    add(linear(up, hidden, p, layer + "ffn.down"));
    return h;
  }
  static Numbers taken(const Numbers& from, const std::vector<int64_t>& which, int64_t width) {
    Numbers out;
    for (int64_t i : which) out.insert(out.end(), from.begin() + i * width, from.begin() + (i + 1) * width);
    return out;
  }
  // Every query over every key, per head; 0 where there is no key.
  Numbers attended(const Numbers& q, const Numbers& k, const Numbers& v) const {
    const int64_t width = H * K, num_keys = static_cast<int64_t>(k.size()) / width;
    Numbers out(q.size(), 0.0);
    for (int64_t i = 0; i < static_cast<int64_t>(q.size()) / width; ++i)
      for (int64_t h = 0; h < H; ++h) {
        Numbers a(at(num_keys), 0.0);
        for (int64_t j = 0; j < num_keys; ++j)
          for (int64_t c = 0; c < K; ++c)
            a[at(j)] += q[at(i * width + h * K + c)] * k[at(j * width + h * K + c)] / std::sqrt(static_cast<double>(K));
        const Numbers w = softmax(a);
        for (int64_t j = 0; j < num_keys; ++j)
          for (int64_t c = 0; c < K; ++c) out[at(i * width + h * K + c)] += w[at(j)] * v[at(j * width + h * K + c)];
      }
    return out;
  }
  static size_t at(int64_t i) { return static_cast<size_t>(i); }
  void sizes(int64_t heads, int64_t kv_heads, int64_t head_dim) {
    H = heads, G = kv_heads ? kv_heads : heads, K = head_dim ? head_dim : D / heads;
  }
  // softmax(rot(q) rot(k)^T / sqrt(K)) v
  Numbers attend(Numbers q, Numbers k, const Numbers& v, int64_t heads, int64_t kv_heads) const {
    rotate(q, s, heads, K);
    rotate(k, s, kv_heads, K);
    double scale = 1 / std::sqrt(static_cast<double>(K));
    return mix(s, heads, kv_heads, K, v, [&](int64_t b, int64_t i, int64_t h) {
      return softmax(scores(s, heads, kv_heads, K, q, k, scale, 0, b, i, h));
    });
  }

  MixerArgs args;
  const Parameters& p;
  Sequence s;
  Numbers x;
  int64_t D, N, H = 1, G = 1, K = 1;
};

}  // namespace weft::reference
