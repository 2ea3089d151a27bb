// Elementwise functions: value and gradient side by side.
#include "weft/ops/elementwise.h"

#include <limits>

#include "weft/autograd/functions.h"
#include "weft/autograd/record.h"
#include "weft/core/error.h"
#include "weft/core/rng.h"

namespace weft {

namespace {

// A function of one tensor whose backward keeps its input (or its output).
using Unary = Tensor (*)(const Tensor&);
using UnaryBackward = Tensor (*)(const Tensor& dy, const Tensor& kept);

Var from_input(const char* op, const Var& x, Unary f, UnaryBackward df) {
  return record(op, f(x.value()), {x},
                [x = Saved(x.value()), df](const Tensor& dy, Wants) { return Grads{df(dy, x)}; });
}
Var from_output(const char* op, const Var& x, Unary f, UnaryBackward df) {
  Tensor y = f(x.value());
  return record(op, y, {x}, [y = Saved(y), df](const Tensor& dy, Wants) { return Grads{df(dy, y)}; });
}

}  // namespace

Var add(const Var& a, const Var& b) {
  return record("add", ops::add(a.value(), b.value()), {a, b},
                [sa = a.shape(), sb = b.shape()](const Tensor& dy, Wants wants) {
                  return Grads{wants[0] ? ops::sum_to(dy, sa) : Tensor(), wants[1] ? ops::sum_to(dy, sb) : Tensor()};
                });
}

Var sub(const Var& a, const Var& b) {
  return record(
      "sub", ops::sub(a.value(), b.value()), {a, b}, [sa = a.shape(), sb = b.shape()](const Tensor& dy, Wants wants) {
        return Grads{wants[0] ? ops::sum_to(dy, sa) : Tensor(), wants[1] ? ops::neg(ops::sum_to(dy, sb)) : Tensor()};
      });
}

Var mul(const Var& a, const Var& b) {
  return record("mul", ops::mul(a.value(), b.value()), {a, b},
                [a = Saved(a.value()), b = Saved(b.value())](const Tensor& dy, Wants wants) {
                  return Grads{wants[0] ? ops::sum_to(ops::mul(dy, b), a.get().shape()) : Tensor(),
                               wants[1] ? ops::sum_to(ops::mul(dy, a), b.get().shape()) : Tensor()};
                });
}

// y = a / b: da = dy / b, db = -dy y / b.
Var div(const Var& a, const Var& b) {
  Tensor y = ops::div(a.value(), b.value());
  return record("div", y, {a, b}, [y = Saved(y), b = Saved(b.value()), sa = a.shape()](const Tensor& dy, Wants wants) {
    Tensor da = ops::div(dy, b);
    return Grads{wants[0] ? ops::sum_to(da, sa) : Tensor(),
                 wants[1] ? ops::neg(ops::sum_to(ops::mul(da, y), b.get().shape())) : Tensor()};
  });
}

// Gradient to the chosen one, half to either at a tie, to both where one is NaN: as in PyTorch.
static Var choose(const char* op, const Var& a, const Var& b, bool is_max) {
  Tensor y = (is_max ? ops::maximum : ops::minimum)(a.value(), b.value());
  return record(op, y, {a, b}, [is_max, a = Saved(a.value()), b = Saved(b.value())](const Tensor& dy, Wants wants) {
    auto beats = [is_max](const Tensor& x, const Tensor& z) { return is_max ? ops::less(z, x) : ops::less(x, z); };
    Tensor shared = ops::where(ops::equal(a, b), ops::scale(dy, 0.5), dy);
    auto unless = [&](const Tensor& lost, const Shape& shape) {
      return ops::sum_to(ops::where(lost, 0, shared), shape);
    };
    return Grads{wants[0] ? unless(beats(b, a), a.get().shape()) : Tensor(),
                 wants[1] ? unless(beats(a, b), b.get().shape()) : Tensor()};
  });
}
Var maximum(const Var& a, const Var& b) { return choose("maximum", a, b, true); }
Var minimum(const Var& a, const Var& b) { return choose("minimum", a, b, false); }

Var clamp(const Var& x, double low, double high) {
  return record("clamp", ops::clamp(x.value(), low, high), {x},
                [x = Saved(x.value()), low, high](const Tensor& dy, Wants) {
                  return Grads{ops::clamp_backward(dy, x, low, high)};
                });
}
Var clamp_min(const Var& x, double low) { return clamp(x, low, std::numeric_limits<double>::infinity()); }
Var clamp_max(const Var& x, double high) { return clamp(x, -std::numeric_limits<double>::infinity(), high); }

Var pow(const Var& x, double exponent) {
  return record("pow", ops::pow(x.value(), exponent), {x}, [x = Saved(x.value()), exponent](const Tensor& dy, Wants) {
    return Grads{ops::pow_backward(dy, x, exponent)};
  });
}
Var pow(const Var& a, const Var& b) {
  return record("pow", ops::pow(a.value(), b.value()), {a, b},
                [a = Saved(a.value()), b = Saved(b.value())](const Tensor& dy, Wants wants) {
                  auto [da, db] = ops::pow_backward(dy, a, b, wants[0], wants[1]);
                  return Grads{da, db};
                });
}

Var divide_number(double number, const Var& x) { return div(Tensor::full({}, number, x.dtype(), x.device()), x); }

Var scale(const Var& x, double factor) {
  return record("scale", ops::scale(x.value(), factor), {x},
                [factor](const Tensor& dy, Wants) { return Grads{ops::scale(dy, factor)}; });
}

Var add_scalar(const Var& x, double number) {
  return record("add_scalar", ops::add_scalar(x.value(), number), {x},
                [](const Tensor& dy, Wants) { return Grads{Tensor(dy)}; });
}

Var neg(const Var& x) { return scale(x, -1); }
Var abs(const Var& x) { return from_input("abs", x, ops::abs, ops::abs_backward); }
Var square(const Var& x) { return from_input("square", x, ops::square, ops::square_backward); }
Var sqrt(const Var& x) { return from_output("sqrt", x, ops::sqrt, ops::sqrt_backward); }
Var rsqrt(const Var& x) { return from_output("rsqrt", x, ops::rsqrt, ops::rsqrt_backward); }
Var exp(const Var& x) { return from_output("exp", x, ops::exp, ops::exp_backward); }
Var log(const Var& x) { return from_input("log", x, ops::log, ops::log_backward); }
Var sin(const Var& x) { return from_input("sin", x, ops::sin, ops::sin_backward); }
Var cos(const Var& x) { return from_input("cos", x, ops::cos, ops::cos_backward); }
Var tanh(const Var& x) { return from_output("tanh", x, ops::tanh, ops::tanh_backward); }
Var sigmoid(const Var& x) { return from_output("sigmoid", x, ops::sigmoid, ops::sigmoid_backward); }
Var log_sigmoid(const Var& x) { return from_input("log_sigmoid", x, ops::log_sigmoid, ops::log_sigmoid_backward); }
Var softplus(const Var& x) { return from_input("softplus", x, ops::softplus, ops::softplus_backward); }
Var relu(const Var& x) { return from_output("relu", x, ops::relu, ops::relu_backward); }
Var elu(const Var& x) { return from_output("elu", x, ops::elu, ops::elu_backward); }
Var silu(const Var& x) { return from_input("silu", x, ops::silu, ops::silu_backward); }
Var gelu(const Var& x) { return from_input("gelu", x, ops::gelu, ops::gelu_backward); }
Var gelu_tanh(const Var& x) { return from_input("gelu_tanh", x, ops::gelu_tanh, ops::gelu_tanh_backward); }

Var softcap(const Var& x, double cap) {
  Tensor y = ops::softcap(x.value(), cap);
  return record("softcap", y, {x},
                [y = Saved(y), cap](const Tensor& dy, Wants) { return Grads{ops::softcap_backward(dy, y, cap)}; });
}

Var swiglu(const Var& gate, const Var& up) {
  return record("swiglu", ops::swiglu(gate.value(), up.value()), {gate, up},
                [gate = Saved(gate.value()), up = Saved(up.value())](const Tensor& dy, Wants) {
                  auto [dgate, dup] = ops::swiglu_backward(dy, gate, up);
                  return Grads{dgate, dup};
                });
}

Var cast(const Var& x, DType dtype) {
  if (x.dtype() == dtype) return x;
  return record("cast", ops::cast(x.value(), dtype), {x},
                [from = x.dtype()](const Tensor& dy, Wants) { return Grads{ops::cast(dy, from)}; });
}

Var to(const Var& x, Device device) {
  Device home = x.value().device();
  if (home == device) return x;
  return record("to", ops::to(x.value(), device), {x},
                [home](const Tensor& dy, Wants) { return Grads{ops::to(dy, home)}; });
}

void assign(Tensor& to, const Tensor& from) {
  WEFT_CHECK(to.shape() == from.shape(), str("assign: ", from, " into ", to), "keep the shape");
  ops::copy_(to, from);
}

Var dropout(const Var& x_BTD, const Tensor& positions_BT, double p, Rng rng, int64_t first_row) {
  if (p == 0) return x_BTD;
  return record("dropout", ops::dropout(x_BTD.value(), positions_BT, p, rng, first_row), {x_BTD},
                [positions = Saved(positions_BT), p, rng, first_row](const Tensor& dy, Wants) {
                  return Grads{ops::dropout(dy, positions, p, rng, first_row)};
                });
}

}  // namespace weft
