#include "weft/ops/reduce.h"

#include "ops/cpu/reduce.h"
#include "ops/cuda/reduce.h"
#include "src/core/cuda_build.h"
#include "weft/core/error.h"
#include "weft/ops/elementwise.h"

namespace weft::ops {

namespace {

using cpu::Reduction;

void check_floating(const Tensor& x, std::string_view op) {
  WEFT_CHECK(x.defined() && is_floating(x.dtype()), str(op, ": x is ", x), "use a tensor of dtype f32, bf16 or f64");
}

unsigned bits_of(const Tensor& x, std::span<const int> dims, std::string_view op) {
  unsigned bits = 0;
  for (int dim : dims) {
    unsigned bit = 1u << wrap_dim(dim, x.num_dims(), op);
    WEFT_CHECK(!(bits & bit), str(op, ": dimension ", dim, " twice for ", x), "name each dimension once");
    bits |= bit;
  }
  return bits;
}

// Shape of the result, and the number of elements that go into each of its elements.
Shape reduced_shape(const Tensor& x, unsigned bits, bool keep_dims, int64_t& count) {
  Shape shape;
  count = 1;
  for (int d = 0; d < x.num_dims(); ++d) {
    if (!(bits >> d & 1u)) {
      shape.push_back(x.shape()[d]);
      continue;
    }
    count *= x.shape()[d];
    if (keep_dims) shape.push_back(1);
  }
  return shape;
}

void run(Tensor& out, const Tensor& x, unsigned bits, Reduction kind, double scale) {
  if constexpr (kCuda) {
    if (x.is_cuda()) return cuda::reduce(out, x, bits, kind, scale);
  }
  cpu::reduce(out, x, bits, kind, scale);
}

Tensor add_up(const Tensor& x, unsigned bits, bool keep_dims, bool is_mean) {
  int64_t count;
  Shape shape = reduced_shape(x, bits, keep_dims, count);
  Tensor out = Tensor::empty(shape, x.dtype(), x.device());
  double scale = is_mean ? 1 / static_cast<double>(count) : 1;
  if (x.num_elements() > 0) run(out, x, bits, Reduction::sum, scale);
  else fill_(out, 0 * scale);  // the mean of nothing is NaN
  return out;
}

}  // namespace

Tensor sum(const Tensor& x, std::span<const int> dims, bool keep_dims) {
  check_floating(x, "sum");
  return add_up(x, bits_of(x, dims, "sum"), keep_dims, false);
}
Tensor mean(const Tensor& x, std::span<const int> dims, bool keep_dims) {
  check_floating(x, "mean");
  return add_up(x, bits_of(x, dims, "mean"), keep_dims, true);
}
Tensor sum(const Tensor& x, int64_t dim, bool keep_dims) {
  check_floating(x, "sum");
  return add_up(x, 1u << wrap_dim(dim, x.num_dims(), "sum"), keep_dims, false);
}
Tensor mean(const Tensor& x, int64_t dim, bool keep_dims) {
  check_floating(x, "mean");
  return add_up(x, 1u << wrap_dim(dim, x.num_dims(), "mean"), keep_dims, true);
}
Tensor sum_all(const Tensor& x) {
  check_floating(x, "sum_all");
  return add_up(x, (1u << x.num_dims()) - 1, false, false);
}

Tensor max(const Tensor& x, int64_t dim, bool keep_dims) {
  check_floating(x, "max");
  int d = wrap_dim(dim, x.num_dims(), "max");
  WEFT_CHECK(x.shape()[d] > 0, str("max: dimension ", dim, " of ", x, " is empty"),
             "there is no largest of no elements");
  int64_t count;
  Tensor out = Tensor::empty(reduced_shape(x, 1u << d, keep_dims, count), x.dtype(), x.device());
  if (x.num_elements() > 0) run(out, x, 1u << d, Reduction::max, 1);
  return out;
}

Tensor argmax(const Tensor& x, int64_t dim) {
  check_floating(x, "argmax");
  int d = wrap_dim(dim, x.num_dims(), "argmax");
  WEFT_CHECK(x.shape()[d] > 0, str("argmax: dimension ", dim, " of ", x, " is empty"),
             "there is no largest of no elements");
  int64_t count;
  Tensor out = Tensor::empty(reduced_shape(x, 1u << d, false, count), kI64, x.device());
  if (x.num_elements() == 0) return out;
  if constexpr (kCuda) {
    if (x.is_cuda()) return cuda::argmax(out, x, d), out;
  }
  cpu::argmax(out, x, d);
  return out;
}

namespace {

// Checks under its own name what max() and argmax() of the negated x would report under theirs.
Tensor negated(const Tensor& x, int64_t dim, std::string_view op) {
  check_floating(x, op);
  WEFT_CHECK(x.shape()[wrap_dim(dim, x.num_dims(), op)] > 0, str(op, ": dimension ", dim, " of ", x, " is empty"),
             "there is no smallest of no elements");
  return neg(x);
}

}  // namespace

Tensor min(const Tensor& x, int64_t dim, bool keep_dims) { return neg(max(negated(x, dim, "min"), dim, keep_dims)); }
Tensor argmin(const Tensor& x, int64_t dim) { return argmax(negated(x, dim, "argmin"), dim); }

double sum_of_squares(const Tensor& x) { return sum_of_squares(std::span(&x, 1)); }

double sum_of_squares(std::span<const Tensor> all) {
  for (const Tensor& x : all) {
    check_floating(x, "sum_of_squares");
    WEFT_CHECK(x.device() == all[0].device(), str("sum_of_squares: tensors ", all[0], " and ", x),
               "give tensors of one device");
  }
  if constexpr (kCuda) {
    if (!all.empty() && all[0].is_cuda()) return cuda::sum_of_squares(all);
  }
  double sum = 0;
  for (const Tensor& x : all) sum += cpu::sum_of_squares(contiguous(x));
  return sum;
}

bool all_finite(const Tensor& x) {
  check_floating(x, "all_finite");
  if constexpr (kCuda) {
    if (x.is_cuda()) return cuda::all_finite(x);
  }
  return cpu::all_finite(contiguous(x));
}

Tensor cumsum(const Tensor& x, int64_t dim, CumsumOptions options) {
  check_floating(x, "cumsum");
  int d = wrap_dim(dim, x.num_dims(), "cumsum");
  WEFT_CHECK(options.window >= 0 && (options.window == 0 || !options.exclusive),
             str("cumsum: a window of ", options.window, options.exclusive ? " beside exclusive" : ""),
             "a window is 0 (all) or positive, and counts the element itself");
  if (options.segments.defined()) {
    const Tensor& segments = options.segments;
    auto last = x.shape().begin() + d + 1;
    WEFT_CHECK(segments.dtype() == kI32 && segments.device() == x.device() &&
                   std::equal(x.shape().begin(), last, segments.shape().begin(), segments.shape().end()),
               str("cumsum: segments are ", segments, " for dimension ", d, " of ", x),
               "give i32 of x's shape up to and with that dimension, on its device");
    options.segments = contiguous(segments);
  }
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  if (x.num_elements() == 0) return y;
  if (options.window >= x.size(d)) options.window = 0;
  if constexpr (kCuda) {
    if (x.is_cuda()) return (options.window > 0 ? cuda::windowed_sum : cuda::cumsum)(y, x, d, options), y;
  }
  (options.window > 0 ? cpu::windowed_sum : cpu::cumsum)(y, x, d, options);
  return y;
}

}  // namespace weft::ops
