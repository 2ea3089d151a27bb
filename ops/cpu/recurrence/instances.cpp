// The list of instances of the recurrence: f32 in every instruction set and f64 in the baseline, each with {decay of tokens or of key channels}
// x {plain, delta}, and decay of value channels. bf16 tensors are widened when a block is loaded, so they need no instances.
#include "ops/cpu/recurrence/key_side.h"
#include "ops/cpu/recurrence/steps.h"
#include "ops/cpu/recurrence/two_passes.h"
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
void with_side(const RecurrenceProblem& p, bool is_backward, F&& run) {
  const bool is_delta = p.beta.data != nullptr;
  switch (p.decay) {
    case Decay::scalar:
      return is_delta ? run(KeySide<T, false, true>(p, is_backward)) : run(KeySide<T, false, false>(p, is_backward));
    case Decay::key:
      return is_delta ? run(KeySide<T, true, true>(p, is_backward)) : run(KeySide<T, true, false>(p, is_backward));
    case Decay::value: return run(ValueSide<T>(p, is_backward));
  }
}

template <class T, class F>
void with_plain_side(const RecurrenceProblem& p, F&& run) {
  switch (p.decay) {
    case Decay::scalar: return run(KeySide<T, false, false>(p, true));
    case Decay::key: return run(KeySide<T, true, false>(p, true));
    case Decay::value: return run(ValueSide<T>(p, true));
  }
}

// Work is cut into items of a few value heads of a row, a multiple of `unit`: as many as leave an item to every thread, up to `most`. What is
// a sum over heads is written by one item: of forward nothing is.
struct Items {
  int64_t each, per_row, count;  // heads of an item, items of a row

  Items(const RecurrenceProblem& p, int64_t unit, int64_t most) {
    const int64_t wanted = (num_threads() + p.batch - 1) / larger(p.batch, 1);  // of a row
    each = unit * larger(1, smaller(p.heads / unit / larger(wanted, 1), most / unit));
    per_row = (p.heads + each - 1) / each;
    count = p.batch * per_row * p.parts;
  }
  Heads heads(const RecurrenceProblem& p, int64_t i) const {
    const int64_t first = i % per_row * each;
    return {i / per_row % p.batch, first, smaller(p.heads, first + each)};
  }
  int64_t part(const RecurrenceProblem& p, int64_t i) const { return i / (per_row * p.batch); }
};
Items forward_items_of(const RecurrenceProblem& p) { return Items(p, 1, 4); }
// An item of backward holds the states of its heads.
Items backward_items_of(const RecurrenceProblem& p) { return Items(p, p.heads_per_sum(), 2); }

}  // namespace

template <Isa I, class T>
void RecurrenceKernels<I, T>::forward(const RecurrenceProblem& p) {
  if (p.tokens <= kFewTokens)
    return run_items(p, p.batch * p.heads, [&](int64_t i) { forward_steps<T>(p, i / p.heads, i % p.heads); });
  const Items items = forward_items_of(p);
  run_items(p, items.count, [&](int64_t i) {
    const RecurrenceProblem part = columns_of<T>(p, items.part(p, i));
    with_side<T>(part, false, [&](auto side) { side.forward(items.heads(p, i)); });
  });
}

template <Isa I, class T>
int64_t RecurrenceKernels<I, T>::forward_items(const RecurrenceProblem& p) {
  return forward_items_of(p).count;
}

template <Isa I, class T>
int64_t RecurrenceKernels<I, T>::block_to_keep(const RecurrenceProblem& p) {
  constexpr int64_t kTokens = 64;  // of small blocks several, whose states the second pass computes again
  const int64_t block = Sizes<T>(p, true).block;
  return block * larger(1, kTokens / block);
}

template <Isa I, class T>
void RecurrenceKernels<I, T>::keep_states(const RecurrenceProblem& p) {
  const Items items = forward_items_of(p);
  run_items(p, items.count, [&](int64_t i) {
    const RecurrenceProblem part = columns_of<T>(p, items.part(p, i));
    const Heads heads = items.heads(p, i);
    with_plain_side<T>(part, [&](auto side) { TwoPasses::keep_states(side, heads); });
  });
}

template <Isa I, class T>
void RecurrenceKernels<I, T>::state_gradient(const RecurrenceProblem& p) {
  const Items items = forward_items_of(p);
  run_items(p, items.count, [&](int64_t i) {
    const RecurrenceProblem part = columns_of<T>(p, items.part(p, i));
    with_side<T>(part, true, [&](auto side) { TwoPasses::state_gradient(side, items.heads(p, i)); });
  });
}

template <Isa I, class T>
RecurrenceWorkers RecurrenceKernels<I, T>::workers(const RecurrenceProblem& p) {
  const Sizes<T> z(columns_of<T>(p, 0), true);
  const Items items = backward_items_of(p);
  return {smaller(num_threads(), items.count), items.each * (z.blocks + 1) * z.K * z.V};
}

// Each worker has memory for the states of an item and takes the next item when it is free.
template <Isa I, class T>
void RecurrenceKernels<I, T>::backward(const RecurrenceProblem& p, void* states) {
  const Items items = backward_items_of(p);
  const RecurrenceWorkers all = workers(p);
  int64_t next = 0;
  run_items(p, all.count, [&](int64_t worker) {
    T* own = static_cast<T*>(states) + worker * all.states;
    for (int64_t i; (i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < items.count;) {
      const RecurrenceProblem part = columns_of<T>(p, items.part(p, i));
      with_side<T>(part, true, [&](auto side) { side.backward(items.heads(p, i), own); });
    }
  });
}

template struct RecurrenceKernels<kThisIsa, float>;
#if !defined(__AVX2__)
template struct RecurrenceKernels<kThisIsa, double>;
#endif

}  // namespace weft::cpu
