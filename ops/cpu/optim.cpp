// Optimiser kernels, compiled once per instruction set.
#include "ops/cpu/optim.h"

#include "ops/cpu/pack_math.h"

namespace weft::cpu {

namespace HWY_NAMESPACE {

// Calls body(i, left) for the packs of [begin, end): left is kLanes, or fewer for the last one.
template <class F>
HWY_INLINE void for_packs(int64_t begin, int64_t end, F&& body) {
  int64_t i = begin;
  for (; i + F32::kLanes <= end; i += F32::kLanes) body(i, F32::kLanes);
  if (i < end) body(i, end - i);
}
template <class S>
HWY_INLINE F32 load_n(const S* at, int64_t n) {
  return n == F32::kLanes ? load(at) : load_part(at, n);
}
template <class S>
HWY_INLINE void store_n(F32 x, S* at, int64_t n) {
  n == F32::kLanes ? store(x, at) : store_part(x, at, n);
}

template <bool kHasWorking>
void adamw(AdamWMemory memory, AdamWFactors factors, int64_t begin, int64_t end) {
  for_packs(begin, end, [&](int64_t i, int64_t n) HWY_ATTR {
    F32 g = load_n(memory.grad + i, n) * F32(factors.grad_scale);
    F32 m = fused(F32(factors.beta1), load_n(static_cast<const float*>(memory.moment1 + i), n), F32(factors.rest1) * g);
    F32 v =
        fused(F32(factors.beta2), load_n(static_cast<const float*>(memory.moment2 + i), n), F32(factors.rest2) * g * g);
    F32 root = fused(sqrt(v), F32(factors.root_scale), F32(factors.eps));
    F32 p =
        load_n(static_cast<const float*>(memory.param + i), n) * F32(factors.keep) - F32(factors.step_size) * m / root;
    store_n(m, memory.moment1 + i, n);
    store_n(v, memory.moment2 + i, n);
    store_n(p, memory.param + i, n);
    if constexpr (kHasWorking) store_n(p, memory.working + i, n);
  });
}

}  // namespace HWY_NAMESPACE

namespace simd = HWY_NAMESPACE;

template <Isa I>
void OptimKernels<I>::adamw(const AdamWMemory& memory, const AdamWFactors& factors, int64_t begin, int64_t end) {
  (memory.working ? simd::adamw<true> : simd::adamw<false>)(memory, factors, begin, end);
}

template <Isa I>
void OptimKernels<I>::muon_momentum(float* buffer, const float* grad, float* update, float beta, float grad_scale,
                                    bool is_nesterov, int64_t begin, int64_t end) {
  using simd::F32;
  simd::for_packs(begin, end, [&](int64_t i, int64_t n) HWY_ATTR {
    F32 g = simd::load_n(grad + i, n) * F32(grad_scale), old = simd::load_n(static_cast<const float*>(buffer + i), n);
    F32 b = fused(F32(1 - beta), g - old, old);
    simd::store_n(b, buffer + i, n);
    simd::store_n(is_nesterov ? fused(F32(beta), b - g, g) : b, update + i, n);
  });
}

template <Isa I>
void OptimKernels<I>::muon_apply(float* param, const float* update, BFloat16* working, float keep, float step_size,
                                 int64_t begin, int64_t end) {
  using simd::F32;
  simd::for_packs(begin, end, [&](int64_t i, int64_t n) HWY_ATTR {
    F32 p = simd::load_n(static_cast<const float*>(param + i), n) * F32(keep) -
            F32(step_size) * simd::load_n(update + i, n);
    simd::store_n(p, param + i, n);
    if (working) simd::store_n(p, working + i, n);
  });
}

template <Isa I>
void OptimKernels<I>::schedule_free(const AdamWMemory& memory, const ScheduleFreeFactors& factors, int64_t begin,
                                    int64_t end) {
  using simd::F32;
  simd::for_packs(begin, end, [&](int64_t i, int64_t n) HWY_ATTR {
    F32 g = simd::load_n(memory.grad + i, n) * F32(factors.grad_scale);
    F32 y = simd::load_n(static_cast<const float*>(memory.param + i), n);
    F32 z = simd::load_n(static_cast<const float*>(memory.moment1 + i), n);
    F32 v = fused(F32(factors.beta2), simd::load_n(static_cast<const float*>(memory.moment2 + i), n),
                  F32(factors.rest2) * g * g);
    F32 u = fused(F32(factors.decay), y, g / (sqrt(v) + F32(factors.eps)));
    y = fused(F32(factors.average), z - y, y) - F32(factors.y_step) * u;
    simd::store_n(z - F32(factors.lr) * u, memory.moment1 + i, n);
    simd::store_n(v, memory.moment2 + i, n);
    simd::store_n(y, memory.param + i, n);
    if (memory.working) simd::store_n(y, memory.working + i, n);
  });
}

template <Isa I>
void OptimKernels<I>::lion(const MomentMemory& memory, const LionFactors& factors, int64_t begin, int64_t end) {
  using simd::F32;
  simd::for_packs(begin, end, [&](int64_t i, int64_t n) HWY_ATTR {
    F32 g = simd::load_n(memory.grad + i, n) * F32(factors.grad_scale);
    F32 old = simd::load_n(static_cast<const float*>(memory.moment1 + i), n);
    F32 u = fused(F32(factors.beta1), old, F32(factors.rest1) * g);
    F32 sign = select(u > F32(0), F32(1), select(u < F32(0), F32(-1), u));  // 0 and NaN as they are
    F32 p = simd::load_n(static_cast<const float*>(memory.param + i), n) * F32(factors.keep) - F32(factors.lr) * sign;
    simd::store_n(fused(F32(factors.beta2), old, F32(factors.rest2) * g), memory.moment1 + i, n);
    simd::store_n(p, memory.param + i, n);
    if (memory.working) simd::store_n(p, memory.working + i, n);
  });
}

template <Isa I>
void OptimKernels<I>::sgd(const MomentMemory& memory, const SgdFactors& factors, int64_t begin, int64_t end) {
  using simd::F32;
  simd::for_packs(begin, end, [&](int64_t i, int64_t n) HWY_ATTR {
    F32 old = simd::load_n(static_cast<const float*>(memory.param + i), n);
    F32 g = fused(F32(factors.decay), old, simd::load_n(memory.grad + i, n) * F32(factors.grad_scale)), update = g;
    if (factors.momentum > 0) {
      F32 m = fused(F32(factors.momentum), simd::load_n(static_cast<const float*>(memory.moment1 + i), n), g);
      simd::store_n(m, memory.moment1 + i, n);
      update = factors.is_nesterov ? fused(F32(factors.momentum), m, g) : m;
    }
    F32 p = old - F32(factors.lr) * update;
    simd::store_n(p, memory.param + i, n);
    if (memory.working) simd::store_n(p, memory.working + i, n);
  });
}

template struct OptimKernels<kThisIsa>;

}  // namespace weft::cpu
