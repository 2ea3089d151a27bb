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

// What label smoothing and class weights make of one row's loss and gradient.
template <class T, class C>
struct Softened {
  const CrossEntropyArgs<T, C>& args;
  C own, share, total;  // factors of the target's loss and of every class's; sum of the weights

  HWY_INLINE Softened(const CrossEntropyArgs<T, C>& a, int32_t target)
      : args(a),
        own((1 - a.smoothing) * (a.weights ? a.weights[target] : C(1))),
        share(a.smoothing / static_cast<C>(a.logits_rows.width)),
        total(a.total_weight ? *a.total_weight : static_cast<C>(a.logits_rows.width)) {}

  template <class N>
  HWY_INLINE Pack<C> weight(int64_t i, N count) const {
    return args.weights ? load(args.weights + i, count) : keep(Pack<C>(1), count, 0);
  }
  HWY_INLINE C loss(const T* z, const ExpSum<C>& r, C at_target) const {
    const C mine = own == 0 ? C(0) : own * loss_of(r, at_target);
    if (share == 0) return mine;
    const C spread = reduce_row<C>(args.logits_rows.width, Sum<C>{}, [&](Sum<C>& part, int64_t i, auto count) {
                       Pack<C> w = weight(i, count);
                       part.value += select(w == Pack<C>(0), Pack<C>(0), w * (Pack<C>(r.top) - load(z + i, count)));
                     }).total();
    return mine + share * (total * static_cast<C>(::log(static_cast<double>(r.sum))) + spread);
  }
  HWY_INLINE void gradient(const T* z, T* d, int32_t target, C lse, C dloss) const {
    const Pack<C> all(dloss * (own + share * total)), each(dloss * share), top(lse);
    for_row<C>(args.logits_rows.width, [&](int64_t i, auto count) {
      store(all * exp(load(z + i, count) - top) - each * weight(i, count), d + i, count);
    });
    const C loss = lse - element(z + target), w = args.weights ? args.weights[target] : C(1);
    const C p = static_cast<C>(::exp(-static_cast<double>(loss)));
    set_element(d + target, dloss * (own * target_gradient<C>(loss) + share * (total * p - w)));
  }
};

}  // namespace

template <Isa I, class T, class C>
void CrossEntropyKernels<I, T, C>::forward(const CrossEntropyArgs<T, C>& args, int64_t begin, int64_t end) {
  RowCursor<const T> row(args.logits, args.logits_rows, begin);
  for (int64_t n = begin; n < end; ++n, row.next()) {
    const ExpSum<C> r = exp_sum<T, C>(row.get(), args.logits_rows.width);
    args.lse[n] = r.log_sum();
    const int32_t target = args.targets[n];
    if (target < 0) args.losses[n] = 0;
    else if (args.is_plain()) args.losses[n] = loss_of<C>(r, element(row.get() + target));
    else args.losses[n] = Softened<T, C>(args, target).loss(row.get(), r, element(row.get() + target));
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
    if (!args.is_plain()) {
      Softened<T, C>(args, target).gradient(z, d, target, args.lse[n], args.dlosses[n]);
      continue;
    }
    const Pack<C> lse(args.lse[n]), dloss(args.dlosses[n]);
    for_row<C>(width, [&](int64_t i, auto count) { store(dloss * exp(load(z + i, count) - lse), d + i, count); });
    set_element(d + target, args.dlosses[n] * target_gradient<C>(args.lse[n] - element(z + target)));
  }
}

namespace {

// The logarithms of a row's probabilities: z - top - log_sum.
template <class C>
struct LogProbabilities {
  Pack<C> top, log_sum;
  HWY_INLINE explicit LogProbabilities(const ExpSum<C>& r)
      : top(r.top), log_sum(r.sum == 0 ? C(0) : static_cast<C>(::log(static_cast<double>(r.sum)))) {}
  HWY_INLINE Pack<C> operator()(Pack<C> z) const { return (z - top) - log_sum; }
};

}  // namespace

template <Isa I, class T, class C>
void KlKernels<I, T, C>::forward(const KlArgs<T, C>& args, int64_t begin, int64_t end) {
  const int64_t width = args.x_rows.width;
  RowCursor<const T> x_row(args.x, args.x_rows, begin), t_row(args.t, args.t_rows, begin);
  for (int64_t n = begin; n < end; ++n, x_row.next(), t_row.next()) {
    const T *x = x_row.get(), *t = t_row.get();
    const LogProbabilities<C> log_q(exp_sum<T, C>(x, width)), log_p(exp_sum<T, C>(t, width));
    args.losses[n] = reduce_row<C>(width, Sum<C>{}, [&](Sum<C>& part, int64_t i, auto count) {
                       Pack<C> lp = log_p(load(t + i, count)), p = keep(exp(lp), count, 0);
                       part.value += select(p == Pack<C>(0), p, p * (lp - log_q(load(x + i, count))));
                     }).total();
  }
}

template <Isa I, class T, class C>
void KlKernels<I, T, C>::backward(const KlArgs<T, C>& args, int64_t begin, int64_t end) {
  const int64_t width = args.x_rows.width;
  RowCursor<const T> x_row(args.x, args.x_rows, begin), t_row(args.t, args.t_rows, begin);
  for (int64_t n = begin; n < end; ++n, x_row.next(), t_row.next()) {
    const T *x = x_row.get(), *t = t_row.get();
    const ExpSum<C> target = exp_sum<T, C>(t, width);
    const LogProbabilities<C> log_q(exp_sum<T, C>(x, width)), log_p(target);
    const Pack<C> dloss(args.dlosses[n]), loss(args.losses[n]), is_there(target.sum == 0 ? C(0) : C(1));
    for_row<C>(width, [&](int64_t i, auto count) {
      Pack<C> lp = log_p(load(t + i, count)), lq = log_q(load(x + i, count)), p = exp(lp);
      if (args.dx) store(dloss * (is_there * exp(lq) - p), args.dx + n * width + i, count);
      if (args.dt) store(select(p == Pack<C>(0), p, dloss * p * (lp - lq - loss)), args.dt + n * width + i, count);
    });
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
template struct KlKernels<kThisIsa, float, float>;
template struct KlKernels<kThisIsa, BFloat16, float>;
template struct KlKernels<kThisIsa, double, double>;
template struct LossChunkKernels<kThisIsa, float, float>;
template struct LossChunkKernels<kThisIsa, float, BFloat16>;
template struct LossChunkKernels<kThisIsa, double, double>;

}  // namespace weft::cpu
