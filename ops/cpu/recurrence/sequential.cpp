// The gated linear recurrence token by token, as weft/ops/recurrence.h states it.
#include <algorithm>

#include "ops/cpu/recurrence/kernels.h"
#include "weft/core/parallel.h"
#include "weft/ops/attention/tile.h"

namespace weft::cpu {

using namespace ops::core;

namespace {

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
void forward_head(const RecurrenceProblem& p, int64_t b, int64_t h) {
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
    for (int64_t n = 0; n < V; ++n) store_element(out, t * out.token_stride + n, T(p.scale) * s.error[n], false);
  }
}

template <class T>
void backward_head(const RecurrenceProblem& p, int64_t b, int64_t h) {
  Steps<T> s{p, b, h};
  const int64_t K = p.key_width, V = p.value_width, head = b * p.heads + h, group = h / p.heads_per_group();
  const bool adds = h % p.heads_per_group() > 0;
  T *states = nullptr, *dstate = nullptr, *dread = nullptr, *dwrite = nullptr, *dquery = nullptr, *dkey = nullptr,
    *ddecay = nullptr;
  auto carve = [&](std::byte* base) {
    size_t used = s.carve(base);
    Carver c(base ? base + used : nullptr);
    states = c.take<T>((p.tokens + 1) * K * V), dstate = c.take<T>(K * V);
    dread = c.take<T>(V), dwrite = c.take<T>(V), dquery = c.take<T>(K), dkey = c.take<T>(K);
    ddecay = c.take<T>(std::max(K, V));
    return used + c.used();
  };
  carve(scratch(carve(nullptr)));
  s.first_state(states);
  for (int64_t t = 0; t < p.tokens; ++t) {
    T* state = states + (t + 1) * K * V;
    if (s.mark(t) == Mark::first) std::fill_n(state, K * V, T(0));
    else std::copy_n(state - K * V, K * V, state);
    if (s.mark(t) == Mark::padding) continue;
    s.load_token(t);
    s.step(state);
  }
  Operand dout = p.dout.at(b, h), dq = p.dq.at(b, group), dk = p.dk.at(b, group), dv = p.dv.at(b, h);
  Operand dlog_decay = p.dlog_decay.at(b, h), dbeta = p.dbeta.at(b, h);
  const T* dlast = static_cast<const T*>(p.dlast_state);
  for (int64_t i = 0; i < K * V; ++i) dstate[i] = dlast ? dlast[head * K * V + i] : T(0);
  double of_head = 0;
  const int64_t width = p.decay == Decay::scalar ? 1 : p.decay == Decay::key ? K : V;
  for (int64_t t = p.tokens - 1; t >= 0; --t) {
    T dstrength = 0;
    std::fill_n(dquery, K, T(0)), std::fill_n(dkey, K, T(0)), std::fill_n(dwrite, V, T(0)),
        std::fill_n(ddecay, width, T(0));
    if (s.mark(t) != Mark::padding) {
      s.load_token(t);
      T *state = states + (t + 1) * K * V, *before = state - K * V;
      for (int64_t n = 0; n < V; ++n)
        dread[n] = dout.data ? element<T>(dout, t * dout.token_stride + n) * T(p.scale) : T(0);
      for (int64_t c = 0; c < K; ++c)
        for (int64_t n = 0; n < V; ++n) {
          dquery[c] += dread[n] * state[c * V + n];
          dstate[c * V + n] += s.query[c] * dread[n];
        }
      if (s.mark(t) == Mark::first) std::fill_n(before = state, K * V, T(0));
      else std::copy_n(before, K * V, state);
      s.step(state);  // for error and write
      for (int64_t c = 0; c < K; ++c)
        for (int64_t n = 0; n < V; ++n)
          dkey[c] += dstate[c * V + n] * s.write[n], dwrite[n] += s.key[c] * dstate[c * V + n];
      for (int64_t n = 0; n < V; ++n) {
        if (!s.is_writing) dwrite[n] = 0;
        dstrength += dwrite[n] * s.error[n];
        dwrite[n] *= s.strength;
      }
      // dstate becomes the gradient of the state before the token.
      for (int64_t c = 0; c < K; ++c)
        for (int64_t n = 0; n < V; ++n) {
          T &ds = dstate[c * V + n], decayed = s.mark(t) == Mark::first ? T(0) : before[c * V + n] * s.decay(c, n);
          if (s.beta.data) dkey[c] -= decayed * dwrite[n], ds -= s.key[c] * dwrite[n];
          ddecay[p.decay == Decay::scalar ? 0 : p.decay == Decay::key ? c : n] += ds * decayed;
          ds = s.mark(t) == Mark::first ? T(0) : ds * s.decay(c, n);
        }
    }
    if (dq.data)
      for (int64_t c = 0; c < K; ++c) store_element(dq, t * dq.token_stride + c, dquery[c], adds);
    if (dk.data)
      for (int64_t c = 0; c < K; ++c) store_element(dk, t * dk.token_stride + c, dkey[c], adds);
    if (dv.data)
      for (int64_t n = 0; n < V; ++n) store_element(dv, t * dv.token_stride + n, dwrite[n], false);
    if (dlog_decay.data)
      for (int64_t c = 0; c < width; ++c) store_element(dlog_decay, t * dlog_decay.token_stride + c, ddecay[c], false);
    if (dbeta.data) store_element(dbeta, t * dbeta.token_stride, dstrength, false);
    of_head += static_cast<double>(ddecay[0]);
  }
  if (p.dlog_decay_of_head) p.dlog_decay_of_head[head] = of_head;
  if (p.dstate) std::copy_n(dstate, K * V, static_cast<T*>(p.dstate) + head * K * V);
}

}  // namespace

template <Isa I, class T>
void RecurrenceKernels<I, T>::forward(const RecurrenceProblem& p) {
  parallel_items(p.batch * p.heads, [&](int64_t i) { forward_head<T>(p, i / p.heads, i % p.heads); });
}

template <Isa I, class T>
void RecurrenceKernels<I, T>::backward(const RecurrenceProblem& p) {
  parallel_items(p.batch * p.key_heads, [&](int64_t i) {
    for (int64_t j = 0; j < p.heads_per_group(); ++j)
      backward_head<T>(p, i / p.key_heads, i % p.key_heads * p.heads_per_group() + j);
  });
}

template struct RecurrenceKernels<kThisIsa, float>;
#if !defined(__AVX2__)
template struct RecurrenceKernels<kThisIsa, double>;
#endif

}  // namespace weft::cpu
