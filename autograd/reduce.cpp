// Reductions and running sums.
#include "weft/ops/reduce.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "weft/autograd/functions.h"
#include "weft/autograd/record.h"
#include "weft/core/error.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/select.h"

namespace weft {

namespace {

Shape kept_shape(const Shape& shape, std::span<const int> dims, std::string_view op) {
  Shape kept = shape;
  for (int dim : dims) kept[wrap_dim(dim, shape.num_dims(), op)] = 1;
  return kept;
}

// dy of a reduction, spread over what was reduced (a view with stride 0).
Tensor spread(const Tensor& dy, const Shape& kept, const Shape& shape) {
  return ops::contiguous(dy).reshape(kept).expand(shape);
}

}  // namespace

Var sum(const Var& x, std::span<const int> dims, bool keep_dims) {
  return record("sum", ops::sum(x.value(), dims, keep_dims), {x},
                [shape = x.shape(), kept = kept_shape(x.shape(), dims, "sum")](const Tensor& dy, Wants) {
                  return Grads{spread(dy, kept, shape)};
                });
}

Var mean(const Var& x, std::span<const int> dims, bool keep_dims) {
  Shape kept = kept_shape(x.shape(), dims, "mean");
  double count =
      static_cast<double>(x.value().num_elements()) / static_cast<double>(std::max<int64_t>(kept.num_elements(), 1));
  return record("mean", ops::mean(x.value(), dims, keep_dims), {x},
                [shape = x.shape(), kept, count](const Tensor& dy, Wants) {
                  return Grads{spread(ops::scale(dy, 1 / count), kept, shape)};
                });
}

Var sum(const Var& x, int64_t dim, bool keep_dims) {
  int d = wrap_dim(dim, x.num_dims(), "sum");
  return sum(x, std::span<const int>(&d, 1), keep_dims);
}

Var mean(const Var& x, int64_t dim, bool keep_dims) {
  int d = wrap_dim(dim, x.num_dims(), "mean");
  return mean(x, std::span<const int>(&d, 1), keep_dims);
}

Var sum_all(const Var& x) {
  return record("sum_all", ops::sum_all(x.value()), {x},
                [shape = x.shape()](const Tensor& dy, Wants) { return Grads{dy.expand(shape)}; });
}

Var mean_all(const Var& x) {
  std::array<int, kMaxDims> dims{};
  std::iota(dims.begin(), dims.end(), 0);
  return mean(x, std::span<const int>(dims.data(), static_cast<size_t>(x.num_dims())));
}

// Gradient to the index that argmax or argmin names.
static Var extreme(const char* op, const Var& x, int64_t dim, bool keep_dims, bool is_max) {
  int d = wrap_dim(dim, x.num_dims(), op);
  Tensor y = (is_max ? ops::max : ops::min)(x.value(), d, keep_dims);
  Tensor at = (is_max ? ops::argmax : ops::argmin)(x.value(), d).unsqueeze(d);
  return record(op, y, {x}, [at = Saved(at), shape = x.shape(), d, keep_dims](const Tensor& dy, Wants) {
    return Grads{ops::scatter_add(shape, d, at, keep_dims ? dy : dy.unsqueeze(d))};
  });
}
Var max(const Var& x, int64_t dim, bool keep_dims) { return extreme("max", x, dim, keep_dims, true); }
Var min(const Var& x, int64_t dim, bool keep_dims) { return extreme("min", x, dim, keep_dims, false); }

Var variance(const Var& x, int64_t dim, double correction, bool keep_dims) {
  const int d = wrap_dim(dim, x.num_dims(), "variance");
  const auto n = static_cast<double>(x.size(d));
  WEFT_CHECK(correction >= 0 && correction < n,
             str("variance: correction is ", correction, " for dimension ", dim, " of ", x),
             "use at least 0 and less than there are elements, usually 0 or 1");
  return scale(sum(square(x - mean(x, d, true)), d, keep_dims), 1 / (n - correction));
}

// dx = dy x / y, and 0 where y is 0.
Var norm(const Var& x, int64_t dim, bool keep_dims) {
  const int d = wrap_dim(dim, x.num_dims(), "norm");
  Tensor y = ops::sqrt(ops::sum(ops::square(x.value()), d, true));
  return record("norm", keep_dims ? y : y.squeeze(d), {x},
                [x = Saved(x.value()), y = Saved(y), d, keep_dims](const Tensor& dy, Wants) {
                  Tensor slope = ops::where(ops::equal(y, 0), 0, ops::div(keep_dims ? dy : dy.unsqueeze(d), y));
                  return Grads{ops::mul(x, slope)};
                });
}

Var cumsum(const Var& x, int64_t dim, ops::CumsumOptions options) {
  return record("cumsum", ops::cumsum(x.value(), dim, options), {x},
                [dim, options, segments = Saved(options.segments)](const Tensor& dy, Wants) {
                  return Grads{ops::cumsum(dy, dim, {!options.reverse, options.exclusive, segments, options.window})};
                });
}

}  // namespace weft
