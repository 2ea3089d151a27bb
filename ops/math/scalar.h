// Scalar spellings of the functions that the functors of ops/math use, so that one functor serves a double, a float on a
// CUDA device and a pack of lanes on the CPU (ops/cpu/pack_math.h has the same names for packs).
#pragma once

#include <math.h>  // the overloads for float in the global namespace, also on devices

#include "weft/core/dtype.h"

namespace weft::math {

using ::abs;
using ::cos;
using ::exp;
using ::expm1;
using ::log;
using ::log1p;
using ::sin;
using ::sqrt;
using ::tanh;

WEFT_HD float select(bool condition, float a, float b) { return condition ? a : b; }
WEFT_HD double select(bool condition, double a, double b) { return condition ? a : b; }

WEFT_HD float power(float x, float exponent) { return pow(x, exponent); }
WEFT_HD double power(double x, double exponent) { return pow(x, exponent); }

WEFT_HD float sigmoid(float x) { return 1 / (1 + exp(-x)); }
WEFT_HD double sigmoid(double x) { return 1 / (1 + exp(-x)); }

// Distribution function and density of the standard normal.
template <class T>
struct Normal {
  T cdf, pdf;
};
WEFT_HD Normal<float> normal(float x) {
  return {0.5f * erfcf(x * -0.70710678118654752f), 0.39894228040143268f * exp(-0.5f * x * x)};
}
WEFT_HD Normal<double> normal(double x) {
  return {0.5 * erfc(x * -0.70710678118654752440), 0.39894228040143267794 * exp(-0.5 * x * x)};
}

}  // namespace weft::math
