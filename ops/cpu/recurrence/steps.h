// The recurrence token by token, as weft/ops/recurrence.h states it: for calls of a few tokens, such as a step of decoding.
#pragma once

#include <algorithm>

#include "ops/cpu/recurrence/kernels.h"
#include "weft/ops/attention/tile.h"

namespace weft::cpu {
namespace {

using namespace ops::core;

template <class T>
T decay_of(T log_decay) {
  return lane_exp2(log_decay * T(1.44269504088896340736));
}

template <class T>
void store_element(const Operand& x, int64_t at, T value, bool adds) {
  if (x.is_bf16) static_cast<BFloat16*>(const_cast<void*>(x.data))[at] = BFloat16(static_cast<float>(value));
  else if (adds) static_cast<T*>(const_cast<void*>(x.data))[at] += value;
  else static_cast<T*>(const_cast<void*>(x.data))[at] = value;
}

// One head of one row.
template <class T>
struct Steps {
  const RecurrenceProblem& p;
  int64_t b, h, K = p.key_width, V = p.value_width;
  Operand q = p.q.at(b, h / p.heads_per_group()), k = p.k.at(b, h / p.heads_per_group()), v = p.v.at(b, h);
  Operand log_decay = p.log_decay.at(b, h), beta = p.beta.at(b, h), writes = p.writes.at(b, h);
  T *query = nullptr, *key = nullptr, *value = nullptr, *alpha = nullptr, *error = nullptr,
    *write = nullptr;  // of the token at work
  T strength = 1;
  bool is_writing = true;

  size_t carve(std::byte* base) {
    Carver c(base);
    query = c.take<T>(K), key = c.take<T>(K), value = c.take<T>(V), error = c.take<T>(V), write = c.take<T>(V);
    alpha = c.take<T>(std::max(K, V));
    return c.used();
  }
  Mark mark(int64_t t) const { return p.marks ? p.marks[b * p.tokens + t] : Mark::token; }

  void load_token(int64_t t) {
    for (int64_t c = 0; c < K; ++c) query[c] = element<T>(q, t * q.token_stride + c);
    for (int64_t c = 0; c < K; ++c) key[c] = element<T>(k, t * k.token_stride + c);
    for (int64_t c = 0; c < V; ++c) value[c] = element<T>(v, t * v.token_stride + c);
    const int64_t width = p.decay == Decay::scalar ? 1 : p.decay == Decay::key ? K : V;
    for (int64_t c = 0; c < width; ++c)
      alpha[c] = log_decay.data ? decay_of(element<T>(log_decay, t * log_decay.token_stride + c)) : T(1);
    is_writing = !writes.data || static_cast<const bool*>(writes.data)[t * writes.token_stride];
    strength = beta.data ? element<T>(beta, t * beta.token_stride) : T(1);
  }
  T decay(int64_t c, int64_t n) const { return alpha[p.decay == Decay::scalar ? 0 : p.decay == Decay::key ? c : n]; }

  // The state before the token becomes the one after it; error is v - k S', write is u.
  void step(T* state) {
    for (int64_t n = 0; n < V; ++n) error[n] = value[n];
    for (int64_t c = 0; c < K; ++c)
      for (int64_t n = 0; n < V; ++n) {
        state[c * V + n] *= decay(c, n);
        if (beta.data) error[n] -= key[c] * state[c * V + n];
      }
    for (int64_t n = 0; n < V; ++n) write[n] = is_writing ? error[n] * strength : T(0);
    for (int64_t c = 0; c < K; ++c)
      for (int64_t n = 0; n < V; ++n) state[c * V + n] += key[c] * write[n];
  }
  void first_state(T* state) const {
    const T* from = static_cast<const T*>(p.state);
    for (int64_t i = 0; i < K * V; ++i) state[i] = from ? from[(b * p.heads + h) * K * V + i] : T(0);
  }
};

template <class T>
void forward_steps(const RecurrenceProblem& p, int64_t b, int64_t h) {
  Steps<T> s{p, b, h};
  const int64_t K = p.key_width, V = p.value_width;
  s.carve(scratch(s.carve(nullptr)));
  T* state = static_cast<T*>(p.last_state) + (b * p.heads + h) * K * V;
  Operand out = p.out.at(b, h);
  s.first_state(state);
  for (int64_t t = 0; t < p.tokens; ++t) {
    std::fill_n(s.error, V, T(0));
    if (s.mark(t) == Mark::first) std::fill_n(state, K * V, T(0));
    if (s.mark(t) != Mark::padding) {
      s.load_token(t);
      s.step(state);
      std::fill_n(s.error, V, T(0));
      for (int64_t c = 0; c < K; ++c)
        for (int64_t n = 0; n < V; ++n) s.error[n] += s.query[c] * state[c * V + n];
    }
    for (int64_t n = 0; n < V && out.data; ++n)
      store_element(out, t * out.token_stride + n, T(p.scale) * s.error[n], false);
  }
}

}  // namespace
}  // namespace weft::cpu
