// A differentiable function of one's own, checked against differences in float64:  own_function
#include <cstdio>

#include "weft/weft.h"

// y = x^3. Forward works on tensors; the closure holds what backward needs and returns one gradient per input.
weft::Var cube(const weft::Var& x) {
  weft::Tensor y = weft::ops::mul(weft::ops::square(x.value()), x.value());
  return weft::record("cube", y, {x}, [x = weft::Saved(x.value())](const weft::Tensor& dy, weft::Wants) {
    return weft::Grads{weft::ops::scale(weft::ops::mul(dy, weft::ops::square(x)), 3)};
  });
}

int main() {
  auto points = weft::Tensor::from<double>({-2, -0.5, 0, 1.5}, {4});
  auto check = weft::check_gradients([](std::span<const weft::Var> in) { return cube(in[0]); }, {&points, 1});
  std::printf("%s: %lld gradients, worst error %.2g of the tolerance\n", check.passed ? "passed" : check.report.c_str(),
              static_cast<long long>(check.num_checked), check.worst_error);
  return check.passed ? 0 : 1;
}
