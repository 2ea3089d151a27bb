// Softmax attention with its options, materialised, one token after the other.
#pragma once

#include "tests/reference/mixers/experts.h"
#include "weft/nn/mixers/softmax.h"
#include "weft/trainers/reference.h"

namespace weft::reference {

class SoftmaxMixer {
 public:
  SoftmaxMixer(const MixerArgs& args, const Parameters& p, const Tensor& x_BTD, const TokenData& data)
      : args(args), p(p), s(x_BTD, data), x(values(x_BTD)) {}

  // What dropout multiplies a weight by: 0, or 1 / (1 - dropout). None by default.
  std::function<double(int64_t b, int64_t h, int64_t i, int64_t j)> kept = {};

  Numbers run(SoftmaxOptions options) {
    o = std::move(options);
    if (o.kv_heads == 0) o.kv_heads = o.heads;
    if (o.head_dim == 0) o.head_dim = args.dim / o.heads;
    H = o.heads, G = o.kv_heads, K = o.head_dim;
    project();
    Numbers y = mix(s, H, G, K, v, [&](int64_t b, int64_t i, int64_t h) { return weights(b, i, h); });
    if (o.sink.kind == SinkKind::key_value_bias || o.sink.kind == SinkKind::value_bias) add_sink_values(y);
    if (o.has_head_norm) rms_norm(y, K, parameter(p, "head_norm.weight"), args.norm_eps);
    if (o.has_out_silu)
      for (double& c : y) c *= sigmoid(c);
    gate(GatePosition::out, "gate_out", y, H, K);
    if (o.head_mixture.active > 0) weigh_heads(y);
    Numbers out = linear(y, H * K, p, "out");
    gate(GatePosition::layer, "gate_layer", out, 1, s.D);
    return out;
  }

 private:
  static size_t at(int64_t i) { return static_cast<size_t>(i); }
  int64_t token(int64_t b, int64_t t) const { return b * s.T + t; }

  // k or v: components, mixed over heads if there are fewer.
  Numbers heads_of(const std::string& name, const std::string& mixing) const {
    Numbers parts = linear(x, s.D, p, name);
    if (o.components == 0) return parts;
    Numbers m = parameter(p, mixing), mixed(at(s.B * s.T * G * K), 0.0);
    for (int64_t t = 0; t < s.B * s.T; ++t)
      for (int64_t g = 0; g < G; ++g)
        for (int64_t n = 0; n < o.components; ++n)
          for (int64_t c = 0; c < K; ++c)
            mixed[at((t * G + g) * K + c)] += parts[at((t * o.components + n) * K + c)] * m[at(n * G + g)];
    return mixed;
  }

  void project() {
    q = linear(x, s.D, p, "q"), k = heads_of("k", "key_mix"), v = heads_of("v", "value_mix");
    gate(GatePosition::values, "gate_values", v, G, K);
    if (o.temperature.scales_values) {
      Numbers a = parameter(p, "temperature.value_weight"), bias = parameter(p, "temperature.value_bias");
      for (int64_t r = 0; r < s.B * s.T * G; ++r) {
        double dot = bias[at(r % G)];
        for (int64_t c = 0; c < K; ++c) dot += v[at(r * K + c)] * a[at(r % G * K + c)];
        for (int64_t c = 0; c < K; ++c) v[at(r * K + c)] *= 1 + std::tanh(dot);
      }
    }
    if (o.qk_norm == QkNorm::rms) {
      rms_norm(q, K, parameter(p, "q_norm.weight"), args.norm_eps);
      rms_norm(k, K, parameter(p, "k_norm.weight"), args.norm_eps);
    } else if (o.qk_norm == QkNorm::l2) {
      const double root = 1 / std::sqrt(static_cast<double>(K));
      rms_norm(q, K, Numbers(at(K), root), args.norm_eps / static_cast<double>(K));
      rms_norm(k, K, Numbers(at(K), root), args.norm_eps / static_cast<double>(K));
    }
    gate(GatePosition::keys, "gate_keys", k, G, K);
    gate(GatePosition::queries, "gate_queries", q, H, K);
    for (int64_t r = 0; r < s.B * s.T * H; ++r) {
      double tau = query_factor(r / H, r % H);
      for (int64_t c = 0; c < K; ++c) q[at(r * K + c)] *= tau;
    }
    if (args.rotary && o.position == MixerPosition::model) {
      rotate(q, s, H, K);
      rotate(k, s, G, K);
    }
  }

  double query_factor(int64_t t, int64_t h) const {
    double factor = o.has_score_scale ? parameter(p, "score_scale")[at(h)] : 1, tau = 1;
    if (o.qk_norm == QkNorm::l2) factor *= parameter(p, "scale")[0];
    if (o.temperature.has_position) {
      double slope = std::exp(-std::exp(parameter(p, "temperature.beta")[0]));
      tau += slope * std::log(s.local[at(t)] + 1.0);
    }
    if (o.temperature.has_token) {
      Numbers a = parameter(p, "temperature.query_weight");
      double dot = parameter(p, "temperature.query_bias")[at(h)];
      for (int64_t c = 0; c < K; ++c) dot += q[at((t * H + h) * K + c)] * a[at(h * K + c)];
      tau += std::tanh(dot);
    }
    return factor * tau;
  }

  void gate(GatePosition position, const std::string& name, Numbers& y, int64_t heads, int64_t width) const {
    for (const GateOptions& g : o.gates) {
      if (g.position != position) continue;
      int64_t columns = g.is_per_head ? 1 : width;
      Numbers z = g.reads_input ? linear(x, s.D, p, name + ".project") : Numbers();
      Numbers constant = g.reads_input ? Numbers() : parameter(p, name + ".constant");
      auto value = [&](int64_t t, int64_t h, int64_t c) {
        double raw = g.reads_input ? z[at((t * heads + h) * columns + c)] : constant[at(h * columns + c)];
        switch (g.activation) {
          case GateActivation::silu: return raw * sigmoid(raw);
          case GateActivation::shifted_sigmoid: return 0.5 + 0.5 * sigmoid(raw);
          case GateActivation::identity: return raw;
          case GateActivation::sigmoid: break;
        }
        return sigmoid(raw);
      };
      for (int64_t t = 0; t < s.B * s.T; ++t)
        for (int64_t h = 0; h < heads; ++h)
          for (int64_t c = 0; c < width; ++c) {
            double score = 0;
            for (int64_t other = 0; other < heads; ++other)
              if (g.is_head_shared || other == h)
                score += value(t, other, g.is_per_head ? 0 : c) / (g.is_head_shared ? static_cast<double>(heads) : 1);
            double& to = y[at((t * heads + h) * width + c)];
            to = g.is_additive ? to + score : to * score;
          }
    }
  }

  int64_t sink_row(int64_t h) const { return o.sink.is_head_shared ? 0 : h; }
  double scale() const { return o.qk_norm == QkNorm::l2 ? 1 : 1 / std::sqrt(static_cast<double>(K)); }

  // The logit of the sink for a query; -infinity without one.
  double sink_logit(int64_t t, int64_t h) const {
    switch (o.sink.kind) {
      case SinkKind::off_by_one: return 0;
      case SinkKind::logit: {
        double logit = parameter(p, "sink.logit")[at(sink_row(h))];
        return o.weights.kind == WeightKind::signed_softmax ? std::abs(logit) : logit;
      }
      case SinkKind::key_bias:
      case SinkKind::key_value_bias: {
        Numbers key = parameter(p, "sink.key");
        double dot = 0;
        for (int64_t c = 0; c < K; ++c) dot += q[at((t * H + h) * K + c)] * key[at(sink_row(h) * K + c)];
        double score = scale() * dot;
        return o.softcap > 0 ? o.softcap * std::tanh(score / o.softcap) : score;
      }
      case SinkKind::none:
      case SinkKind::value_bias: break;
    }
    return -std::numeric_limits<double>::infinity();
  }

  // Scores of the keys with the sink's behind them.
  Numbers logits(int64_t b, int64_t i, int64_t h) const {
    Numbers row = scores(s, H, G, K, q, k, scale(), o.window, b, i, h);
    for (int64_t j = 0; j < s.T; ++j) {
      double& score = row[at(j)];
      if (!std::isfinite(score)) continue;
      if (o.softcap > 0) score = o.softcap * std::tanh(score / o.softcap);
      if (o.position == MixerPosition::alibi) {
        WEFT_CHECK((H & (H - 1)) == 0, str("reference: ALiBi with ", H, " heads"), "use a power of two in tests");
        double slope = std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(H));
        score -= slope * (s.position[at(token(b, i))] - s.position[at(token(b, j))]);
      }
    }
    row.push_back(sink_logit(token(b, i), h));
    return row;
  }

  // Weights before affine scaling, the sink's last.
  Numbers bare_weights(int64_t b, int64_t i, int64_t h) const {
    Numbers row = logits(b, i, h), w(row.size(), 0.0);
    bool is_end = args.layer == 0 || args.layer == args.layers - 1;
    WeightKind kind = o.weights.kind;
    if (kind == WeightKind::signed_softmax && o.weights.keeps_ends && is_end) kind = WeightKind::softmax;
    if (kind == WeightKind::softmax) return softmax(row);
    if (o.has_score_shift)
      for (double& score : row) score += parameter(p, "score_shift")[at(h)];
    if (kind == WeightKind::signed_softmax) {
      Numbers sizes = row;
      for (double& size : sizes)
        if (std::isfinite(size)) size = std::abs(size);
      w = softmax(sizes);
      for (int64_t j = 0; j < s.T; ++j)
        if (row[at(j)] < 0) w[at(j)] *= -1;
      return w;
    }
    double seen = 0, sum = 0;
    for (int64_t j = 0; j < s.T; ++j) seen += s.sees(b, i, j, o.window);
    for (int64_t j = 0; j < s.T; ++j) {
      if (!s.sees(b, i, j, o.window)) continue;
      double score = row[at(j)];
      if (kind == WeightKind::sigmoid && o.weights.bias == SigmoidBias::context)
        score -= std::log(static_cast<double>(args.context));
      if (kind == WeightKind::sigmoid && o.weights.bias == SigmoidBias::row) score -= std::log(seen);
      double& weight = w[at(j)];
      if (kind == WeightKind::sigmoid) weight = sigmoid(score);
      if (kind == WeightKind::relu) weight = std::max(score, 0.0) / std::pow(seen, o.weights.power);
      if (kind == WeightKind::elu1) weight = score > 0 ? score + 1 : std::exp(score);
      if (kind == WeightKind::taylor2) weight = 1 + score + score * score / 2;
      sum += weight;
    }
    if (o.weights.is_divided_by_sum)
      for (double& weight : w) weight /= sum + 1e-8;
    return w;
  }

  Numbers weights(int64_t b, int64_t i, int64_t h) const {
    Numbers w = bare_weights(b, i, h);
    w.pop_back();
    for (int64_t j = 0; kept && j < s.T; ++j) w[at(j)] *= kept(b, h, i, j);
    if (!o.affine.is_on) return w;
    Numbers alpha = linear(x, s.D, p, "affine.alpha");
    double pre = alpha[at(token(b, i) * H + h)], seen = 0;
    double a = o.affine.has_sigmoid ? sigmoid(pre) : std::min(1.0, std::max(0.0, 0.1 * pre + 0.5));
    for (int64_t j = 0; j < s.T; ++j) seen += s.sees(b, i, j, o.window);
    double n = o.affine.divides_by_context ? static_cast<double>(args.context) : seen;
    double bias = (parameter(p, "affine.mean")[at(h)] - a) / n;
    for (int64_t j = 0; j < s.T; ++j) w[at(j)] = s.sees(b, i, j, o.window) ? a * w[at(j)] + bias : 0;
    return w;
  }

  void weigh_heads(Numbers& y) const {
    const HeadMixtureOptions& m = o.head_mixture;
    const int64_t S = m.shared, R = H - S;
    auto of = [&](const char* name) { return linear(x, s.D, p, std::string("head_mixture.") + name); };
    Numbers logits =
        m.reads_query_norm ? query_norms(S, R) : linear(x, s.D, parameter(p, "head_mixture.router.weight"));
    Numbers shared = S > 1 && !m.reads_query_norm ? of("shared") : Numbers();
    Numbers kind = S > 0 && !m.reads_query_norm ? of("kind") : Numbers();
    for (int64_t t = 0; t < s.B * s.T; ++t) {
      Choice c = chosen_experts(Numbers(logits.begin() + t * R, logits.begin() + (t + 1) * R), m.active);
      Numbers weights(at(H), 0.0), shares, kinds{0.5, 0.5};
      double unit = m.has_paper_scale ? 1 : static_cast<double>(S);
      if (!shared.empty()) shares = softmax(Numbers(shared.begin() + t * S, shared.begin() + (t + 1) * S));
      if (!kind.empty()) kinds = softmax(Numbers(kind.begin() + t * 2, kind.begin() + t * 2 + 2));
      double kind_unit = kind.empty() ? 2 : m.has_paper_scale ? 1 : 2;
      for (int64_t h = 0; h < S; ++h)
        weights[at(h)] = (shares.empty() ? 1 : unit * shares[at(h)]) * kind_unit * kinds[0];
      for (int64_t e : c.experts)
        weights[at(S + e)] = kind_unit * kinds[1] *
                             (m.reads_query_norm  ? 1
                              : m.has_paper_scale ? c.p[at(e)]
                                                  : static_cast<double>(m.active) * c.p[at(e)] / c.total);
      for (int64_t h = 0; h < H; ++h)
        for (int64_t i = 0; i < K; ++i) y[at((t * H + h) * K + i)] *= weights[at(h)];
    }
  }

  Numbers query_norms(int64_t S, int64_t R) const {
    Numbers out;
    for (int64_t t = 0; t < s.B * s.T; ++t) {
      Numbers norms;
      double mean = 0, variance = 0;
      for (int64_t h = S; h < H; ++h) {
        double sum = 0;
        for (int64_t i = 0; i < K; ++i) sum += q[at((t * H + h) * K + i)] * q[at((t * H + h) * K + i)];
        norms.push_back(std::sqrt(sum));
        mean += norms.back() / static_cast<double>(R);
      }
      for (double n : norms) variance += (n - mean) * (n - mean) / static_cast<double>(std::max<int64_t>(R - 1, 1));
      for (double n : norms) out.push_back(n / std::sqrt(variance));
    }
    return out;
  }

  // What the sink's own value adds. With affine scaling it is scaled as the weights of the keys are.
  void add_sink_values(Numbers& y) const {
    Numbers value = parameter(p, "sink.value"), alpha = o.affine.is_on ? linear(x, s.D, p, "affine.alpha") : Numbers();
    for (int64_t b = 0; b < s.B; ++b)
      for (int64_t i = 0; i < s.T; ++i)
        for (int64_t h = 0; h < H; ++h) {
          double w = o.sink.kind == SinkKind::value_bias ? 1 : bare_weights(b, i, h).back();
          if (o.affine.is_on) {
            double pre = alpha[at(token(b, i) * H + h)];
            w *= o.affine.has_sigmoid ? sigmoid(pre) : std::min(1.0, std::max(0.0, 0.1 * pre + 0.5));
          }
          for (int64_t c = 0; c < K; ++c) y[at((token(b, i) * H + h) * K + c)] += w * value[at(sink_row(h) * K + c)];
        }
  }

  SoftmaxOptions o;
  const MixerArgs& args;
  const Parameters& p;
  Sequence s;
  Numbers x, q, k, v;
  int64_t H = 0, G = 0, K = 0;
};

}  // namespace weft::reference
