// Mixers of experts, one token after the other.
#pragma once

#include "weft/nn/mixers/experts.h"
#include "weft/trainers/reference.h"

namespace weft::reference {

// Which experts a token uses: the largest probabilities, the lowest index first at ties.
struct Choice {
  Numbers p;
  std::vector<int64_t> experts;
  double total = 0;  // of the chosen p
};
inline Choice chosen_experts(const Numbers& logits, int64_t active) {
  Choice c{softmax(logits), {}, 0};
  std::vector<bool> taken(logits.size(), false);
  for (int64_t n = 0; n < active; ++n) {
    size_t best = logits.size();
    for (size_t e = 0; e < logits.size(); ++e)
      if (!taken[e] && (best == logits.size() || c.p[e] > c.p[best])) best = e;
    taken[best] = true;
    c.experts.push_back(static_cast<int64_t>(best));
    c.total += c.p[best];
  }
  return c;
}

class ExpertMixer {
 public:
  ExpertMixer(const MixerArgs& args, const Parameters& p, const Tensor& x_BTD, const TokenData& data)
      : p(p), s(x_BTD, data), x(values(x_BTD)), D(args.dim), N(s.B * s.T) {}

  Numbers run(const MoaOptions& o) {
    const int64_t A = o.active, K = o.head_dim ? o.head_dim : D / A;
    std::vector<Choice> choices = choose(o.experts, A);
    Numbers k = linear(x, D, parameter(p, "k")), v = linear(x, D, parameter(p, "v")), q;
    for (int64_t t = 0; t < N; ++t)
      for (int64_t e : choices[at(t)].experts) append(q, linear(token(t), D, expert("q", e, K * D)));
    rotate(q, s, A, K);
    rotate(k, s, 1, K);
    double scale = 1 / std::sqrt(static_cast<double>(K));
    Numbers mixed = mix(s, A, 1, K, v, [&](int64_t b, int64_t i, int64_t h) {
      return softmax(scores(s, A, 1, K, q, k, scale, 0, b, i, h));
    });
    Numbers y(at(N * D), 0.0);
    for (int64_t t = 0; t < N; ++t)
      for (int64_t n = 0; n < A; ++n) {
        int64_t e = choices[at(t)].experts[at(n)];
        Numbers slot(mixed.begin() + (t * A + n) * K, mixed.begin() + (t * A + n + 1) * K);
        Numbers out = linear(slot, K, expert("out", e, D * K));
        for (int64_t c = 0; c < D; ++c) y[at(t * D + c)] += choices[at(t)].p[at(e)] / choices[at(t)].total * out[at(c)];
      }
    return y;
  }

  Numbers run(const UmoeOptions& o) {
    const int64_t A = o.active, K = o.head_dim ? o.head_dim : D / 4, F = o.hidden ? o.hidden : D / 4, R = o.query_rank;
    std::vector<Choice> choices = choose(o.experts, A);
    Numbers k = linear(x, D, p, "k"), q;
    for (int64_t t = 0; t < N; ++t) {
      Numbers base = linear(token(t), D, p, "q");
      for (int64_t e : choices[at(t)].experts) {
        Numbers own = linear(linear(token(t), D, expert("query_down", e, R * D)), R, expert("query_up", e, K * R));
        for (int64_t c = 0; c < K; ++c) q.push_back(base[at(c)] + own[at(c)]);
      }
      append(q, linear(token(t), D, p, "shared_q"));
    }
    rotate(q, s, A + 1, K);
    rotate(k, s, 1, K);
    double scale = 1 / std::sqrt(static_cast<double>(K));
    Numbers m = mix(s, A + 1, 1, D, x, [&](int64_t b, int64_t i, int64_t h) {
      return softmax(scores(s, A + 1, 1, K, q, k, scale, 0, b, i, h));
    });
    Numbers y(at(N * D), 0.0);
    for (int64_t t = 0; t < N; ++t)
      for (int64_t n = 0; n <= A; ++n) {
        Numbers in(m.begin() + (t * (A + 1) + n) * D, m.begin() + (t * (A + 1) + n + 1) * D);
        int64_t e = n < A ? choices[at(t)].experts[at(n)] : 0;
        Numbers up = n < A ? linear(in, D, expert("up", e, F * D)) : linear(in, D, p, "shared_up");
        for (double& u : up) u *= sigmoid(u);
        Numbers out = n < A ? linear(up, F, expert("down", e, D * F)) : linear(up, F, p, "shared_down");
        for (int64_t c = 0; c < D; ++c) y[at(t * D + c)] += (n < A ? choices[at(t)].p[at(e)] : 1) * out[at(c)];
      }
    return y;
  }

 private:
  static size_t at(int64_t i) { return static_cast<size_t>(i); }
  static void append(Numbers& all, const Numbers& more) { all.insert(all.end(), more.begin(), more.end()); }
  Numbers token(int64_t t) const { return Numbers(x.begin() + t * D, x.begin() + (t + 1) * D); }
  Numbers expert(const std::string& name, int64_t e, int64_t size) const {
    Numbers all = parameter(p, name);
    return Numbers(all.begin() + e * size, all.begin() + (e + 1) * size);
  }
  std::vector<Choice> choose(int64_t experts, int64_t active) const {
    Numbers logits = linear(x, D, parameter(p, "router.weight"));
    std::vector<Choice> all;
    for (int64_t t = 0; t < N; ++t)
      all.push_back(chosen_experts(Numbers(logits.begin() + t * experts, logits.begin() + (t + 1) * experts), active));
    return all;
  }

  const Parameters& p;
  Sequence s;
  Numbers x;
  int64_t D, N;
};

}  // namespace weft::reference
