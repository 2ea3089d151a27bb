// Miras token by token, from the equations of 2504.13173 with a matrix per head as memory: errors are taken against the memory of the beginning
// of the chunk. Moneta keeps A beside its memory; Memora's memory is all that it has.
#pragma once

#include "tests/reference/mixers/recurrent.h"

namespace weft::reference {

class MirasMixer : public RecurrentMixer {
 public:
  using RecurrentMixer::RecurrentMixer;

  Numbers run(const MirasOptions& o) {
    const int64_t H = o.heads, K = D / H;
    auto made = [&](const std::string& name) {
      return each(conv(of(name), parameter(p, name + "_conv.weight"), o.kernel), silu);
    };
    const Numbers q = unit(made("q"), K), k = unit(made("k"), K), v = made("v"), rate = each(of("rate"), sigmoid),
                  decay = each(of("decay"), sigmoid);
    const Numbers bound = o.kind == MirasKind::yaad ? each(of("bound"), softplus) : Numbers();
    Numbers y(at(N * D), 0.0);
    for (int64_t b = 0; b < s.B; ++b)
      for (int64_t h = 0; h < H; ++h) {
        Numbers state, first;  // [K, V]: kept, and the memory of the chunk's beginning
        double size = 1;       // of the state at the chunk's beginning
        for (int64_t t = 0; t < s.T; ++t) {
          const int64_t n = b * s.T + t, head = (n * H + h) * K;
          const bool begins = t == 0 || s.document[at(n)] != s.document[at(n - 1)];
          if (begins) state.assign(at(K * K), o.kind == MirasKind::memora ? 1 / static_cast<double>(K) : 0.0);
          if (begins || s.local[at(n)] % o.chunk == 0) {
            if (o.kind == MirasKind::moneta) size = std::pow(std::max(1.0, four_norm(state)), 2);
            first = state;
            for (double& w : first) w /= size;
          }
          Numbers e(at(K), 0.0);
          double squares = 0;
          for (int64_t m = 0; m < K; ++m) {
            for (int64_t c = 0; c < K; ++c) e[at(m)] += k[at(head + c)] * first[at(c * K + m)];
            e[at(m)] -= v[at(head + m)];
            squares += e[at(m)] * e[at(m)];
          }
          for (double& error : e) {
            if (o.kind == MirasKind::memora) error *= static_cast<double>(K);
            if (o.kind == MirasKind::moneta) error = 3 * std::tanh(10 * error) * (error * error + 1e-6);
            if (o.kind == MirasKind::yaad) error *= std::min(1.0, bound[at(n * H + h)] / std::sqrt(squares));
          }
          const double kept = std::pow(decay[at(n * H + h)], 1.0 / 16), step = rate[at(n * H + h)];
          for (int64_t m = 0; m < K; ++m) {
            Numbers column(at(K));
            for (int64_t c = 0; c < K; ++c) {
              const double w = state[at(c * K + m)];
              column[at(c)] =
                  kept * (o.kind == MirasKind::memora ? std::log(w) : w) - step * k[at(head + c)] * e[at(m)];
            }
            if (o.kind == MirasKind::memora) column = softmax(column);
            for (int64_t c = 0; c < K; ++c) {
              state[at(c * K + m)] = column[at(c)];
              y[at(head + m)] += q[at(head + c)] * column[at(c)] / size;
            }
          }
        }
      }
    rms_norm(y, K, parameter(p, "head_norm.weight"), 1e-5);
    return linear(times(y, each(of("gate"), silu)), D, p, "out");
  }

 private:
  static double four_norm(const Numbers& a) {
    double sum = 0;
    for (double x : a) sum += x * x * x * x;
    return std::pow(sum, 0.25);
  }
};

}  // namespace weft::reference
