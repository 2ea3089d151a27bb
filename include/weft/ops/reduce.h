// Reductions over f32, bf16 and f64. Sums are f32 (f64 for f64), in an order that does not depend on the number of threads.
#pragma once

#include <span>
#include <utility>

#include "weft/core/tensor.h"

namespace weft::ops {

Tensor sum(const Tensor& x, std::span<const int> dims, bool keep_dims = false);
Tensor mean(const Tensor& x, std::span<const int> dims, bool keep_dims = false);
Tensor sum(const Tensor& x, int64_t dim, bool keep_dims = false);
Tensor mean(const Tensor& x, int64_t dim, bool keep_dims = false);
Tensor sum_all(const Tensor& x);  // scalar, shape []
Tensor max(const Tensor& x, int64_t dim, bool keep_dims = false);
Tensor min(const Tensor& x, int64_t dim, bool keep_dims = false);  // min and argmin work on a negated copy of x
Tensor argmax(const Tensor& x, int64_t dim);  // i64; the lowest index wins a tie, NaN before all numbers
Tensor argmin(const Tensor& x, int64_t dim);
double sum_of_squares(const Tensor& x);              // accumulated in f64
double sum_of_squares(std::span<const Tensor> all);  // of all of one device, waiting for it once
bool all_finite(const Tensor& x);

// Running sum along a dimension. `reverse` sums from the end, `exclusive` leaves the element itself out. With `segments` (i32, of x's shape
// up to and including that dimension) the sum restarts wherever two neighbours differ. With `window` > 0 it is the sum of the last `window`
// elements, this one included. Only those are added, in f64, and nothing is subtracted: large or infinite elements before the window have
// no influence. Error for `window` together with `exclusive`.
struct CumsumOptions {
  bool reverse = false;
  bool exclusive = false;
  Tensor segments = {};
  int64_t window = 0;
};
Tensor cumsum(const Tensor& x, int64_t dim, CumsumOptions options = {});  // backward: the same with reverse flipped

}  // namespace weft::ops
