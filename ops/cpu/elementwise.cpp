// Elementwise kernels, compiled once per instruction set: a contiguous run, a pack of lanes at a time. bf16 is computed in f32
// and rounded once. The last, shorter pack goes through a full one, so a value does not depend on its place.
#include "ops/cpu/elementwise.h"

#include <utility>

#include "ops/cpu/pack_math.h"

namespace weft::cpu {

namespace HWY_NAMESPACE {

template <class F>
struct Forward {
  F f;
  template <class... P>
  HWY_INLINE auto operator()(P... x) const {
    return f.f(x...);
  }
};
template <class F>
struct Backward {
  F f;
  template <class P>
  HWY_INLINE P operator()(P dy, P kept) const {
    return dy * f.df(kept);
  }
};
struct Scaled {
  double factor;
  template <class P>
  HWY_INLINE P operator()(P to, P from) const {
    return fused(P(factor), from, to);
  }
};
struct Identity {
  template <class P>
  HWY_INLINE P operator()(P x) const {
    return x;
  }
};

// operands: y of type Out, then the inputs of types In. F is copied so that its numbers stay in registers.
template <class F, class Out, class... In, size_t... K>
HWY_INLINE void apply(F f, char* const* operands, int64_t n, std::index_sequence<K...>) {
  constexpr int64_t kLanes = Pack<Lane<Out>>::kLanes;
  Out* y = reinterpret_cast<Out*>(operands[0]);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(f(load(reinterpret_cast<const In*>(operands[K + 1]) + i)...), y + i);
  if (i < n) store_part(f(load_part(reinterpret_cast<const In*>(operands[K + 1]) + i, n - i)...), y + i, n - i);
}
template <class F, class Out, class... In>
void run(const void* functor, char* const* operands, int64_t n) {
  apply<F, Out, In...>(*static_cast<const F*>(functor), operands, n, std::index_sequence_for<In...>{});
}

template <class S>
void run_swiglu_backward(const void*, char* const* operands, int64_t n) {
  using P = Pack<Lane<S>>;
  S *dgate = reinterpret_cast<S*>(operands[0]), *dup = reinterpret_cast<S*>(operands[1]);
  const S *dy = reinterpret_cast<const S*>(operands[2]), *gate = reinterpret_cast<const S*>(operands[3]),
          *up = reinterpret_cast<const S*>(operands[4]);
  P g, u;
  int64_t i = 0;
  for (; i + P::kLanes <= n; i += P::kLanes) {
    math::Swiglu{}.df(load(dy + i), load(gate + i), load(up + i), g, u);
    store(g, dgate + i);
    store(u, dup + i);
  }
  if (i == n) return;
  math::Swiglu{}.df(load_part(dy + i, n - i), load_part(gate + i, n - i), load_part(up + i, n - i), g, u);
  store_part(g, dgate + i, n - i);
  store_part(u, dup + i, n - i);
}

template <class S>
void run_gelu_tanh_both(const void*, char* const* operands, int64_t n) {
  using P = Pack<Lane<S>>;
  S *y = reinterpret_cast<S*>(operands[0]), *slope = reinterpret_cast<S*>(operands[1]);
  const S* x = reinterpret_cast<const S*>(operands[2]);
  P value, d;
  int64_t i = 0;
  for (; i + P::kLanes <= n; i += P::kLanes) {
    math::GeluTanh{}.both(load(x + i), value, d);
    store(value, y + i);
    store(d, slope + i);
  }
  if (i == n) return;
  math::GeluTanh{}.both(load_part(x + i, n - i), value, d);
  store_part(value, y + i, n - i);
  store_part(d, slope + i, n - i);
}

}  // namespace HWY_NAMESPACE

namespace simd = HWY_NAMESPACE;

template <Isa I>
template <class F>
Chunk ElementwiseKernels<I>::map(DType dtype) {
  using G = simd::Forward<F>;
  if (dtype == kF32) return simd::run<G, float, float>;
  if (dtype == kBF16) return simd::run<G, BFloat16, BFloat16>;
  return dtype == kF64 ? simd::run<G, double, double> : nullptr;
}

template <Isa I>
template <class F>
Chunk ElementwiseKernels<I>::backward(DType dtype) {
  using G = simd::Backward<F>;
  if (dtype == kF32) return simd::run<G, float, float, float>;
  if (dtype == kBF16) return simd::run<G, BFloat16, BFloat16, BFloat16>;
  return dtype == kF64 ? simd::run<G, double, double, double> : nullptr;
}

template <Isa I>
template <class F>
Chunk ElementwiseKernels<I>::zip(DType dtype) {
  using G = simd::Forward<F>;
  if (dtype == kF32) return simd::run<G, float, float, float>;
  if (dtype == kBF16) return simd::run<G, BFloat16, BFloat16, BFloat16>;
  return dtype == kF64 ? simd::run<G, double, double, double> : nullptr;
}

template <Isa I>
Chunk ElementwiseKernels<I>::swiglu_backward(DType dtype) {
  if (dtype == kF32) return simd::run_swiglu_backward<float>;
  if (dtype == kBF16) return simd::run_swiglu_backward<BFloat16>;
  return dtype == kF64 ? simd::run_swiglu_backward<double> : nullptr;
}

template <Isa I>
Chunk ElementwiseKernels<I>::gelu_tanh_both(DType dtype) {
  if (dtype == kF32) return simd::run_gelu_tanh_both<float>;
  return dtype == kF64 ? simd::run_gelu_tanh_both<double> : nullptr;
}

template <Isa I>
Chunk ElementwiseKernels<I>::scaled_add(DType to, DType from) {
  using G = simd::Scaled;
  if (to == kF32 && from == kF32) return simd::run<G, float, float, float>;
  if (to == kF32 && from == kBF16) return simd::run<G, float, float, BFloat16>;
  if (to == kBF16 && from == kBF16) return simd::run<G, BFloat16, BFloat16, BFloat16>;
  return to == kF64 && from == kF64 ? simd::run<G, double, double, double> : nullptr;
}

template <Isa I>
Chunk ElementwiseKernels<I>::convert(DType to, DType from) {
  if (to == kF32 && from == kBF16) return simd::run<simd::Identity, float, BFloat16>;
  return to == kBF16 && from == kF32 ? simd::run<simd::Identity, BFloat16, float> : nullptr;
}

template struct ElementwiseKernels<kThisIsa>;

// Every functor of the lists: tables that are instantiated explicitly, and with them what they point to.
namespace HWY_NAMESPACE {

using Kernels = ElementwiseKernels<kThisIsa>;
using Choose = Chunk (*)(DType);

template <class>
struct Maps;
template <class... F>
struct Maps<math::List<F...>> {
  static constexpr Choose kAll[] = {&Kernels::map<F>...};
};
template <class>
struct Backwards;
template <class... F>
struct Backwards<math::List<F...>> {
  static constexpr Choose kAll[] = {&Kernels::backward<F>...};
};
template <class>
struct Zips;
template <class... F>
struct Zips<math::List<F...>> {
  static constexpr Choose kAll[] = {&Kernels::zip<F>...};
};

template struct Maps<math::MapFunctors>;
template struct Backwards<math::BackwardFunctors>;
template struct Zips<math::ZipFunctors>;

}  // namespace HWY_NAMESPACE

}  // namespace weft::cpu
