// Matrix products. With A' = op(a), B' = op(b): dA' = dy B'^T and dB' = A'^T dy; a transposed input takes the transpose of that,
// which is again one product.
#include "weft/ops/matmul.h"

#include "weft/autograd/functions.h"
#include "weft/autograd/record.h"
#include "weft/core/error.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/reduce.h"

namespace weft {

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
    int64_t out = w.get().size(0), in = w.get().size(1);
    DType sum_dtype = w.get().dtype() == kF64 ? kF64 : kF32;
    Tensor dy_rows = ops::contiguous(dy).reshape({-1, out});
    Grads grads{Tensor(), Tensor(), Tensor()};
    if (wants[0]) grads[0] = ops::matmul(dy_rows, w).reshape(x.get().shape());
    if (wants[1]) {
      Tensor x_rows = ops::contiguous(x).reshape({-1, in});
      grads[1] = ops::matmul(dy_rows, x_rows, {.transpose_a = true, .out = sum_dtype});
    }
    if (wants[2]) grads[2] = ops::sum(dy_rows.dtype() == sum_dtype ? dy_rows : ops::cast(dy_rows, sum_dtype), 0);
    return grads;
  };
  return record("linear", y, {x, weight, bias}, std::move(backward_of));
}

}  // namespace weft
