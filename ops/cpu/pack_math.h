// exp, log, tanh, ... on packs of lanes: polynomials for f32 (relative error of at most 4 ulp where tests/ops/elementwise_test.cpp
// states no other bound), lane by lane through libm for f64, which serves gradient checks only.
// Coefficients are minimax fits of our own in relative error. Needs -fno-math-errno without -ffast-math: fast-math drops the
// compensated steps.
#pragma once

#include <math.h>

#include "ops/cpu/pack.h"

namespace weft::cpu::HWY_NAMESPACE {

using F32 = Pack<float>;
using F64 = Pack<double>;

template <class T>
HWY_INLINE Pack<T> lane_by_lane(Pack<T> x, double (*f)(double)) {
  T lanes[Pack<T>::kLanes];
  store(x, static_cast<T*>(lanes));
  for (int64_t i = 0; i < Pack<T>::kLanes; ++i) lanes[i] = static_cast<T>(f(lanes[i]));
  return load(static_cast<const T*>(lanes));
}

// c[0] + c[1] x + ... by Horner's rule.
template <class... C>
HWY_INLINE F32 polynomial(F32 x, F32 first, C... rest) {
  if constexpr (sizeof...(rest) == 0) return first;
  else return fused(polynomial(x, F32(rest)...), x, first);
}

// x between two bounds; NaN stays NaN.
HWY_INLINE F32 clamp(F32 x, float low, float high) {
#if HWY_ARCH_X86 && HWY_TARGET != HWY_SCALAR
  return F32(hn::Min(hn::Set(F32::Tag(), high), hn::Max(hn::Set(F32::Tag(), low), x.v)));  // NaN: the second operand
#else
  return select(x > F32(high), F32(high), select(x < F32(low), F32(low), x));
#endif
}

// exp

// x = n ln 2 + r with |r| <= ln(2) / 2; expm1_r = exp(r) - 1.
struct ExpParts {
  hn::Vec<hn::RebindToSigned<F32::Tag>> n;
  F32 expm1_r;
};
HWY_INLINE ExpParts exp_parts(F32 x) {
  // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits.
  hn::RebindToSigned<F32::Tag> di;
  const F32 magic(0x1.8p23f);
  F32 shifted = fused(x, F32(1.44269504088896341f), magic);
  ExpParts parts;
  parts.n = hn::Sub(hn::BitCast(di, shifted.v), hn::BitCast(di, magic.v));
  F32 n = shifted - magic;
  F32 r = fused(n, F32(-0.693145751953125f), x);  // ln 2 in two parts; the first has 8 zero bits at its end
  r = fused(n, F32(-1.42860677e-6f), r);
  F32 q = polynomial(r, 4.999999404e-01f, 1.666651517e-01f, 4.166845605e-02f, 8.369418792e-03f, 1.381314243e-03f);
  parts.expm1_r = fused(r * r, q, r);
  return parts;
}
// 2^n for -126 <= n <= 127; 0 for -127, inf for 128.
HWY_INLINE F32 power_of_two(hn::Vec<hn::RebindToSigned<F32::Tag>> n) {
  hn::RebindToSigned<F32::Tag> di;
  return F32(hn::BitCast(F32::Tag(), hn::ShiftLeft<23>(hn::Add(n, hn::Set(di, 127)))));
}

// Overflows to inf and underflows gradually: the scaling is done in two steps.
HWY_INLINE F32 exp(F32 x) {
  ExpParts parts = exp_parts(clamp(x, -104.0f, 89.0f));
  auto half = hn::ShiftRight<1>(parts.n);
  F32 scale = power_of_two(half);
  return fused(parts.expm1_r, scale, scale) * power_of_two(hn::Sub(parts.n, half));
}
HWY_INLINE F64 exp(F64 x) { return lane_by_lane(x, ::exp); }

// exp(x) - 1 for x <= 88.
HWY_INLINE F32 expm1(F32 x) {
  ExpParts parts = exp_parts(clamp(x, -25.0f, 88.0f));
  F32 scale = power_of_two(parts.n);
  return fused(parts.expm1_r, scale, scale - F32(1));
}
HWY_INLINE F64 expm1(F64 x) { return lane_by_lane(x, ::expm1); }

// As exp(x), a third cheaper: 0 below 2^-126.5 and inf above 2^127.5, for sums with 1 and for tails.
HWY_INLINE F32 exp_flushed(F32 x) {
  ExpParts parts = exp_parts(clamp(x, -88.0f, 88.8f));
  return (parts.expm1_r + F32(1)) * power_of_two(parts.n);
}

HWY_INLINE F32 sigmoid(F32 x) { return F32(1) / (F32(1) + exp_flushed(-x)); }
HWY_INLINE F64 sigmoid(F64 x) { return F64(1) / (F64(1) + exp(-x)); }

// tanh: odd polynomial up to 0.625, beyond it 1 - 2 / (exp(2 |x|) + 1).
HWY_INLINE F32 tanh(F32 x) {
  F32 size = abs(x), square = x * x;
  F32 q =
      polynomial(square, -3.333327770e-01f, 1.333132833e-01f, -5.372922868e-02f, 2.060199901e-02f, -5.660780706e-03f);
  F32 near = fused(x * square, q, x);
  F32 far = F32(1) - F32(2) / (exp_flushed(size + size) + F32(1));
  return select(size < F32(0.625f), near, F32(hn::CopySign(far.v, x.v)));
}
HWY_INLINE F64 tanh(F64 x) { return lane_by_lane(x, ::tanh); }

// log

// x = 2^e m with m in [sqrt(1/2), sqrt(2)); log(m) by a polynomial in m - 1.
HWY_INLINE F32 log(F32 x) {
  F32::Tag d;
  hn::RebindToSigned<F32::Tag> di;
  Mask<float> is_tiny = x < F32(0x1p-126f);
  F32 scaled = select(is_tiny, x * F32(0x1p23f), x);
  auto bits = hn::BitCast(di, scaled.v);
  auto exponent = hn::ShiftRight<23>(hn::Sub(bits, hn::Set(di, 0x3f3504f3)));
  F32 f = F32(hn::BitCast(d, hn::Sub(bits, hn::ShiftLeft<23>(exponent)))) - F32(1);
  F32 e = F32(hn::ConvertTo(d, exponent)) - select(is_tiny, F32(23), F32(0));
  F32 q = polynomial(f, 3.333331048e-01f, -2.499998659e-01f, 2.000221908e-01f, -1.666923910e-01f, 1.421876997e-01f,
                     -1.238458231e-01f, 1.187247261e-01f, -1.178834736e-01f, 6.914681196e-02f);
  F32 square = f * f;
  F32 low = fused(square * f, q, e * F32(1.42860677e-6f));
  low = fused(square, F32(-0.5f), low);
  F32 y = fused(e, F32(0.693145751953125f), f + low);
  y = select(x == F32(0), F32(-HUGE_VALF), y);
  y = select(x < F32(0), F32(NAN), y);
  return select((x != x) | (x == F32(HUGE_VALF)), x, y);
}
HWY_INLINE F64 log(F64 x) { return lane_by_lane(x, ::log); }

// log(1 + x) for 0 <= x <= 1, as 2 atanh(x / (2 + x)).
HWY_INLINE F32 log1p(F32 x) {
  F32 s = x / (F32(2) + x), square = s * s;
  F32 q = polynomial(square, 3.333333731e-01f, 1.999944150e-01f, 1.430837810e-01f, 1.071445644e-01f, 1.214829609e-01f);
  F32 twice = s + s;
  return fused(twice * square, q, twice);
}
HWY_INLINE F64 log1p(F64 x) { return lane_by_lane(x, ::log1p); }

// x^exponent, lane by lane in f64 for both types: a fast exp(exponent * log(x)) would lose the digits of large powers.
template <class T>
HWY_INLINE Pack<T> power(Pack<T> x, Pack<T> exponent) {
  T bases[Pack<T>::kLanes], exponents[Pack<T>::kLanes];
  store(x, static_cast<T*>(bases));
  store(exponent, static_cast<T*>(exponents));
  for (int64_t i = 0; i < Pack<T>::kLanes; ++i)
    bases[i] = static_cast<T>(::pow(static_cast<double>(bases[i]), static_cast<double>(exponents[i])));
  return load(static_cast<const T*>(bases));
}

// sin, cos

// sin(x + shift pi / 2). The angle is reduced in f64 (two parts of pi / 2), so that large angles keep f32's accuracy.
HWY_INLINE F32 sin_shifted(F32 x, double shift) {
  F64 wide[kHalves], quarter[kHalves];
  widen(x, wide);
  for (int h = 0; h < kHalves; ++h) {
    F64 n(hn::Round((wide[h] * F64(0.63661977236758134308)).v));
    F64 r = fused(n, F64(-1.57079632679489655800), wide[h]);
    wide[h] = fused(n, F64(-6.12323399573676603587e-17), r);
    n = n + F64(shift);
    quarter[h] = n - F64(4) * F64(hn::Floor((n * F64(0.25)).v));
  }
  F32 r = narrow(wide), turn = narrow(quarter), square = r * r;
  F32 sine = fused(r * square,
                   polynomial(square, -1.666666716e-01f, 8.333329111e-03f, -1.983925176e-04f, 2.717519237e-06f), r);
  F32 q = polynomial(square, 4.166664556e-02f, -1.388730248e-03f, 2.443076301e-05f);
  F32 cosine = fused(square * square, q, fused(square, F32(-0.5f), F32(1)));
  F32 y = select((turn == F32(1)) | (turn == F32(3)), cosine, sine);
  return select(turn > F32(1.5f), -y, y);
}
// Beyond this angle the reduction loses bits; without a fused multiply-add much earlier.
inline constexpr float kLargestAngle = HWY_NATIVE_FMA ? 1e9f : 100.0f;
HWY_INLINE bool has_huge_angle(F32 x) { return !hn::AllFalse(F32::Tag(), (abs(x) > F32(kLargestAngle)).m); }
HWY_INLINE F32 sin(F32 x) { return has_huge_angle(x) ? lane_by_lane(x, ::sin) : sin_shifted(x, 0); }
HWY_INLINE F32 cos(F32 x) { return has_huge_angle(x) ? lane_by_lane(x, ::cos) : sin_shifted(x, 1); }
HWY_INLINE F64 sin(F64 x) { return lane_by_lane(x, ::sin); }
HWY_INLINE F64 cos(F64 x) { return lane_by_lane(x, ::cos); }

// Normal distribution

template <class T>
struct NormalPack {
  Pack<T> cdf, pdf;
};
// Phi(-|x|) = exp(-x^2 / 2) t P(t) with t = 1 / (1 + 0.3 |x|): accurate relative to Phi in the left tail too. The rounding error
// of x^2 / 2, which exp would magnify, is put back to first order.
HWY_INLINE NormalPack<float> normal(F32 x) {
  F32 size = clamp(abs(x), 0.0f, 20.0f);
  F32 half = F32(0.5f) * size, exponent = size * half;
  F32 lost(hn::MulSub(size.v, half.v, exponent.v));
  F32 e = exp_flushed(-exponent);
  e = e - e * lost;
  F32 t = F32(1) / fused(size, F32(0.3f), F32(1));
  // Even and odd coefficients apart: two short chains instead of a long one.
  F32 square = t * t;
  F32 even =
      polynomial(square, 1.196866706e-01f, 1.102327928e-01f, 9.612471610e-02f, 1.917187572e-01f, 1.124162152e-01f);
  F32 odd =
      polynomial(square, 1.195721477e-01f, 7.840130478e-02f, -7.936635613e-02f, -2.281662375e-01f, -2.062002197e-02f);
  F32 p = fused(odd, t, even);
  F32 tail = e * t * p;
  return {select(x > F32(0), F32(1) - tail, tail), F32(0.39894228040143268f) * e};
}
HWY_INLINE double normal_cdf_lane(double x) { return 0.5 * ::erfc(x * -0.70710678118654752440); }
HWY_INLINE NormalPack<double> normal(F64 x) {
  double lanes[F64::kLanes];
  store(x, static_cast<double*>(lanes));
  for (double& lane : lanes) lane = normal_cdf_lane(lane);
  return {load(static_cast<const double*>(lanes)), F64(0.39894228040143267794) * exp(F64(-0.5) * x * x)};
}

}  // namespace weft::cpu::HWY_NAMESPACE
