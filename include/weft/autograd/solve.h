// Linear systems A x = b, one per row, whose matrices are known as products only: conjugate gradients, and the gradient of what they find.
#pragma once

#include <functional>

#include "weft/autograd/var.h"

namespace weft {

// p [..., K] -> A p [..., K], each row with its own A, which is symmetric and positive definite.
using SymmetricProduct = std::function<Var(const Var& p)>;

// x with A x = b by conjugate gradients from x = 0 (Hestenes and Stiefel, 1952), without gradient; f32 or f64. Rows do not touch each other:
// each stops by itself, when its residual is small against b to rounding, or after 10 K + 50 products.
Tensor conjugate_gradients(const Var& b, const SymmetricProduct& product);

// x, which solves A x = b, with its gradient. `residual`: b - A x, made of whatever A and b depend on, with x as a constant. It is 0 to
// rounding, and A^-1 dx is its gradient: backward solves with A once more.
Var implicit_solution(const Tensor& x, const Var& residual, SymmetricProduct product);

}  // namespace weft
