// Comparisons, logic and choices.
#include "weft/autograd/compare.h"

#include "weft/autograd/record.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/reduce.h"

namespace weft {

Tensor equal(const Var& a, const Var& b) { return ops::equal(a.value(), b.value()); }
Tensor not_equal(const Var& a, const Var& b) { return ops::not_equal(a.value(), b.value()); }
Tensor less(const Var& a, const Var& b) { return ops::less(a.value(), b.value()); }
Tensor less_equal(const Var& a, const Var& b) { return ops::less_equal(a.value(), b.value()); }
Tensor greater(const Var& a, const Var& b) { return ops::greater(a.value(), b.value()); }
Tensor greater_equal(const Var& a, const Var& b) { return ops::greater_equal(a.value(), b.value()); }
Tensor equal(const Var& x, double number) { return ops::equal(x.value(), number); }
Tensor not_equal(const Var& x, double number) { return ops::not_equal(x.value(), number); }
Tensor less(const Var& x, double number) { return ops::less(x.value(), number); }
Tensor less_equal(const Var& x, double number) { return ops::less_equal(x.value(), number); }
Tensor greater(const Var& x, double number) { return ops::greater(x.value(), number); }
Tensor greater_equal(const Var& x, double number) { return ops::greater_equal(x.value(), number); }

Tensor logical_and(const Tensor& a, const Tensor& b) { return ops::logical_and(a, b); }
Tensor logical_or(const Tensor& a, const Tensor& b) { return ops::logical_or(a, b); }
Tensor logical_xor(const Tensor& a, const Tensor& b) { return ops::logical_xor(a, b); }
Tensor logical_not(const Tensor& x) { return ops::logical_not(x); }

Var where(const Tensor& mask, const Var& a, const Var& b) {
  return record("where", ops::where(mask, a.value(), b.value()), {a, b},
                [mask = Saved(mask), sa = a.shape(), sb = b.shape()](const Tensor& dy, Wants wants) {
                  return Grads{wants[0] ? ops::sum_to(ops::where(mask, dy, 0), sa) : Tensor(),
                               wants[1] ? ops::sum_to(ops::where(mask, 0, dy), sb) : Tensor()};
                });
}
Var where(const Tensor& mask, const Var& x, double number) {
  return record("where", ops::where(mask, x.value(), number), {x},
                [mask = Saved(mask), shape = x.shape()](const Tensor& dy, Wants) {
                  return Grads{ops::sum_to(ops::where(mask, dy, 0), shape)};
                });
}
Var where(const Tensor& mask, double number, const Var& x) {
  return record("where", ops::where(mask, number, x.value()), {x},
                [mask = Saved(mask), shape = x.shape()](const Tensor& dy, Wants) {
                  return Grads{ops::sum_to(ops::where(mask, 0, dy), shape)};
                });
}
Var masked_fill(const Var& x, const Tensor& mask, double number) { return where(mask, number, x); }

Tensor argmax(const Var& x, int64_t dim) { return ops::argmax(x.value(), dim); }
Tensor argmin(const Var& x, int64_t dim) { return ops::argmin(x.value(), dim); }

}  // namespace weft
