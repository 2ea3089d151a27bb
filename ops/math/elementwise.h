// One-element maths of the elementwise ops, once for every device. T is a floating type or a pack of lanes.
// f is the function. df is its derivative, as a function of the output where a comment says y, else of the input.
// NaN goes through every function; infinities give the limit (clamps stand where inf * 0 would give NaN).
#pragma once

#include "ops/math/scalar.h"

namespace weft::math {

// Beyond these bounds silu and gelu equal their limits in every dtype, and products with zero stay finite.
template <class T>
WEFT_HD T clamp_low(T x) {
  return select(x < T(-1e4), T(-1e4), x);
}
template <class T>
WEFT_HD T clamp_both(T x) {
  return select(x > T(1e4), T(1e4), clamp_low(x));
}

// Two inputs. What has no form for integers says so.

template <class F>
concept OnlyFloating = requires {
  requires F::is_only_floating;
};

struct Add {
  template <class T>
  WEFT_HD T f(T a, T b) const {
    return a + b;
  }
};
struct Sub {
  template <class T>
  WEFT_HD T f(T a, T b) const {
    return a - b;
  }
};
struct Mul {
  template <class T>
  WEFT_HD T f(T a, T b) const {
    return a * b;
  }
};
struct Div {
  static constexpr bool is_only_floating = true;
  template <class T>
  WEFT_HD T f(T a, T b) const {
    return a / b;
  }
};
// NaN if either is NaN.
struct Maximum {
  template <class T>
  WEFT_HD T f(T a, T b) const {
    return select(a != a, a, select(a > b, a, b));
  }
};
struct Minimum {
  template <class T>
  WEFT_HD T f(T a, T b) const {
    return select(a != a, a, select(a < b, a, b));
  }
};

// a^b and its slopes, with the conventions of PyTorch: a^0 is 1 with slope 0 in a, whatever a is; 0^b has slope 0 in b for b >= 0.
// A negative a with b that is not whole gives NaN, and so does the slope in b of any negative a.
struct PowerOf {
  static constexpr bool is_only_floating = true;
  template <class T>
  WEFT_HD T f(T a, T b) const {
    return power(a, b);
  }
};
struct PowerSlopeOfBase {
  static constexpr bool is_only_floating = true;
  template <class T>
  WEFT_HD T f(T a, T b) const {
    return select(b == T(0), T(0), b * power(a, b - T(1)));
  }
};
struct PowerSlopeOfExponent {
  static constexpr bool is_only_floating = true;
  template <class T>
  WEFT_HD T f(T a, T b) const {
    T slope = power(a, b) * log(a);
    T at_zero = select(b < T(0), slope, select(b == b, T(0), b));
    return select(a == T(0), at_zero, slope);
  }
};

// Losses of a prediction a against a target b.

struct SquaredError {
  static constexpr bool is_only_floating = true;
  template <class T>
  WEFT_HD T f(T a, T b) const {
    T difference = a - b;
    return difference * difference;
  }
};
// b softplus(-a) + (1 - b) softplus(a) of a logit a: no difference of large numbers, and a share of 0 silences an infinity.
struct BceWithLogits {
  static constexpr bool is_only_floating = true;
  template <class T>
  WEFT_HD T f(T a, T b) const {
    T above = select(a < T(0), T(0), a), below = select(a > T(0), T(0), -a);
    T no = T(1) - b;
    return select(b == T(0), T(0), b * below) + select(no == T(0), T(0), no * above) + log1p(exp(-abs(a)));
  }
};
struct BceWithLogitsSlope {  // in a
  static constexpr bool is_only_floating = true;
  template <class T>
  WEFT_HD T f(T a, T b) const {
    return (T(1) - b) * sigmoid(a) - b * sigmoid(-a);
  }
};

// The gradient of Clamp: dy between the bounds and on them, else 0, even where dy is infinite.
struct ClampGradient {
  static constexpr bool is_only_floating = true;
  double low, high;
  template <class T>
  WEFT_HD T f(T dy, T x) const {
    return select(x < T(low), T(0), select(x > T(high), T(0), select(x == x, dy, x)));
  }
};

// One input.

struct Clamp {
  double low, high;
  template <class T>
  WEFT_HD T f(T x) const {
    return select(x < T(low), T(low), select(x > T(high), T(high), x));
  }
};
// x^exponent of a number; as PowerOf, and exact for the exponents 0, 1 and 2.
struct Power {
  double exponent;
  template <class T>
  WEFT_HD T f(T x) const {
    if (exponent == 0) return T(1);
    if (exponent == 1) return x;
    if (exponent == 2) return x * x;
    return power(x, T(exponent));
  }
  template <class T>
  WEFT_HD T df(T x) const {
    if (exponent == 0) return T(0);
    return T(exponent) * Power{exponent - 1}.f(x);
  }
};

struct Scale {
  double factor;
  template <class T>
  WEFT_HD T f(T x) const {
    return x * T(factor);
  }
};
struct AddScalar {
  double number;
  template <class T>
  WEFT_HD T f(T x) const {
    return x + T(number);
  }
};
struct Neg {
  template <class T>
  WEFT_HD T f(T x) const {
    return -x;
  }
};
struct Abs {
  template <class T>
  WEFT_HD T f(T x) const {
    return abs(x);
  }
  template <class T>
  WEFT_HD T df(T x) const {
    return select(x > T(0), T(1), select(x < T(0), T(-1), x));
  }  // 0 at 0
};
struct Square {
  template <class T>
  WEFT_HD T f(T x) const {
    return x * x;
  }
  template <class T>
  WEFT_HD T df(T x) const {
    return x + x;
  }
};
struct Sqrt {
  template <class T>
  WEFT_HD T f(T x) const {
    return sqrt(x);
  }
  template <class T>
  WEFT_HD T df(T y) const {
    return T(0.5) / y;
  }  // of y
};
struct Rsqrt {
  template <class T>
  WEFT_HD T f(T x) const {
    return T(1) / sqrt(x);
  }
  template <class T>
  WEFT_HD T df(T y) const {
    return T(-0.5) * y * y * y;
  }  // of y
};
struct Exp {
  template <class T>
  WEFT_HD T f(T x) const {
    return exp(x);
  }
  template <class T>
  WEFT_HD T df(T y) const {
    return y;
  }  // of y
};
struct Log {
  template <class T>
  WEFT_HD T f(T x) const {
    return log(x);
  }
  template <class T>
  WEFT_HD T df(T x) const {
    return T(1) / x;
  }
};
struct Sin {
  template <class T>
  WEFT_HD T f(T x) const {
    return sin(x);
  }
  template <class T>
  WEFT_HD T df(T x) const {
    return cos(x);
  }
};
struct Cos {
  template <class T>
  WEFT_HD T f(T x) const {
    return cos(x);
  }
  template <class T>
  WEFT_HD T df(T x) const {
    return -sin(x);
  }
};
struct Tanh {
  template <class T>
  WEFT_HD T f(T x) const {
    return tanh(x);
  }
  template <class T>
  WEFT_HD T df(T y) const {
    return T(1) - y * y;
  }  // of y
};
struct Sigmoid {
  template <class T>
  WEFT_HD T f(T x) const {
    return sigmoid(x);
  }
  template <class T>
  WEFT_HD T df(T y) const {
    return y * (T(1) - y);
  }  // of y
};
// log(1 + exp(x)), from the side that does not overflow.
struct Softplus {
  template <class T>
  WEFT_HD T f(T x) const {
    return select(x < T(0), T(0), x) + log1p(exp(-abs(x)));
  }
  template <class T>
  WEFT_HD T df(T x) const {
    return sigmoid(x);
  }
};
struct LogSigmoid {
  template <class T>
  WEFT_HD T f(T x) const {
    return -Softplus{}.f(-x);
  }
  template <class T>
  WEFT_HD T df(T x) const {
    return sigmoid(-x);
  }
};
struct Relu {
  template <class T>
  WEFT_HD T f(T x) const {
    return select(x < T(0), T(0), x);
  }
  template <class T>
  WEFT_HD T df(T y) const {
    return select(y > T(0), T(1), select(y != y, y, T(0)));
  }  // of y
};
struct Elu {
  template <class T>
  WEFT_HD T f(T x) const {
    return select(x > T(0), x, expm1(select(x > T(0), T(0), x)));
  }
  template <class T>
  WEFT_HD T df(T y) const {
    return select(y > T(0), T(1), y + T(1));
  }  // of y
};
struct Silu {
  template <class T>
  WEFT_HD T f(T x) const {
    return clamp_low(x) * sigmoid(x);
  }
  template <class T>
  WEFT_HD T df(T x) const {
    T s = sigmoid(x);
    return s * (T(1) + clamp_both(x) * (T(1) - s));
  }
};
// x * Phi(x), Phi the normal distribution function.
struct Gelu {
  template <class T>
  WEFT_HD T f(T x) const {
    return clamp_low(x) * normal(x).cdf;
  }
  template <class T>
  WEFT_HD T df(T x) const {
    auto [cdf, pdf] = normal(x);
    return cdf + clamp_both(x) * pdf;
  }
};
// x / 2 * (1 + tanh(u)) with u = sqrt(2 / pi) (x + 0.044715 x^3), written as x * sigmoid(2 u): no cancellation on the left.
struct GeluTanh {
  template <class T>
  WEFT_HD T f(T x) const {
    T low = clamp_low(x);
    return low * sigmoid(low * (T(kLinear) + T(kCubic) * low * low));
  }
  template <class T>
  WEFT_HD T df(T x) const {
    T c = clamp_both(x), square = c * c;
    T s = sigmoid(c * (T(kLinear) + T(kCubic) * square));
    return slope(c, s, square);
  }
  // f(x) and df(x), which have the sigmoid in common: beyond df's clamps it is 0 or 1, so that f is the same.
  template <class T>
  WEFT_HD void both(T x, T& y, T& dy) const {
    T c = clamp_both(x), square = c * c;
    T s = sigmoid(c * (T(kLinear) + T(kCubic) * square));
    y = clamp_low(x) * s;
    dy = slope(c, s, square);
  }
  static constexpr double kLinear = 1.5957691216057308, kCubic = 0.044715 * kLinear;  // 2 sqrt(2 / pi)

 private:
  template <class T>
  static WEFT_HD T slope(T c, T s, T square) {
    return s + s * (T(1) - s) * c * (T(kLinear) + T(3 * kCubic) * square);
  }
};
// cap * tanh(x / cap). The derivative 1 - (y / cap)^2 needs only the output.
struct Softcap {
  double cap;
  template <class T>
  WEFT_HD T f(T x) const {
    return T(cap) * tanh(x / T(cap));
  }
  template <class T>
  WEFT_HD T df(T y) const {  // of y
    T r = y / T(cap);
    return T(1) - r * r;
  }
};

// silu(gate) * up; dgate and dup share the sigmoid.

struct Swiglu {
  static constexpr bool is_only_floating = true;
  template <class T>
  WEFT_HD T f(T gate, T up) const {
    return Silu{}.f(gate) * up;
  }
  template <class T>
  WEFT_HD void df(T dy, T gate, T up, T& dgate, T& dup) const {
    T s = sigmoid(gate);
    dup = dy * clamp_low(gate) * s;
    dgate = dy * up * s * (T(1) + clamp_both(gate) * (T(1) - s));
  }
};

// What is compiled for every device: y = f(x), dx = dy * df(kept), y = f(a, b).

template <class... F>
struct List {};
using MapFunctors = List<Scale, AddScalar, Neg, Abs, Square, Sqrt, Rsqrt, Exp, Log, Sin, Cos, Tanh, Sigmoid, LogSigmoid,
                         Softplus, Relu, Elu, Silu, Gelu, GeluTanh, Softcap, Clamp, Power>;
using BackwardFunctors = List<Abs, Square, Sqrt, Rsqrt, Exp, Log, Sin, Cos, Tanh, Sigmoid, LogSigmoid, Softplus, Relu,
                              Elu, Silu, Gelu, GeluTanh, Softcap, Power>;
using ZipFunctors = List<Add, Sub, Mul, Div, Maximum, Minimum, Swiglu, ClampGradient, PowerOf, PowerSlopeOfBase,
                         PowerSlopeOfExponent, SquaredError, BceWithLogits, BceWithLogitsSlope>;

}  // namespace weft::math
