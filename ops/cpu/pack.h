// Pack<T>: a full vector of f32 or f64 lanes of the instruction set this file is compiled for (Highway, static mode), with the
// operators that the functors of ops/math use. Functions are in ops/cpu/pack_math.h.
// For kernel files of weft_kernels() only. Everything stands in a namespace named after the instruction set, so that the
// linker never mixes code of two sets.
#pragma once

#include <hwy/highway.h>

#include <type_traits>

#include "weft/core/dtype.h"

namespace weft::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

template <class T>
struct Mask {
  hn::Mask<hn::ScalableTag<T>> m;
  HWY_INLINE friend Mask operator|(Mask a, Mask b) { return {hn::Or(a.m, b.m)}; }
  HWY_INLINE friend Mask operator&(Mask a, Mask b) { return {hn::And(a.m, b.m)}; }
};

template <class T>
struct Pack {
  using Tag = hn::ScalableTag<T>;
  using V = hn::Vec<Tag>;
  static constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(Tag()));
  V v;

  Pack() = default;
  HWY_INLINE explicit Pack(V lanes) : v(lanes) {}
  template <class U>
  requires std::is_arithmetic_v<U> HWY_INLINE Pack(U number) : v(hn::Set(Tag(), static_cast<T>(number))) {}

  HWY_INLINE friend Pack operator+(Pack a, Pack b) { return Pack(hn::Add(a.v, b.v)); }
  HWY_INLINE friend Pack operator-(Pack a, Pack b) { return Pack(hn::Sub(a.v, b.v)); }
  HWY_INLINE friend Pack operator*(Pack a, Pack b) { return Pack(hn::Mul(a.v, b.v)); }
  HWY_INLINE friend Pack operator/(Pack a, Pack b) { return Pack(hn::Div(a.v, b.v)); }
  HWY_INLINE friend Pack operator-(Pack a) { return Pack(hn::Neg(a.v)); }
  HWY_INLINE Pack& operator+=(Pack b) { return *this = *this + b; }
  HWY_INLINE Pack& operator*=(Pack b) { return *this = *this * b; }

  HWY_INLINE friend Mask<T> operator<(Pack a, Pack b) { return {hn::Lt(a.v, b.v)}; }
  HWY_INLINE friend Mask<T> operator>(Pack a, Pack b) { return {hn::Gt(a.v, b.v)}; }
  HWY_INLINE friend Mask<T> operator==(Pack a, Pack b) { return {hn::Eq(a.v, b.v)}; }
  // Not Highway's Ne, which is false where a lane is NaN.
  HWY_INLINE friend Mask<T> operator!=(Pack a, Pack b) { return {hn::Not(hn::Eq(a.v, b.v))}; }
};

template <class T>
HWY_INLINE Pack<T> select(Mask<T> mask, Pack<T> a, Pack<T> b) {
  return Pack<T>(hn::IfThenElse(mask.m, a.v, b.v));
}
template <class T>
HWY_INLINE Pack<T> abs(Pack<T> x) {
  return Pack<T>(hn::Abs(x.v));
}
template <class T>
HWY_INLINE Pack<T> sqrt(Pack<T> x) {
  return Pack<T>(hn::Sqrt(x.v));
}
// a * b + c, rounded once where the instruction set can.
template <class T>
HWY_INLINE Pack<T> fused(Pack<T> a, Pack<T> b, Pack<T> c) {
  return Pack<T>(hn::MulAdd(a.v, b.v, c.v));
}

// Memory. Storage types: float and BFloat16 for Pack<float>, double for Pack<double>. Addresses need no alignment.

template <class S>
using Lane = std::conditional_t<std::is_same_v<S, BFloat16>, float, S>;

template <class S>
HWY_INLINE Pack<Lane<S>> load(const S* at) {
  using P = Pack<Lane<S>>;
  typename P::Tag d;
  if constexpr (std::is_same_v<S, BFloat16>) {
    hn::Rebind<uint16_t, hn::ScalableTag<float>> d16;
    hn::RebindToUnsigned<hn::ScalableTag<float>> d32;
    auto bits = hn::PromoteTo(d32, hn::LoadU(d16, reinterpret_cast<const uint16_t*>(at)));
    return P(hn::BitCast(d, hn::ShiftLeft<16>(bits)));
  } else {
    return P(hn::LoadU(d, at));
  }
}

// bfloat16 is rounded to nearest even; a NaN stays a (quiet) NaN.
template <class S>
HWY_INLINE void store(Pack<Lane<S>> x, S* at) {
  using P = Pack<Lane<S>>;
  typename P::Tag d;
  if constexpr (std::is_same_v<S, BFloat16>) {
    hn::Rebind<uint16_t, hn::ScalableTag<float>> d16;
    hn::RebindToUnsigned<hn::ScalableTag<float>> d32;
    hn::RebindToSigned<hn::ScalableTag<float>> d32s;
    auto bits = hn::BitCast(d32, x.v);
    auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 1));
    auto rounded = hn::Add(hn::Add(bits, hn::Set(d32, 0x7fff)), odd);
    auto quiet = hn::Or(bits, hn::Set(d32, 0x400000));
    auto is_nan = hn::RebindMask(d32, hn::IsNaN(x.v));
    auto upper = hn::ShiftRight<16>(hn::IfThenElse(is_nan, quiet, rounded));
    hn::StoreU(hn::DemoteTo(d16, hn::BitCast(d32s, upper)), d16, reinterpret_cast<uint16_t*>(at));
  } else {
    hn::StoreU(x.v, d, at);
  }
}

// The first n < kLanes elements; the other lanes are `rest`. A tail computes in the same lanes' code as the body.
template <class S>
HWY_INLINE Pack<Lane<S>> load_part(const S* at, int64_t n, S rest = S()) {
  S buffer[Pack<Lane<S>>::kLanes];
  for (int64_t i = 0; i < Pack<Lane<S>>::kLanes; ++i) buffer[i] = rest;
  for (int64_t i = 0; i < n; ++i) buffer[i] = at[i];
  return load(static_cast<const S*>(buffer));
}
template <class S>
HWY_INLINE void store_part(Pack<Lane<S>> x, S* at, int64_t n) {
  S buffer[Pack<Lane<S>>::kLanes];
  store(x, static_cast<S*>(buffer));
  for (int64_t i = 0; i < n; ++i) at[i] = buffer[i];
}

// Between lane types: a Pack<float> is kHalves packs of f64, lower lanes first.

#if HWY_TARGET == HWY_SCALAR
inline constexpr int kHalves = 1;
HWY_INLINE void widen(Pack<float> x, Pack<double> (&halves)[1]) {
  halves[0] = Pack<double>(hn::PromoteTo(Pack<double>::Tag(), x.v));
}
HWY_INLINE Pack<float> narrow(const Pack<double> (&halves)[1]) {
  return Pack<float>(hn::DemoteTo(Pack<float>::Tag(), halves[0].v));
}
#else
inline constexpr int kHalves = 2;
HWY_INLINE void widen(Pack<float> x, Pack<double> (&halves)[2]) {
  Pack<double>::Tag d;
  hn::Half<Pack<float>::Tag> half;
  halves[0] = Pack<double>(hn::PromoteTo(d, hn::LowerHalf(half, x.v)));
  halves[1] = Pack<double>(hn::PromoteTo(d, hn::UpperHalf(half, x.v)));
}
HWY_INLINE Pack<float> narrow(const Pack<double> (&halves)[2]) {
  Pack<float>::Tag d;
  hn::Half<Pack<float>::Tag> half;
  return Pack<float>(hn::Combine(d, hn::DemoteTo(half, halves[1].v), hn::DemoteTo(half, halves[0].v)));
}
#endif

}  // namespace weft::cpu::HWY_NAMESPACE
