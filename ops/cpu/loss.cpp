// Cross-entropy of a row z [V] of logits with target t: loss = log(sum(exp(z - max))) + (max - z_t), which keeps its
// accuracy when the logits are large. Gradient: d = dloss (exp(z - lse) - [v = t]); the target's own entry is made by
// expm1, so that a certain prediction does not lose its small gradient. With a cap, z = cap tanh(z0 / cap) and d z / d
// z0 = 1 - (z / cap)^2.
#include "ops/cpu/loss.h"

#include <math.h>

#include "ops/cpu/softmax_row.h"

namespace weft::cpu {

using namespace HWY_NAMESPACE;

namespace {

template <class T>
HWY_INLINE Lane<T> element(const T* at) {
  Lane<T> lanes[Pack<Lane<T>>::kLanes];
  store(load_part(at, 1), static_cast<Lane<T>*>(lanes));
  return lanes[0];
}
template <class T>
HWY_INLINE void set_element(T* at, Lane<T> value) {
  store_part(Pack<Lane<T>>(value), at, 1);
}

template <class C>
HWY_INLINE C loss_of(const ExpSum<C>& r, C at_target) {
  return static_cast<C>(::log(static_cast<double>(r.sum))) + (r.top - at_target);
}
// exp(z_t - lse) - 1 from the loss, which is lse - z_t.
template <class C>
HWY_INLINE C target_gradient(C loss) {
  return static_cast<C>(::expm1(-static_cast<double>(loss)));
}

template <class G>
HWY_INLINE void clear_row(G* row, int64_t width) {
  for_row<Lane<G>>(width, [&](int64_t i, auto count) { store(Pack<Lane<G>>(0), row + i, count); });
}

template <class C>
HWY_INLINE void cap_row(C* z, int64_t width, C softcap) {
  const Pack<C> cap(softcap), per_cap(C(1) / softcap);
  for_row<C>(width, [&](int64_t i, auto count) { store(cap * tanh(load(z + i, count) * per_cap), z + i, count); });
}

// d = factor * softmax(z), through the cap if there is one; the target's own element is left to the caller. z holds the
// capped logits, without a cap their exp(z - top). `z` and `d` may be the same memory.
template <class C, class G>
HWY_INLINE void spread_gradient(const LossChunkArgs<C, G>& args, const C* z, G* d, const ExpSum<C>& r) {
  const Pack<C> top(r.top), share(args.factor / r.sum), one(1);
  if (args.softcap == 0) {
    for_row<C>(args.vocabulary, [&](int64_t i, auto count) { store(load(z + i, count) * share, d + i, count); });
    return;
  }
  const Pack<C> per_cap(C(1) / args.softcap);
  for_row<C>(args.vocabulary, [&](int64_t i, auto count) {
    Pack<C> logit = load(z + i, count), relative = logit * per_cap;
    store(exp(logit - top) * share * (one - relative * relative), d + i, count);
  });
}

}  // namespace

template <Isa I, class T, class C>
void CrossEntropyKernels<I, T, C>::forward(const CrossEntropyArgs<T, C>& args, int64_t begin, int64_t end) {
  RowCursor<const T> row(args.logits, args.logits_rows, begin);
  for (int64_t n = begin; n < end; ++n, row.next()) {
    const ExpSum<C> r = exp_sum<T, C>(row.get(), args.logits_rows.width);
    args.lse[n] = r.log_sum();
    args.losses[n] = args.targets[n] < 0 ? C(0) : loss_of<C>(r, element(row.get() + args.targets[n]));
  }
}

template <Isa I, class T, class C>
void CrossEntropyKernels<I, T, C>::backward(const CrossEntropyArgs<T, C>& args, int64_t begin, int64_t end) {
  const int64_t width = args.logits_rows.width;
  RowCursor<const T> row(args.logits, args.logits_rows, begin);
  for (int64_t n = begin; n < end; ++n, row.next()) {
    const T* z = row.get();
    T* d = args.dlogits + n * width;
    const int32_t target = args.targets[n];
    if (target < 0) {
      clear_row(d, width);
      continue;
    }
    const Pack<C> lse(args.lse[n]), dloss(args.dlosses[n]);
    for_row<C>(width, [&](int64_t i, auto count) { store(dloss * exp(load(z + i, count) - lse), d + i, count); });
    set_element(d + target, args.dlosses[n] * target_gradient<C>(args.lse[n] - element(z + target)));
  }
}

template <Isa I, class C, class G>
void LossChunkKernels<I, C, G>::run(const LossChunkArgs<C, G>& args, int64_t begin, int64_t end) {
  const int64_t width = args.vocabulary;
  for (int64_t n = begin; n < end; ++n) {
    C* z = args.logits + n * width;
    G* d = args.dlogits ? args.dlogits + n * width : nullptr;
    const int32_t target = args.targets[n];
    if (target < 0) {
      args.losses[n] = 0;
      if (d) clear_row(d, width);
      continue;
    }
    if (args.softcap > 0) cap_row(z, width, args.softcap);
    const C at_target = z[target], relative = args.softcap > 0 ? at_target / args.softcap : C(0);
    const ExpSum<C> r = exp_sum<C, C>(z, width, d && args.softcap == 0 ? z : nullptr);
    const C loss = loss_of(r, at_target);
    args.losses[n] = loss;
    if (!d) continue;
    spread_gradient(args, z, d, r);
    set_element(d + target, args.factor * target_gradient(loss) * (1 - relative * relative));
  }
}

template struct CrossEntropyKernels<kThisIsa, float, float>;
template struct CrossEntropyKernels<kThisIsa, BFloat16, float>;
template struct CrossEntropyKernels<kThisIsa, double, double>;
template struct LossChunkKernels<kThisIsa, float, float>;
template struct LossChunkKernels<kThisIsa, float, BFloat16>;
template struct LossChunkKernels<kThisIsa, double, double>;

}  // namespace weft::cpu
