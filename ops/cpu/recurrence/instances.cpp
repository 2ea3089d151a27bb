// The list of instances of the recurrence: f32 in every instruction set and f64 in the baseline, each with {decay of tokens or of key channels}
// x {plain, delta}, and decay of value channels. bf16 tensors are widened when a block is loaded, so they need no instances.
#include "ops/cpu/recurrence/key_side.h"
#include "ops/cpu/recurrence/steps.h"
#include "ops/cpu/recurrence/value_side.h"
#include "weft/core/parallel.h"

namespace weft::cpu {

namespace {

constexpr int64_t kFewTokens = 2;

// Calls f(i) for i in [0, n); on the calling thread if the whole call is too small to be worth waking others.
template <class F>
void run_items(const RecurrenceProblem& p, int64_t n, F&& f) {
  constexpr int64_t kSmall = 1 << 17;  // multiplications: some tens of microseconds
  if (p.batch * p.tokens * p.heads * p.key_width * p.value_width > kSmall) return parallel_items(n, f);
  parallel_for(n, larger(n, 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

// Calls run(side) with the class that computes p.
template <class T, class F>
void with_side(const RecurrenceProblem& p, F&& run) {
  const bool is_delta = p.beta.data != nullptr;
  switch (p.decay) {
    case Decay::scalar: return is_delta ? run(KeySide<T, false, true>(p)) : run(KeySide<T, false, false>(p));
    case Decay::key: return is_delta ? run(KeySide<T, true, true>(p)) : run(KeySide<T, true, false>(p));
    case Decay::value: return run(ValueSide<T>(p));
  }
}

}  // namespace

template <Isa I, class T>
void RecurrenceKernels<I, T>::forward(const RecurrenceProblem& p) {
  run_items(p, p.batch * p.heads, [&](int64_t i) {
    if (p.tokens <= kFewTokens) return forward_steps<T>(p, i / p.heads, i % p.heads);
    with_side<T>(p, [&](auto side) { side.forward(i / p.heads, i % p.heads); });
  });
}

template <Isa I, class T>
int64_t RecurrenceKernels<I, T>::states_size(const RecurrenceProblem& p) {
  const Sizes<T> z(p);
  return (z.blocks + 1) * z.K * z.V;
}

// Each worker has memory for the states of a head and takes the next group of heads when it is free.
template <Isa I, class T>
void RecurrenceKernels<I, T>::backward(const RecurrenceProblem& p, void* states, int64_t workers) {
  const int64_t each = states_size(p), groups = p.batch * p.key_heads;
  int64_t next = 0;
  run_items(p, workers, [&](int64_t worker) {
    for (int64_t i; (i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < groups;)
      for (int64_t j = 0; j < p.heads_per_group(); ++j)
        with_side<T>(p, [&](auto side) {
          side.backward(i / p.key_heads, i % p.key_heads * p.heads_per_group() + j,
                        static_cast<T*>(states) + worker * each);
        });
  });
}

template struct RecurrenceKernels<kThisIsa, float>;
#if !defined(__AVX2__)
template struct RecurrenceKernels<kThisIsa, double>;
#endif

}  // namespace weft::cpu
