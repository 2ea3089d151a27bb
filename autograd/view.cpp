// Views and joins.
#include <vector>

#include "weft/autograd/functions.h"
#include "weft/autograd/record.h"
#include "weft/core/error.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/select.h"

namespace weft {

namespace {

bool can_view(const Tensor& x) { return x.is_contiguous(); }

// Zeros of `shape` with `dy` written where `part` takes it from: backward of views that drop elements.
template <class Part>
Tensor embed(const Shape& shape, const Tensor& dy, Part&& part) {
  Tensor dx = Tensor::zeros(shape, dy.dtype(), dy.device());
  Tensor view = part(dx);
  ops::copy_(view, dy);
  return dx;
}

}  // namespace

Var reshape(const Var& x, const Shape& shape) {
  Tensor y = (can_view(x.value()) ? x.value() : ops::contiguous(x.value())).reshape(shape);
  return record("reshape", y, {x},
                [from = x.shape()](const Tensor& dy, Wants) { return Grads{ops::contiguous(dy).reshape(from)}; });
}

Var permute(const Var& x, std::initializer_list<int> order) {
  std::array<int, kMaxDims> inverse{};
  int i = 0;
  for (int dim : order) inverse[static_cast<size_t>(wrap_dim(dim, x.num_dims(), "permute"))] = i++;
  return record("permute", x.value().permute(order), {x}, [inverse](const Tensor& dy, Wants) {
    Shape shape, strides;
    for (int d = 0; d < dy.num_dims(); ++d) {
      shape.push_back(dy.shape()[inverse[static_cast<size_t>(d)]]);
      strides.push_back(dy.strides()[inverse[static_cast<size_t>(d)]]);
    }
    return Grads{dy.as_strided(shape, strides, 0)};
  });
}

Var transpose(const Var& x, int64_t dim_a, int64_t dim_b) {
  return record("transpose", x.value().transpose(dim_a, dim_b), {x},
                [dim_a, dim_b](const Tensor& dy, Wants) { return Grads{dy.transpose(dim_a, dim_b)}; });
}

Var slice(const Var& x, int64_t dim, int64_t begin, int64_t end, int64_t step) {
  return record("slice", x.value().slice(dim, begin, end, step), {x}, [=, shape = x.shape()](const Tensor& dy, Wants) {
    return Grads{embed(shape, dy, [&](Tensor& dx) { return dx.slice(dim, begin, end, step); })};
  });
}

Var select(const Var& x, int64_t dim, int64_t index) {
  return record("select", x.value().select(dim, index), {x}, [=, shape = x.shape()](const Tensor& dy, Wants) {
    return Grads{embed(shape, dy, [&](Tensor& dx) { return dx.select(dim, index); })};
  });
}

Var expand(const Var& x, const Shape& shape) {
  return record("expand", x.value().expand(shape), {x},
                [from = x.shape()](const Tensor& dy, Wants) { return Grads{ops::sum_to(dy, from)}; });
}

Var unsqueeze(const Var& x, int64_t dim) {
  return record("unsqueeze", x.value().unsqueeze(dim), {x},
                [dim](const Tensor& dy, Wants) { return Grads{dy.squeeze(dim)}; });
}

Var squeeze(const Var& x, int64_t dim) {
  return record("squeeze", x.value().squeeze(dim), {x},
                [dim](const Tensor& dy, Wants) { return Grads{dy.unsqueeze(dim)}; });
}

std::vector<Var> split(const Var& x, std::span<const int64_t> sizes, int64_t dim) {
  int d = wrap_dim(dim, x.num_dims(), "split");
  std::vector<Tensor> parts = ops::split(x.value(), sizes, d);
  std::vector<Shape> shapes;
  for (const Tensor& part : parts) shapes.push_back(part.shape());
  return record("split", std::move(parts), {x},
                [shapes, d, dtype = x.dtype(), device = x.device()](std::span<const Tensor> dys, Wants) {
                  std::vector<Tensor> filled(dys.begin(), dys.end());
                  for (size_t i = 0; i < filled.size(); ++i)
                    if (!filled[i].defined()) filled[i] = Tensor::zeros(shapes[i], dtype, device);
                  return Grads{ops::concatenate(filled, d)};
                });
}

std::vector<Var> chunk(const Var& x, int64_t count, int64_t dim) {
  const int d = wrap_dim(dim, x.num_dims(), "chunk");
  WEFT_CHECK(count >= 1, str("chunk: count is ", count, " for ", x), "ask for at least one part");
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < count; ++i) sizes.push_back(x.size(d) / count + (i < x.size(d) % count ? 1 : 0));
  return split(x, sizes, d);
}

Var stack(std::span<const Var> parts, int64_t dim) {
  std::vector<Tensor> values;
  for (const Var& part : parts) values.push_back(part.value());
  Tensor y = ops::stack(values, dim);
  return record("stack", y, Inputs(parts), [d = wrap_dim(dim, y.num_dims(), "stack")](const Tensor& dy, Wants) {
    std::vector<Tensor> grads;
    for (int64_t i = 0; i < dy.size(d); ++i) grads.push_back(dy.select(d, i));
    return Grads(std::move(grads));
  });
}

Var concatenate(std::span<const Var> parts, int64_t dim) {
  WEFT_CHECK(!parts.empty(), "concatenate: no tensors", "pass at least one");
  int d = wrap_dim(dim, parts[0].num_dims(), "concatenate");
  std::vector<Tensor> values;
  std::vector<int64_t> sizes;
  for (const Var& part : parts) {
    values.push_back(part.value());
    sizes.push_back(part.num_dims() > d ? part.size(d) : 0);
  }
  return record("concatenate", ops::concatenate(values, d), Inputs(parts),
                [sizes, d](const Tensor& dy, Wants) { return Grads(ops::split(dy, sizes, d)); });
}

}  // namespace weft
