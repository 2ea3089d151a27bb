// Comparisons, logic and choices on values. A comparison has no gradient: it gives a Tensor of bool. A Tensor passes as a Var.
// Shapes, dtypes and errors are said in weft/ops/elementwise.h.
#pragma once

#include "weft/autograd/var.h"

namespace weft {

Tensor equal(const Var& a, const Var& b);
Tensor not_equal(const Var& a, const Var& b);
Tensor less(const Var& a, const Var& b);
Tensor less_equal(const Var& a, const Var& b);
Tensor greater(const Var& a, const Var& b);
Tensor greater_equal(const Var& a, const Var& b);
Tensor equal(const Var& x, double number);
Tensor not_equal(const Var& x, double number);
Tensor less(const Var& x, double number);
Tensor less_equal(const Var& x, double number);
Tensor greater(const Var& x, double number);
Tensor greater_equal(const Var& x, double number);
Tensor logical_and(const Tensor& a, const Tensor& b);
Tensor logical_or(const Tensor& a, const Tensor& b);
Tensor logical_xor(const Tensor& a, const Tensor& b);
Tensor logical_not(const Tensor& x);

// The first where the mask is true, else the second. The side that was not chosen gets the gradient 0; if it came from something with
// an infinite slope (sqrt at 0), that makes 0 * infinity = NaN, as in PyTorch: change the input of that function instead.
Var where(const Tensor& mask, const Var& a, const Var& b);
Var where(const Tensor& mask, const Var& x, double number);
Var where(const Tensor& mask, double number, const Var& x);
Var masked_fill(const Var& x, const Tensor& mask, double number);  // the number where the mask is true

Tensor argmax(const Var& x, int64_t dim);  // i64; the lowest index wins a tie, NaN before all numbers
Tensor argmin(const Var& x, int64_t dim);

}  // namespace weft
