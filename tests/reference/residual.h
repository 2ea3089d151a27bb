// Residual streams in plain loops, on the five sublayers of the suite's probe (trainers/conformance/part_probe.cpp).
#pragma once

#include "weft/nn/residual.h"
#include "weft/trainers/reference.h"

namespace weft::reference {

class ResidualProbe {
 public:
  ResidualProbe(const RoutedResidualOptions* options, const MixerArgs& args, const Parameters& p, const Tensor& x_BTD,
                const TokenData& data)
      : o(options), args(args), p(p), s(x_BTD, data), e(values(x_BTD)) {}

  Numbers run() {
    for (int64_t l = 0; l < kSublayers; ++l) {
      Numbers h = input(l);
      rms_norm(h, s.D, parameter(p, "gain"), args.norm_eps);
      if (l == 1) h = with_previous(h);
      Numbers y = linear(h, s.D, p, str("maps.", l));
      for (double& value : y) value = std::tanh(value);
      outputs.push_back(y);
    }
    if (!o || o->combine == ResidualCombine::add) return sum(0, kSublayers, true);
    return mixture(kSublayers, "residual.output");
  }

 private:
  static constexpr int64_t kSublayers = 5;

  // e (if asked) plus outputs [begin, end).
  Numbers sum(int64_t begin, int64_t end, bool with_e) const {
    Numbers total = with_e ? e : Numbers(e.size(), 0.0);
    for (int64_t l = begin; l < end; ++l)
      for (size_t i = 0; i < total.size(); ++i) total[i] += outputs[static_cast<size_t>(l)][i];
    return total;
  }

  Numbers with_previous(const Numbers& h) const {
    Numbers y = h;
    for (int64_t t = 0; t < s.B * s.T; ++t) {
      bool has = t % s.T > 0 && s.document[static_cast<size_t>(t)] == s.document[static_cast<size_t>(t - 1)];
      for (int64_t c = 0; c < s.D && has; ++c)
        y[static_cast<size_t>(t * s.D + c)] += 0.5 * h[static_cast<size_t>((t - 1) * s.D + c)];
    }
    return y;
  }

  Numbers input(int64_t l) const {
    if (!o) return sum(0, l, true);
    if (l == 0) return e;
    Numbers mixed = mixture(l, str("residual.routers.", l));
    if (o->combine == ResidualCombine::replace) return mixed;
    Numbers stream = sum(0, l, true);
    for (size_t i = 0; i < stream.size(); ++i) stream[i] += mixed[i];
    return stream;
  }

  std::vector<Numbers> sources(int64_t l) const {
    std::vector<Numbers> all;
    if (o->sources == ResidualSources::states) {
      for (int64_t k = 0; k <= l; ++k) all.push_back(sum(0, k, true));
      return all;
    }
    all.push_back(e);
    if (o->sources == ResidualSources::outputs) {
      for (int64_t k = 0; k < l; ++k)
        if (o->window == 0 || k >= l - o->window) all.push_back(outputs[static_cast<size_t>(k)]);
      return all;
    }
    const int64_t length = (kSublayers + o->blocks - 1) / o->blocks;
    for (int64_t begin = 0, n = 1; begin < l; ++n) {
      int64_t end = begin + length;
      while (kSublayers - end < o->blocks - n) --end;  // one for each later block
      if (end <= l || o->combine == ResidualCombine::replace) all.push_back(sum(begin, std::min(l, end), false));
      begin = end;
    }
    return all;
  }

  Numbers mixture(int64_t l, const std::string& name) const {
    std::vector<Numbers> all = sources(l);
    if (o->has_null_source) {
      Numbers null = parameter(p, name + ".null"), rows;
      for (int64_t t = 0; t < s.B * s.T; ++t) rows.insert(rows.end(), null.begin(), null.end());
      all.insert(all.begin(), rows);
    }
    Numbers h(e.size(), 0.0);
    for (int64_t t = 0; t < s.B * s.T; ++t) {
      Numbers a = weights(all, t, name);
      for (size_t i = 0; i < all.size(); ++i)
        for (int64_t c = 0; c < s.D; ++c) {
          auto at = static_cast<size_t>(t * s.D + c);
          h[at] += a[i] * all[i][at];
        }
    }
    return h;
  }

  Numbers weights(const std::vector<Numbers>& all, int64_t t, const std::string& name) const {
    if (o->weights == ResidualWeights::scalars) return parameter(p, name + ".scores");
    if (o->weights == ResidualWeights::fixed_softmax) return softmax(parameter(p, name + ".scores"));
    Numbers w = parameter(p, name + ".query"), scores;
    Numbers gain = o->has_key_norm && o->has_key_gain ? parameter(p, name + ".gain") : Numbers(w.size(), 1.0);
    for (const Numbers& source : all) {
      double squares = 0, dot = 0;
      for (int64_t c = 0; c < s.D; ++c) {
        double v = source[static_cast<size_t>(t * s.D + c)];
        squares += v * v / static_cast<double>(s.D);
        dot += v * w[static_cast<size_t>(c)] * gain[static_cast<size_t>(c)];
      }
      scores.push_back(o->has_key_norm ? dot / std::sqrt(squares + args.norm_eps) : dot);
    }
    if (o->weights == ResidualWeights::softmax) return softmax(scores);
    for (double& score : scores) score = sigmoid(score);
    return scores;
  }

  const RoutedResidualOptions* o;  // null: standard
  const MixerArgs& args;
  const Parameters& p;
  Sequence s;
  Numbers e;
  std::vector<Numbers> outputs;
};

}  // namespace weft::reference
