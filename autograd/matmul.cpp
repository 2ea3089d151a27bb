// Matrix products. With A' = op(a), B' = op(b): dA' = dy B'^T and dB' = A'^T dy; a transposed input takes the transpose of that,
// which is again one product.
#include "weft/ops/matmul.h"

#include "weft/autograd/functions.h"
#include "weft/autograd/record.h"
#include "weft/core/error.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/reduce.h"

namespace weft {

namespace {

Tensor rows_of(const Tensor& x) { return ops::contiguous(x).reshape({-1, x.size(-1)}); }

// grads[i] of a weight and grads[i + 1] of its bias.
void add_parameters(Grads& grads, size_t i, const Tensor& dy_rows, const Tensor& x, Wants wants) {
  if (wants[i]) {
    ops::LinearGrads both = ops::linear_backward(dy_rows, rows_of(x), wants[i + 1]);
    grads[i] = both.dweight, grads[i + 1] = both.dbias;
  } else if (wants[i + 1]) {
    grads[i + 1] = ops::sum(ops::cast(dy_rows, dy_rows.dtype() == kF64 ? kF64 : kF32), 0);
  }
}

}  // namespace

Var matmul(const Var& a, const Var& b, ops::MatmulOptions options) {
  bool ta = options.transpose_a, tb = options.transpose_b;
  return record("matmul", ops::matmul(a.value(), b.value(), options), {a, b},
                [a = Saved(a.value()), b = Saved(b.value()), ta, tb](const Tensor& dy_out, Wants wants) {
                  Tensor dy = ops::cast(dy_out, a.get().dtype());
                  Grads grads{Tensor(), Tensor()};
                  if (wants[0]) {
                    Tensor da = ta ? ops::matmul(b, dy, {.transpose_a = tb, .transpose_b = true})
                                   : ops::matmul(dy, b, {.transpose_b = !tb});
                    grads[0] = ops::sum_to(da, a.get().shape());
                  }
                  if (wants[1]) {
                    Tensor db = tb ? ops::matmul(dy, a, {.transpose_a = true, .transpose_b = ta})
                                   : ops::matmul(a, dy, {.transpose_a = !ta});
                    grads[1] = ops::sum_to(db, b.get().shape());
                  }
                  return grads;
                });
}

// y = x W^T + bias: dx = dy W, dW = dy^T x, dbias = sum of dy over tokens. dW is f32 also for bf16 inputs: weights collect in f32.
Var linear(const Var& x, const Var& weight, const Var& bias) {
  Tensor y = ops::linear(x.value(), weight.value(), bias.value());
  auto backward_of = [x = Saved(x.value()), w = Saved(weight.value())](const Tensor& dy, Wants wants) {
    Tensor dy_rows = rows_of(dy);
    Grads grads{Tensor(), Tensor(), Tensor()};
    if (wants[0]) grads[0] = ops::matmul(dy_rows, w).reshape(x.get().shape());
    add_parameters(grads, 1, dy_rows, x, wants);
    return grads;
  };
  return record("linear", y, {x, weight, bias}, std::move(backward_of));
}

// h = gelu(z), z = x U^T + b, y = h W^T + c: dz = (dy W) gelu'(z), where z or gelu'(z) is kept; parameters and x as in linear.
Var gelu_mlp(const Var& x, const Var& up, const Var& up_bias, const Var& down, const Var& down_bias) {
  ops::LinearGelu hidden = ops::linear_gelu(x.value(), up.value(), up_bias.value());
  Tensor y = ops::linear(hidden.y, down.value(), down_bias.value());
  auto backward_of = [x = Saved(x.value()), u = Saved(up.value()), z = Saved(hidden.inner), h = Saved(hidden.y),
                      w = Saved(down.value())](const Tensor& dy, Wants wants) {
    Tensor dy_rows = rows_of(dy);
    Grads grads{Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
    add_parameters(grads, 3, dy_rows, h, wants);
    if (!wants[0] && !wants[1] && !wants[2]) return grads;
    Tensor dz = ops::linear_gelu_backward(dy_rows, w, rows_of(z));
    if (wants[0]) grads[0] = ops::matmul(dz, u).reshape(x.get().shape());
    add_parameters(grads, 1, dz, x, wants);
    return grads;
  };
  return record("gelu_mlp", y, {x, up, up_bias, down, down_bias}, std::move(backward_of));
}

}  // namespace weft
