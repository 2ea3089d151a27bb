// Conjugate gradients by rows. With A x = b and any function of x,
//   dx = A^-1 (db - dA x),
// so that what flows back into b - A x, with x held fixed, is A^-1 dx: A is symmetric.
#include "weft/autograd/solve.h"

#include "weft/autograd/compare.h"
#include "weft/autograd/functions.h"
#include "weft/autograd/record.h"
#include "weft/core/dry_run.h"
#include "weft/core/error.h"

namespace weft {

namespace {

Var dot(const Var& a, const Var& b) { return sum(a * b, -1, true); }

// Whether a row is to go on. A row that is not finite would compare as if it were done.
bool any_above(const Var& size, const Var& enough) {
  Var rows = reshape(size - enough, {-1});
  const Var both[] = {max(rows, 0, true), sum(rows * 0.0, 0, true)};
  const std::vector<double> numbers = cast(concatenate(both, 0), kF64).value().cpu().to_vector<double>();
  WEFT_CHECK(
      numbers[1] == 0, str("conjugate_gradients: the residual of a row is not finite"),
      "divide A and b of each row by one number, so that A's squares stay in range, and look for inf or nan in them");
  return numbers[0] > 0;
}

}  // namespace

Tensor conjugate_gradients(const Var& b, const SymmetricProduct& product) {
  WEFT_CHECK(b.dtype() == kF32 || b.dtype() == kF64, str("conjugate_gradients: the right side is ", b.value()),
             "cast it to f32 or f64");
  NoGrad no_grad;
  const double small = b.dtype() == kF64 ? 1e-15 : 1e-7;
  const int64_t most = 10 * b.size(-1) + 50;
  Var x = Tensor::zeros(b.shape(), b.dtype(), b.device()), r = b.detach(), p = r, size = dot(r, r);
  const Var enough = size * (small * small);
  if (b.value().num_elements() == 0) return x.value();
  for (int64_t step = 0;; ++step) {
    const Tensor goes_on = greater(size, enough);
    if (is_dry_run() ? step > 0 : !any_above(size, enough) || step == most) break;
    Var of_p = product(p), curvature = dot(p, of_p);
    Var length = where(goes_on, size / where(goes_on, curvature, 1.0), 0.0);
    x = x + length * p;
    r = r - length * of_p;
    Var next = dot(r, r);
    p = r + p * where(goes_on, next / where(goes_on, size, 1.0), 0.0);
    size = where(goes_on, next, size);
  }
  return x.value();
}

Var implicit_solution(const Tensor& x, const Var& residual, SymmetricProduct product) {
  WEFT_CHECK(x.shape() == residual.shape() && x.dtype() == residual.dtype(),
             str("implicit_solution: x is ", x, ", its residual ", residual.value()),
             "give b - A x, of the shape of x");
  return record("implicit_solution", x, {residual}, [product = std::move(product)](const Tensor& dx, Wants) {
    return Grads{conjugate_gradients(dx, product)};
  });
}

}  // namespace weft
