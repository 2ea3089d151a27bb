#include "weft/ops/elementwise.h"

#include <array>
#include <limits>
#include <span>

#include "ops/cpu/elementwise.h"
#include "ops/cuda/elementwise.h"
#include "ops/number_like.h"
#include "src/core/cuda_build.h"
#include "weft/core/error.h"
#include "weft/ops/reduce.h"

namespace weft::ops {

namespace {

void check_floating(const Tensor& x, std::string_view op) {
  WEFT_CHECK(x.defined() && is_floating(x.dtype()), str(op, ": x is ", x), "use a tensor of dtype f32, bf16 or f64");
}

void check_pair(const Tensor& a, const Tensor& b, std::string_view op, std::string_view name_a = "a",
                std::string_view name_b = "b") {
  WEFT_CHECK(a.defined() && b.defined() && a.dtype() == b.dtype() && a.device() == b.device(),
             str(op, ": ", name_a, " is ", a, ", ", name_b, " is ", b),
             "both need the same dtype and device: cast or copy one of them");
}

template <class F>
Tensor map(const Tensor& x, F f, std::string_view op) {
  check_floating(x, op);
  if constexpr (kCuda) {
    if (x.is_cuda()) return cuda::map(x, f);
  }
  return cpu::map(x, f);
}

template <class F>
Tensor map_backward(const Tensor& dy, const Tensor& kept, F f, std::string_view op) {
  check_floating(dy, op);
  check_pair(dy, kept, op, "dy", "the kept tensor");
  WEFT_CHECK(dy.shape() == kept.shape(), str(op, ": dy is ", dy, ", the kept tensor is ", kept),
             "give the tensor that the forward op took or returned");
  if constexpr (kCuda) {
    if (dy.is_cuda()) return cuda::map_backward(dy, kept, f);
  }
  return cpu::map_backward(dy, kept, f);
}

template <class F>
Tensor zip(const Tensor& a, const Tensor& b, F f, std::string_view op) {
  check_pair(a, b, op);
  Shape shape = a.shape() == b.shape() ? a.shape() : broadcast_shapes(a.shape(), b.shape(), op);
  if constexpr (kCuda) {
    if (a.is_cuda()) return cuda::zip(a, b, shape, f);
  }
  return cpu::zip(a, b, shape, f);
}

template <class F>
Tensor zip_floating(const Tensor& a, const Tensor& b, F f, std::string_view op) {
  check_floating(a, op);
  return zip(a, b, f, op);
}

// Two tensors of one shape: a second one of another is more often a mistake than meant to be repeated.
template <class F>
Tensor zip_alike(const Tensor& a, const Tensor& b, F f, std::string_view op, std::string_view name_a,
                 std::string_view name_b) {
  check_floating(a, op);
  check_pair(a, b, op, name_a, name_b);
  WEFT_CHECK(a.shape() == b.shape(), str(op, ": ", name_a, " is ", a, ", ", name_b, " is ", b),
             "both need the same shape");
  return zip(a, b, f, op);
}

void check_not_bool(const Tensor& a, std::string_view op) {
  WEFT_CHECK(a.dtype() != kBool, str(op, ": a is ", a), "cast to an integer or floating dtype first");
}

}  // namespace

// Two tensors.

Tensor add(const Tensor& a, const Tensor& b) {
  check_not_bool(a, "add");
  return zip(a, b, math::Add{}, "add");
}
Tensor sub(const Tensor& a, const Tensor& b) {
  check_not_bool(a, "sub");
  return zip(a, b, math::Sub{}, "sub");
}
Tensor mul(const Tensor& a, const Tensor& b) { return zip(a, b, math::Mul{}, "mul"); }
Tensor div(const Tensor& a, const Tensor& b) { return zip_floating(a, b, math::Div{}, "div"); }
Tensor maximum(const Tensor& a, const Tensor& b) { return zip(a, b, math::Maximum{}, "maximum"); }
Tensor minimum(const Tensor& a, const Tensor& b) { return zip(a, b, math::Minimum{}, "minimum"); }

Tensor sum_to(const Tensor& x, const Shape& shape) {
  if (x.shape() == shape) return x;
  int shift = x.num_dims() - shape.num_dims();
  bool fits = shift >= 0;
  std::array<int, kMaxDims> dims{};
  size_t count = 0;
  for (int d = 0; fits && d < x.num_dims(); ++d) {
    bool was_repeated = d < shift || (shape[d - shift] == 1 && x.shape()[d] != 1);
    if (was_repeated) dims[count++] = d;
    else fits = shape[d - shift] == x.shape()[d];
  }
  WEFT_CHECK(fits, str("sum_to: x is ", x, ", shape is ", shape), "the shape must be one that broadcasts to that of x");
  return sum(x, std::span<const int>(dims.data(), count), true).reshape(shape);
}

// A tensor and a number.

Tensor scale(const Tensor& x, double factor) { return map(x, math::Scale{factor}, "scale"); }
Tensor add_scalar(const Tensor& x, double number) { return map(x, math::AddScalar{number}, "add_scalar"); }

Tensor clamp(const Tensor& x, double low, double high) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  WEFT_CHECK(low <= high, str("clamp: low is ", low, ", high is ", high),
             "low must not be above high and neither NaN; leave a bound out with -infinity or infinity");
  if (!x.defined() || is_floating(x.dtype())) return map(x, math::Clamp{low, high}, "clamp");
  check_not_bool(x, "clamp");
  Tensor y = low > -kInfinity ? maximum(x, number_like(low, x, "clamp")) : clone(x);
  return high < kInfinity ? minimum(y, number_like(high, x, "clamp")) : y;
}
Tensor clamp_backward(const Tensor& dy, const Tensor& x, double low, double high) {
  return zip_alike(dy, x, math::ClampGradient{low, high}, "clamp_backward", "dy", "x");
}

Tensor pow(const Tensor& x, double exponent) { return map(x, math::Power{exponent}, "pow"); }
Tensor pow_backward(const Tensor& dy, const Tensor& x, double exponent) {
  return map_backward(dy, x, math::Power{exponent}, "pow_backward");
}
Tensor pow(const Tensor& a, const Tensor& b) { return zip_floating(a, b, math::PowerOf{}, "pow"); }
PowGrads pow_backward(const Tensor& dy, const Tensor& a, const Tensor& b, bool wants_da, bool wants_db) {
  auto times = [&](auto slope, const Shape& shape) {
    return sum_to(mul(dy, zip_floating(a, b, slope, "pow_backward")), shape);
  };
  return {wants_da ? times(math::PowerSlopeOfBase{}, a.shape()) : Tensor(),
          wants_db ? times(math::PowerSlopeOfExponent{}, b.shape()) : Tensor()};
}

// One tensor.

Tensor neg(const Tensor& x) { return map(x, math::Neg{}, "neg"); }
Tensor abs(const Tensor& x) { return map(x, math::Abs{}, "abs"); }
Tensor square(const Tensor& x) { return map(x, math::Square{}, "square"); }
Tensor sqrt(const Tensor& x) { return map(x, math::Sqrt{}, "sqrt"); }
Tensor rsqrt(const Tensor& x) { return map(x, math::Rsqrt{}, "rsqrt"); }
Tensor exp(const Tensor& x) { return map(x, math::Exp{}, "exp"); }
Tensor log(const Tensor& x) { return map(x, math::Log{}, "log"); }
Tensor sin(const Tensor& x) { return map(x, math::Sin{}, "sin"); }
Tensor cos(const Tensor& x) { return map(x, math::Cos{}, "cos"); }
Tensor tanh(const Tensor& x) { return map(x, math::Tanh{}, "tanh"); }
Tensor sigmoid(const Tensor& x) { return map(x, math::Sigmoid{}, "sigmoid"); }
Tensor log_sigmoid(const Tensor& x) { return map(x, math::LogSigmoid{}, "log_sigmoid"); }
Tensor softplus(const Tensor& x) { return map(x, math::Softplus{}, "softplus"); }
Tensor relu(const Tensor& x) { return map(x, math::Relu{}, "relu"); }
Tensor elu(const Tensor& x) { return map(x, math::Elu{}, "elu"); }
Tensor silu(const Tensor& x) { return map(x, math::Silu{}, "silu"); }
Tensor gelu(const Tensor& x) { return map(x, math::Gelu{}, "gelu"); }
Tensor gelu_tanh(const Tensor& x) { return map(x, math::GeluTanh{}, "gelu_tanh"); }
Tensor softcap(const Tensor& x, double cap) {
  WEFT_CHECK(cap > 0, str("softcap: cap is ", cap, ", must be positive"), "leave softcap out for no cap");
  return map(x, math::Softcap{cap}, "softcap");
}

Tensor abs_backward(const Tensor& dy, const Tensor& x) { return map_backward(dy, x, math::Abs{}, "abs_backward"); }
Tensor square_backward(const Tensor& dy, const Tensor& x) {
  return map_backward(dy, x, math::Square{}, "square_backward");
}
Tensor sqrt_backward(const Tensor& dy, const Tensor& y) { return map_backward(dy, y, math::Sqrt{}, "sqrt_backward"); }
Tensor rsqrt_backward(const Tensor& dy, const Tensor& y) {
  return map_backward(dy, y, math::Rsqrt{}, "rsqrt_backward");
}
Tensor exp_backward(const Tensor& dy, const Tensor& y) { return map_backward(dy, y, math::Exp{}, "exp_backward"); }
Tensor log_backward(const Tensor& dy, const Tensor& x) { return map_backward(dy, x, math::Log{}, "log_backward"); }
Tensor sin_backward(const Tensor& dy, const Tensor& x) { return map_backward(dy, x, math::Sin{}, "sin_backward"); }
Tensor cos_backward(const Tensor& dy, const Tensor& x) { return map_backward(dy, x, math::Cos{}, "cos_backward"); }
Tensor tanh_backward(const Tensor& dy, const Tensor& y) { return map_backward(dy, y, math::Tanh{}, "tanh_backward"); }
Tensor sigmoid_backward(const Tensor& dy, const Tensor& y) {
  return map_backward(dy, y, math::Sigmoid{}, "sigmoid_backward");
}
Tensor log_sigmoid_backward(const Tensor& dy, const Tensor& x) {
  return map_backward(dy, x, math::LogSigmoid{}, "log_sigmoid_backward");
}
Tensor softplus_backward(const Tensor& dy, const Tensor& x) {
  return map_backward(dy, x, math::Softplus{}, "softplus_backward");
}
Tensor relu_backward(const Tensor& dy, const Tensor& y) { return map_backward(dy, y, math::Relu{}, "relu_backward"); }
Tensor elu_backward(const Tensor& dy, const Tensor& y) { return map_backward(dy, y, math::Elu{}, "elu_backward"); }
Tensor silu_backward(const Tensor& dy, const Tensor& x) { return map_backward(dy, x, math::Silu{}, "silu_backward"); }
Tensor gelu_backward(const Tensor& dy, const Tensor& x) { return map_backward(dy, x, math::Gelu{}, "gelu_backward"); }
Tensor gelu_tanh_backward(const Tensor& dy, const Tensor& x) {
  return map_backward(dy, x, math::GeluTanh{}, "gelu_tanh_backward");
}
Tensor softcap_backward(const Tensor& dy, const Tensor& y, double cap) {
  return map_backward(dy, y, math::Softcap{cap}, "softcap_backward");
}

Tensor swiglu(const Tensor& gate, const Tensor& up) {
  return zip_alike(gate, up, math::Swiglu{}, "swiglu", "gate", "up");
}
std::pair<Tensor, Tensor> swiglu_backward(const Tensor& dy, const Tensor& gate, const Tensor& up) {
  check_floating(dy, "swiglu_backward");
  check_pair(dy, gate, "swiglu_backward", "dy", "gate");
  check_pair(dy, up, "swiglu_backward", "dy", "up");
  WEFT_CHECK(dy.shape() == gate.shape() && dy.shape() == up.shape(),
             str("swiglu_backward: dy is ", dy, ", gate is ", gate, ", up is ", up), "all three need the same shape");
  std::pair<Tensor, Tensor> grads{Tensor::empty(dy.shape(), dy.dtype(), dy.device()),
                                  Tensor::empty(dy.shape(), dy.dtype(), dy.device())};
  if constexpr (kCuda) {
    if (dy.is_cuda()) return cuda::swiglu_backward(grads.first, grads.second, dy, gate, up), grads;
  }
  cpu::swiglu_backward(grads.first, grads.second, dy, gate, up);
  return grads;
}

// Losses of a prediction and its target.

Tensor squared_error(const Tensor& x, const Tensor& target) {
  return zip_alike(x, target, math::SquaredError{}, "squared_error", "x", "the target");
}
Tensor bce_with_logits(const Tensor& logits, const Tensor& target) {
  return zip_alike(logits, target, math::BceWithLogits{}, "bce_with_logits", "logits", "the target");
}
Tensor bce_with_logits_backward(const Tensor& dlosses, const Tensor& logits, const Tensor& target) {
  return mul(dlosses,
             zip_alike(logits, target, math::BceWithLogitsSlope{}, "bce_with_logits_backward", "logits", "the target"));
}

}  // namespace weft::ops
