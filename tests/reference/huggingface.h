// Llama, Qwen-2, Qwen-3, Qwen3-Next, Kimi-Linear and GPT-2 as transformers compute them, in float64 and plain loops, from tensors with their names and layouts.
#pragma once

#include <cmath>
#include <cstdint>
#include <map>
#include <numbers>
#include <string>
#include <vector>

namespace weft::reference {

struct HfModel {
  std::string family = "llama";  // or qwen2, qwen3, qwen3_next, kimi_linear, gpt2
  int64_t vocab = 37, dim = 16, layers = 2, heads = 4, kv_heads = 2, head_dim = 6, ffn = 20, positions = 24;
  double eps = 1e-5, theta = 500;
  bool is_tied = false;
  // Of each layer of qwen3_next: Gated DeltaNet, with these heads and widths; of kimi_linear: Kimi Delta Attention, value_heads of key_dim.
  std::vector<bool> is_linear = {};
  int64_t key_heads = 2, value_heads = 4, key_dim = 3, value_dim = 5, kernel = 4;
  int64_t rotated = 0;  // features of a head; 0: all. Of kimi_linear: those of the key that heads share, not rotated
  int64_t kv_rank = 5, q_rank = 0;    // of kimi_linear; 0: queries are made from the layer's input
  std::vector<int64_t> windows = {};  // of each layer, 0: none
  double llama3_factor = 0;           // 0: no scaling; with low 1, high 4, original context 16
  std::map<std::string, std::vector<double>> tensors = {};
  std::map<std::string, std::vector<int64_t>> shapes = {};

  bool is_gpt2() const { return family == "gpt2"; }
  bool is_next() const { return family == "qwen3_next"; }
  bool is_kimi() const { return family == "kimi_linear"; }
  bool is_linear_layer(int64_t i) const { return (is_next() || is_kimi()) && is_linear[size(i)]; }

  std::vector<double> logits(const std::vector<int32_t>& ids) const {
    const auto T = static_cast<int64_t>(ids.size());
    const Numbers& table = at(is_gpt2() ? "transformer.wte.weight" : "model.embed_tokens.weight");
    Numbers x(size(T * dim));
    for (int64_t t = 0; t < T; ++t)
      for (int64_t c = 0; c < dim; ++c) {
        x[size(t * dim + c)] = table[size(ids[size(t)] * dim + c)];
        if (is_gpt2()) x[size(t * dim + c)] += at("transformer.wpe.weight")[size(t * dim + c)];
      }
    for (int64_t i = 0; i < layers; ++i) layer(x, T, i);
    const Numbers h = norm(x, dim, is_gpt2() ? "transformer.ln_f" : "model.norm");
    return linear(h, dim, is_tied ? table : at("lm_head.weight"), vocab, {}, false);
  }

 private:
  using Numbers = std::vector<double>;
  static size_t size(int64_t n) { return static_cast<size_t>(n); }
  const Numbers& at(const std::string& name) const { return tensors.at(name); }
  Numbers bias(const std::string& name) const {
    auto found = tensors.find(name + ".bias");
    return found == tensors.end() ? Numbers() : found->second;
  }

  // y = x W^T + b, or x W + b for weights stored [in, out].
  static Numbers linear(const Numbers& x, int64_t in, const Numbers& w, int64_t out, const Numbers& b, bool is_in_out) {
    const int64_t rows = static_cast<int64_t>(x.size()) / in;
    Numbers y(size(rows * out));
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t o = 0; o < out; ++o) {
        double sum = b.empty() ? 0 : b[size(o)];
        for (int64_t i = 0; i < in; ++i) sum += x[size(r * in + i)] * w[size(is_in_out ? i * out + o : o * in + i)];
        y[size(r * out + o)] = sum;
      }
    return y;
  }
  Numbers named(const Numbers& x, int64_t in, const std::string& name, int64_t out) const {
    return linear(x, in, at(name + ".weight"), out, bias(name), is_gpt2());
  }

  Numbers norm(const Numbers& x, int64_t width, const std::string& name) const { return norm(x, width, name, eps); }
  Numbers norm(const Numbers& x, int64_t width, const std::string& name, double added) const {
    const Numbers &w = at(name + ".weight"), b = bias(name);
    Numbers y = x;
    for (int64_t r = 0; r < static_cast<int64_t>(x.size()) / width; ++r) {
      double mean = 0, square = 0;
      for (int64_t c = 0; c < width; ++c) mean += x[size(r * width + c)] / static_cast<double>(width);
      if (!is_gpt2()) mean = 0;
      for (int64_t c = 0; c < width; ++c)
        square += std::pow(x[size(r * width + c)] - mean, 2) / static_cast<double>(width);
      for (int64_t c = 0; c < width; ++c)
        y[size(r * width + c)] =
            (x[size(r * width + c)] - mean) / std::sqrt(square + added) * (w[size(c)] + (is_next() ? 1 : 0)) +
            (b.empty() ? 0 : b[size(c)]);
    }
    return y;
  }

  double frequency(int64_t pair) const {
    const double f =
        std::pow(theta, -2.0 * static_cast<double>(pair) / static_cast<double>(rotated ? rotated : head_dim));
    if (llama3_factor == 0) return f;
    const double wave = 2 * std::numbers::pi / f, L = 16, low = 1, high = 4;
    if (wave < L / high) return f;
    if (wave > L / low) return f / llama3_factor;
    const double s = (L / wave - low) / (high - low);
    return (1 - s) * f / llama3_factor + s * f;
  }
  void rotate(Numbers& x, int64_t T, int64_t count) const {
    const int64_t half = (rotated ? rotated : head_dim) / 2;
    for (int64_t t = 0; t < T; ++t)
      for (int64_t h = 0; h < count; ++h)
        for (int64_t i = 0; i < half; ++i) {
          double &a = x[size((t * count + h) * head_dim + i)], &b = x[size((t * count + h) * head_dim + half + i)];
          const double angle = static_cast<double>(t) * frequency(i), first = a, second = b;
          a = first * std::cos(angle) - second * std::sin(angle);
          b = second * std::cos(angle) + first * std::sin(angle);
        }
  }

  // `width`: of queries and keys, where it is not head_dim.
  Numbers attention(const Numbers& q, const Numbers& k, const Numbers& v, int64_t T, int64_t window,
                    int64_t width = 0) const {
    const int64_t key_width = width > 0 ? width : head_dim;
    Numbers out(size(T * heads * head_dim), 0.0);
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t g = h * kv_heads / heads;
      for (int64_t t = 0; t < T; ++t) {
        const int64_t first = window > 0 ? std::max<int64_t>(0, t - window + 1) : 0;
        Numbers weights;
        double sum = 0;
        for (int64_t s = first; s <= t; ++s) {
          double dot = 0;
          for (int64_t c = 0; c < key_width; ++c)
            dot += q[size((t * heads + h) * key_width + c)] * k[size((s * kv_heads + g) * key_width + c)];
          weights.push_back(std::exp(dot / std::sqrt(static_cast<double>(key_width))));
          sum += weights.back();
        }
        for (int64_t s = first; s <= t; ++s)
          for (int64_t c = 0; c < head_dim; ++c)
            out[size((t * heads + h) * head_dim + c)] +=
                weights[size(s - first)] / sum * v[size((s * kv_heads + g) * head_dim + c)];
      }
    }
    return out;
  }

  void layer(Numbers& x, int64_t T, int64_t i) const {
    const std::string at = (is_gpt2() ? "transformer.h." : "model.layers.") + std::to_string(i) + ".";
    const Numbers h = norm(x, dim, at + (is_gpt2() ? "ln_1" : "input_layernorm"));
    Numbers q, k, v, gate;
    if (is_gpt2()) {
      const Numbers all = named(h, dim, at + "attn.c_attn", 3 * dim);
      for (int64_t t = 0; t < T; ++t)
        for (int64_t c = 0; c < 3 * dim; ++c) (c < dim ? q : c < 2 * dim ? k : v).push_back(all[size(t * 3 * dim + c)]);
    } else if (is_kimi()) {
      const std::string part = at + "self_attn.";
      return feed_forward(x, at, is_linear_layer(i) ? kimi_delta(h, T, part) : latent(h, T, part));
    } else if (is_linear_layer(i)) {
      return feed_forward(x, at, delta_rule(h, T, at + "linear_attn."));
    } else {
      q = named(h, dim, at + "self_attn.q_proj", heads * head_dim * (is_next() ? 2 : 1));
      if (is_next()) split(q, gate);
      k = named(h, dim, at + "self_attn.k_proj", kv_heads * head_dim);
      v = named(h, dim, at + "self_attn.v_proj", kv_heads * head_dim);
      if (family == "qwen3" || is_next()) {
        q = norm(q, head_dim, at + "self_attn.q_norm");
        k = norm(k, head_dim, at + "self_attn.k_norm");
      }
      rotate(q, T, heads);
      rotate(k, T, kv_heads);
    }
    Numbers mixed = attention(q, k, v, T, windows.empty() ? 0 : windows[size(i)]);
    for (size_t n = 0; n < gate.size(); ++n) mixed[n] *= sigmoid(gate[n]);
    feed_forward(x, at, named(mixed, heads * head_dim, at + (is_gpt2() ? "attn.c_proj" : "self_attn.o_proj"), dim));
  }

  // Adds what the mixer gave, and then the network of the layer.
  void feed_forward(Numbers& x, const std::string& at, const Numbers& mixer) const {
    add(x, mixer);
    const Numbers f = norm(x, dim, at + (is_gpt2() ? "ln_2" : "post_attention_layernorm"));
    Numbers hidden;
    if (is_gpt2()) {
      hidden = named(f, dim, at + "mlp.c_fc", ffn);
      for (double& u : hidden)
        u = 0.5 * u * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (u + 0.044715 * u * u * u)));
    } else {
      hidden = named(f, dim, at + "mlp.gate_proj", ffn);
      const Numbers up = named(f, dim, at + "mlp.up_proj", ffn);
      for (size_t n = 0; n < hidden.size(); ++n) hidden[n] = hidden[n] / (1 + std::exp(-hidden[n])) * up[n];
    }
    add(x, named(hidden, ffn, at + (is_gpt2() ? "mlp.c_proj" : "mlp.down_proj"), dim));
  }

  static double sigmoid(double z) { return 1 / (1 + std::exp(-z)); }

  // Per head first its queries, then its gate.
  void split(Numbers& q, Numbers& gate) const {
    Numbers queries;
    for (size_t n = 0; n < q.size(); ++n) (n / size(head_dim) % 2 ? gate : queries).push_back(q[n]);
    q = queries;
  }

  // Gated DeltaNet: per key head lie its q, k, the values and the gates of its value heads side by side.
  Numbers delta_rule(const Numbers& h, int64_t T, const std::string& at) const {
    const int64_t G = key_heads, H = value_heads, K = key_dim, V = value_dim, shared = H / G;
    const int64_t group = 2 * K + 2 * shared * V, C = 2 * G * K + H * V;
    const Numbers all = named(h, dim, at + "in_proj_qkvz", G * group), ba = named(h, dim, at + "in_proj_ba", 2 * H);
    const Numbers &taps = this->at(at + "conv1d.weight"), &rate = this->at(at + "A_log");
    const Numbers &step = this->at(at + "dt_bias"), &gain = this->at(at + "norm.weight");
    // Channels of the convolution: q of all key heads, k of all, v of all value heads.
    auto channel = [&](int64_t t, int64_t c) {
      if (c < 2 * G * K) return all[size(t * G * group + c % (G * K) / K * group + c / (G * K) * K + c % K)];
      const int64_t v = c - 2 * G * K;
      return all[size(t * G * group + v / V / shared * group + 2 * K + v % (shared * V))];
    };
    Numbers mixed(size(T * C)), out(size(T * H * V));
    for (int64_t t = 0; t < T; ++t)
      for (int64_t c = 0; c < C; ++c) {
        double sum = 0;
        for (int64_t j = 0; j < kernel && j <= t; ++j)
          sum += taps[size(c * kernel + kernel - 1 - j)] * channel(t - j, c);
        mixed[size(t * C + c)] = sum * sigmoid(sum);
      }
    for (int64_t hv = 0; hv < H; ++hv) {
      const int64_t g = hv / shared;
      Numbers state(size(K * V), 0.0);
      for (int64_t t = 0; t < T; ++t) {
        auto q = [&](int64_t c) { return mixed[size(t * C + g * K + c)]; };
        auto k = [&](int64_t c) { return mixed[size(t * C + G * K + g * K + c)]; };
        double qq = 1e-6, kk = 1e-6, square = 0;
        for (int64_t c = 0; c < K; ++c) qq += q(c) * q(c), kk += k(c) * k(c);
        const int64_t in_group = t * 2 * H + g * 2 * shared + hv % shared;
        const double beta = sigmoid(ba[size(in_group)]);
        const double decay =
            std::exp(-std::exp(rate[size(hv)]) * std::log1p(std::exp(ba[size(in_group + shared)] + step[size(hv)])));
        for (int64_t d = 0; d < V; ++d) {
          double old = 0, y = 0;
          for (int64_t c = 0; c < K; ++c) old += decay * state[size(c * V + d)] * k(c) / std::sqrt(kk);
          const double write = beta * (mixed[size(t * C + 2 * G * K + hv * V + d)] - old);
          for (int64_t c = 0; c < K; ++c) {
            double& s = state[size(c * V + d)];
            s = decay * s + k(c) / std::sqrt(kk) * write;
            y += q(c) / std::sqrt(qq * static_cast<double>(K)) * s;
          }
          out[size((t * H + hv) * V + d)] = y;
          square += y * y / static_cast<double>(V);
        }
        for (int64_t d = 0; d < V; ++d) {
          const double z = all[size(t * G * group + g * group + 2 * K + shared * V + hv % shared * V + d)];
          out[size((t * H + hv) * V + d)] *= gain[size(d)] / std::sqrt(square + eps) * z * sigmoid(z);
        }
      }
    }
    return named(out, H * V, at + "out_proj", dim);
  }

  // Latent attention without positions. Per head, kv_b_proj gives its keys and then its values, and q_proj its queries for these keys and
  // then those for the key that heads share.
  Numbers latent(const Numbers& h, int64_t T, const std::string& at) const {
    const int64_t H = heads, N = head_dim, R = rotated, C = kv_rank, W = N + R;
    constexpr double kEps = 1e-6;
    const Numbers down = named(h, dim, at + "kv_a_proj_with_mqa", C + R);
    Numbers c(size(T * C)), k(size(T * H * W)), v(size(T * H * N));
    for (int64_t t = 0; t < T; ++t)
      for (int64_t j = 0; j < C; ++j) c[size(t * C + j)] = down[size(t * (C + R) + j)];
    const Numbers both = named(norm(c, C, at + "kv_a_layernorm", kEps), C, at + "kv_b_proj", 2 * H * N);
    for (int64_t t = 0; t < T; ++t)
      for (int64_t head = 0; head < H; ++head) {
        for (int64_t j = 0; j < N; ++j) {
          k[size((t * H + head) * W + j)] = both[size((t * H + head) * 2 * N + j)];
          v[size((t * H + head) * N + j)] = both[size((t * H + head) * 2 * N + N + j)];
        }
        for (int64_t j = 0; j < R; ++j) k[size((t * H + head) * W + N + j)] = down[size(t * (C + R) + C + j)];
      }
    const Numbers q = q_rank == 0
                          ? named(h, dim, at + "q_proj", H * W)
                          : named(norm(named(h, dim, at + "q_a_proj", q_rank), q_rank, at + "q_a_layernorm", kEps),
                                  q_rank, at + "q_b_proj", H * W);
    return named(attention(q, k, v, T, 0, W), H * N, at + "o_proj", dim);
  }

  // y_t = sum_j taps_j x_(t-j), the last tap of the newest token, and silu of it.
  Numbers convolved(const Numbers& x, int64_t T, int64_t channels, const std::string& name) const {
    const Numbers& taps = at(name + ".weight");
    Numbers y(size(T * channels));
    for (int64_t t = 0; t < T; ++t)
      for (int64_t c = 0; c < channels; ++c) {
        double sum = 0;
        for (int64_t j = 0; j < kernel && j <= t; ++j)
          sum += taps[size(c * kernel + kernel - 1 - j)] * x[size((t - j) * channels + c)];
        y[size(t * channels + c)] = sum * sigmoid(sum);
      }
    return y;
  }

  // Kimi Delta Attention: S_t = (1 - b k k^T) diag(a) S_(t-1) + b k v^T with a decay per channel of the keys, and a low-rank gate.
  Numbers kimi_delta(const Numbers& h, int64_t T, const std::string& at) const {
    const int64_t H = value_heads, K = key_dim, C = H * K;
    auto projected = [&](const char* what) {
      return convolved(named(h, dim, at + what + "_proj", C), T, C, at + what + "_conv1d");
    };
    const Numbers q = projected("q"), k = projected("k"), v = projected("v");
    const Numbers strength = named(h, dim, at + "b_proj", H);
    const Numbers forget = named(named(h, dim, at + "f_a_proj", K), K, at + "f_b_proj", C);
    const Numbers gate = named(named(h, dim, at + "g_a_proj", K), K, at + "g_b_proj", C);
    const Numbers &rate = this->at(at + "A_log"), &step = this->at(at + "dt_bias");
    Numbers out(size(T * C));
    for (int64_t head = 0; head < H; ++head) {
      Numbers state(size(K * K), 0.0);
      for (int64_t t = 0; t < T; ++t) {
        auto in_head = [&](int64_t c) { return size(t * C + head * K + c); };
        double qq = 1e-6, kk = 1e-6;
        for (int64_t c = 0; c < K; ++c) qq += q[in_head(c)] * q[in_head(c)], kk += k[in_head(c)] * k[in_head(c)];
        for (int64_t c = 0; c < K; ++c) {
          const double softplus = std::log1p(std::exp(forget[in_head(c)] + step[size(head * K + c)]));
          for (int64_t d = 0; d < K; ++d) state[size(c * K + d)] *= std::exp(-std::exp(rate[size(head)]) * softplus);
        }
        for (int64_t d = 0; d < K; ++d) {
          double old = 0, y = 0;
          for (int64_t c = 0; c < K; ++c) old += state[size(c * K + d)] * k[in_head(c)] / std::sqrt(kk);
          const double write = sigmoid(strength[size(t * H + head)]) * (v[in_head(d)] - old);
          for (int64_t c = 0; c < K; ++c) {
            state[size(c * K + d)] += k[in_head(c)] / std::sqrt(kk) * write;
            y += q[in_head(c)] / std::sqrt(qq * static_cast<double>(K)) * state[size(c * K + d)];
          }
          out[in_head(d)] = y;
        }
      }
    }
    Numbers normed = norm(out, K, at + "o_norm");
    for (size_t i = 0; i < normed.size(); ++i) normed[i] *= sigmoid(gate[i]);
    return named(normed, C, at + "o_proj", dim);
  }

  static void add(Numbers& x, const Numbers& y) {
    for (size_t n = 0; n < x.size(); ++n) x[n] += y[n];
  }
};

}  // namespace weft::reference
