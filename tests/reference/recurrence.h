// The gated linear recurrence and the element-wise one in float64, token after token.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace weft::reference {

using Values = std::vector<double>;

// S' = Diag(a_t) S, or S Diag(a_t) for value channels; u = v, or beta (v - k S'); S = S' + k^T u; o = scale q S.
struct Recurrence {
  int64_t B = 1, T = 1, G = 1, H = 1, K = 1, V = 1;
  double scale = 1;
  bool is_of_values = false;      // the decay of a channel
  Values q = {}, k = {}, v = {};  // [B, T, G, K], the same, [B, T, H, V]
  Values log_decay = {};          // of 1, 3 or 4 dimensions: [H], [B, T, H] or [B, T, H, K or V]; empty: 0
  int decay_dims = 0;
  Values beta = {};  // [B, T, H]; empty: the plain write
  std::vector<bool> writes = {};
  Values state = {};  // [B, H, K, V]; empty: zeros
  std::vector<int64_t> documents = {}, state_document = {};

  Values out = {}, last_state = {};

  double decay(int64_t b, int64_t t, int64_t h, int64_t c, int64_t n) const {
    const int64_t token = (b * T + t) * H + h, width = is_of_values ? V : K, channel = is_of_values ? n : c;
    if (log_decay.empty()) return 1;
    if (decay_dims == 4) return std::exp(at(log_decay, token * width + channel));
    return std::exp(at(log_decay, decay_dims == 1 ? h : token));
  }

  void run() {
    out.assign(v.size(), 0);
    last_state.assign(static_cast<size_t>(B * H * K * V), 0);
    for (int64_t b = 0; b < B; ++b)
      for (int64_t h = 0; h < H; ++h) run_head(b, h);
  }

 private:
  static double at(const Values& x, int64_t i) { return x[static_cast<size_t>(i)]; }

  void run_head(int64_t b, int64_t h) {
    const int64_t first = (b * H + h) * K * V;
    double* S = last_state.data() + first;
    for (int64_t i = 0; i < K * V; ++i) S[i] = state.empty() ? 0 : at(state, first + i);
    bool is_known = !state_document.empty();
    int64_t at_work = is_known ? state_document[static_cast<size_t>(b)] : 0;
    for (int64_t t = 0; t < T; ++t) {
      if (!documents.empty()) {
        const int64_t document = documents[static_cast<size_t>(b * T + t)];
        if (document < 0) continue;
        if (is_known && document != at_work)
          for (int64_t i = 0; i < K * V; ++i) S[i] = 0;
        at_work = document, is_known = true;
      }
      step(b, t, h, S);
    }
  }
  void step(int64_t b, int64_t t, int64_t h, double* S) {
    const int64_t of_key = ((b * T + t) * G + h / (H / G)) * K, token = (b * T + t) * H + h;
    for (int64_t c = 0; c < K; ++c)
      for (int64_t n = 0; n < V; ++n) S[c * V + n] *= decay(b, t, h, c, n);
    for (int64_t n = 0; n < V; ++n) {
      double u = at(v, token * V + n);
      if (!beta.empty()) {
        for (int64_t c = 0; c < K; ++c) u -= at(k, of_key + c) * S[c * V + n];
        u *= at(beta, token);
      }
      if (!writes.empty() && !writes[static_cast<size_t>(token)]) u = 0;
      double read = 0;
      for (int64_t c = 0; c < K; ++c) {
        S[c * V + n] += at(k, of_key + c) * u;
        read += at(q, of_key + c) * S[c * V + n];
      }
      out[static_cast<size_t>(token * V + n)] = scale * read;
    }
  }
};

// y_t = exp(g_t) y_{t-1} + x_t.
struct DecayScan {
  int64_t B = 1, T = 1, D = 1;
  Values x = {}, log_decay = {}, state = {};  // [B, T, D], [D] or [B, T, D], [B, D] or empty
  bool is_per_channel = false;                // log_decay is [D]
  std::vector<int64_t> documents = {}, state_document = {};

  Values y = {}, last_state = {};

  void run() {
    y.assign(x.size(), 0), last_state.assign(static_cast<size_t>(B * D), 0);
    for (int64_t b = 0; b < B; ++b)
      for (int64_t d = 0; d < D; ++d) {
        double& S = last_state[static_cast<size_t>(b * D + d)];
        if (!state.empty()) S = state[static_cast<size_t>(b * D + d)];
        bool is_known = !state_document.empty();
        int64_t at_work = is_known ? state_document[static_cast<size_t>(b)] : 0;
        for (int64_t t = 0; t < T; ++t) {
          const auto i = static_cast<size_t>((b * T + t) * D + d);
          if (!documents.empty()) {
            const int64_t document = documents[static_cast<size_t>(b * T + t)];
            if (document < 0) continue;
            if (is_known && document != at_work) S = 0;
            at_work = document, is_known = true;
          }
          S = std::exp(log_decay[is_per_channel ? static_cast<size_t>(d) : i]) * S + x[i];
          y[i] = S;
        }
      }
  }
};

}  // namespace weft::reference
