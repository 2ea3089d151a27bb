// Lanes: the compiler's vector types that the attention core and its functors compute with.
// Every function is a template that also takes plain float and double, so a functor is written once.
// One program contains this code for several instruction sets. Functions are therefore inlined by force, and the core stands in unnamed
// namespaces: otherwise the linker could keep one copy, compiled for the newest set, and call it on older machines.
// For nvcc there are plain numbers only: each thread of a GPU is a lane.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "weft/core/dtype.h"

namespace weft::ops::core {

#ifndef __CUDACC__
#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64, kRowStep = 12;  // rows of a register tile: 12 x 2 of 32 registers
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32, kRowStep = 6;  // 6 x 2 of 16 registers
#else
inline constexpr int kVectorBytes = 16, kRowStep = 6;
#endif

template <class T, int N>
struct VectorOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));
template <class T>
using Lanes = typename VectorOf<T, kLanes<T>>::type;  // values of T
template <class T>
using LaneInts = typename VectorOf<int32_t, kLanes<T>>::type;  // as many 32-bit integers: positions, documents, claims

#endif

// Element type and the integer of the same shape, of scalars and of lanes alike.
#ifdef __CUDACC__
template <class V>
struct LaneTraits;
#else
template <class V>
struct LaneTraits {
  using Element = std::remove_cvref_t<decltype(V{}[0])>;
  static constexpr int kCount = sizeof(V) / sizeof(Element);
  using Bits = typename VectorOf<std::conditional_t<sizeof(Element) == 4, int32_t, int64_t>, kCount>::type;
  using UBits = typename VectorOf<std::conditional_t<sizeof(Element) == 4, uint32_t, uint64_t>, kCount>::type;
};
#endif
template <>
struct LaneTraits<float> {
  using Element = float;
  using Bits = int32_t;
  using UBits = uint32_t;
};
template <>
struct LaneTraits<double> {
  using Element = double;
  using Bits = int64_t;
  using UBits = uint64_t;
};

// The element x in every lane. x - 0 is exact for every x, but x + 0 is not (-0), so the compiler removes only the subtraction.
template <class V>
[[gnu::always_inline]] WEFT_HD V broadcast(typename LaneTraits<V>::Element x) {
  return x - V{};
}

template <class V>
[[gnu::always_inline]] WEFT_HD V lane_max(V a, V b) {
  return a > b ? a : b;
}

#ifdef __CUDACC__

template <class T>
WEFT_HD T select(bool keep, T a, T b) {
  return keep ? a : b;
}

// 2^x, one instruction for f32: relative error 2^-22, subnormal results are 0.
WEFT_HD float lane_exp2(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}
WEFT_HD double lane_exp2(double x) { return exp2(x); }

WEFT_HD float lane_tanh(float x) { return tanhf(x); }
WEFT_HD double lane_tanh(double x) { return tanh(x); }

#else

template <class V>
[[gnu::always_inline]] inline auto sum_of(V lanes) {
  typename LaneTraits<V>::Element sum = 0;
  for (int c = 0; c < LaneTraits<V>::kCount; ++c) sum += lanes[c];
  return sum;
}

// keep ? a : b. A claim about lanes is what comparing integers gives: 0 or -1 per lane.
template <class V, class Claim>
[[gnu::always_inline]] WEFT_HD V select(Claim keep, V a, V b) {
  if constexpr (std::is_arithmetic_v<V>) {
    return keep ? a : b;
  } else {
    using Bits = typename LaneTraits<V>::Bits;
    if constexpr (std::is_same_v<Claim, Bits>) return keep ? a : b;
    else return __builtin_convertvector(keep, Bits) ? a : b;
  }
}

template <class To, class From>
[[gnu::always_inline]] WEFT_HD To bit_cast_lanes(From x) {
  To y;
  static_assert(sizeof x == sizeof y);
  __builtin_memcpy(&y, &x, sizeof y);
  return y;
}

// 2^x for x < 128 (f64: 1024): relative error 1e-7 (f64: 3e-16); exactly 0 below -127 (-1023) and exactly 1 at 0; NaN stays.
template <class V>
[[gnu::always_inline]] WEFT_HD V lane_exp2(V x) {
  using T = typename LaneTraits<V>::Element;
  using UBits = typename LaneTraits<V>::UBits;  // what padded lanes hold may be too large: it wraps
  constexpr bool is_float = sizeof(T) == 4;
  constexpr T lowest = is_float ? -127 : -1023;
  constexpr T magic = is_float ? T(0x1.8p23) : T(0x1.8p52);  // adding it leaves round(x) in the low bits
  V low = V{} + lowest;
  x = x < low ? low : x;
  V shifted = x + magic;
  V f = x - (shifted - magic);
  V p;
  if constexpr (is_float) {
    p = V{} + T(1.3264727036749382e-3);
    p = p * f + T(9.671512649194795e-3);
    p = p * f + T(5.55073374378805e-2);
    p = p * f + T(2.402224208516727e-1);
    p = p * f + T(6.931469775987789e-1);
    p = p * f + T(1);
  } else {
    constexpr T ln2 = T(0.693147180559945309417);
    V y = f * ln2;
    p = V{} + T(1.0 / 6227020800.0);
    for (T inverse : {1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0, 1.0 / 40320.0, 1.0 / 5040.0,
                      1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0})
      p = p * y + inverse;
  }
  constexpr int mantissa = is_float ? 23 : 52;
  return bit_cast_lanes<V>(bit_cast_lanes<UBits>(p) + (bit_cast_lanes<UBits>(shifted) << mantissa));
}

// tanh(x). f32: x P(x^2) / Q(x^2), relative error below 4e-7 and never above 1. f64: error 2 units in the last place of 1; near 0 of x.
template <class V>
[[gnu::always_inline]] WEFT_HD V lane_tanh(V x) {
  using T = typename LaneTraits<V>::Element;
  constexpr bool is_float = sizeof(T) == 4;
  constexpr T limit = is_float ? T(7.95) : T(22);  // where tanh is 1 to the precision of T
  V high = V{} + limit, c = x > high ? high : x;
  c = c < -high ? -high : c;
  V s = c * c;
  if constexpr (is_float) {  // best in relative error over [0, 9], by a weighted fit in float64
    V p = V{} + T(1.3336524103464025e-8), q = V{} + T(7.769148386707134e-7);
    p = p * s + T(2.0596034152092362e-5), q = q * s + T(3.284339281258505e-4);
    p = p * s + T(3.4947963943270425e-3), q = q * s + T(2.5873971062784128e-2);
    p = p * s + T(1.338035929047704e-1), q = q * s + T(4.671367471784649e-1);
    p = p * s + T(1), q = q * s + T(1);
    return c * p / q;
  }
  V e = lane_exp2(c * T(2 * 1.44269504088896340736));
  V far = (e - T(1)) / (e + T(1));
  // Taylor series below 1/8, where the quotient cancels.
  V near =
      c * (T(1) +
           s * (T(-1.0 / 3) +
                s * (T(2.0 / 15) + s * (T(-17.0 / 315) +
                                        s * (T(62.0 / 2835) + s * (T(-1382.0 / 155925) + s * T(21844.0 / 6081075)))))));
  V small = V{} + T(0.125);
  return (c < small) & (c > -small) ? near : far;
}

#endif

}  // namespace weft::ops::core
