#include "weft/ops/select.h"

#include "ops/cpu/select.h"
#include "ops/cuda/select.h"
#include "src/core/cuda_build.h"
#include "weft/core/dry_run.h"
#include "weft/core/error.h"

namespace weft::ops {

namespace {

void check_index(std::string_view op, const Tensor& index, std::string_view values_name, const Tensor& values) {
  auto both = [&](std::string_view problem) {
    return str(op, ": ", problem, ": ", values_name, " is ", values, ", index is ", index);
  };
  WEFT_CHECK(values.defined() && index.defined(), both("an input is undefined"), "give both tensors");
  WEFT_CHECK(index.dtype() == kI64 || index.dtype() == kI32, both("the index is not an integer"),
             "give an i64 or i32 index");
  WEFT_CHECK(values.device() == index.device(), both("devices differ"), "move one to the device of the other");
}

bool equal_except(const Shape& a, const Shape& b, int dim) {
  if (a.num_dims() != b.num_dims()) return false;
  for (int i = 0; i < a.num_dims(); ++i)
    if (i != dim && a[i] != b[i]) return false;
  return true;
}

// Choices of a dry run: every index as often as the others, and none twice in a row.
void spread(Tensor& indices, int64_t size) {
  auto* at = indices.mutable_data<int64_t>();
  for (int64_t i = 0; i < indices.num_elements(); ++i) at[i] = i % size;
}

}  // namespace

Tensor embedding(const Tensor& table, const Tensor& ids) {
  check_index("embedding", ids, "table", table);
  WEFT_CHECK(table.num_dims() == 2, str("embedding: the table is ", table), "give a table of shape [V, D]");
  Shape shape = ids.shape();
  shape.push_back(table.size(1));
  Tensor out = Tensor::empty(shape, table.dtype(), table.device());
  if constexpr (kCuda) {
    if (table.is_cuda()) return cuda::embedding(out, table, ids), out;
  }
  cpu::embedding(out, table, ids);
  return out;
}

Tensor embedding_backward(const Tensor& dy, const Tensor& ids, int64_t num_rows) {
  check_index("embedding_backward", ids, "dy", dy);
  WEFT_CHECK(is_floating(dy.dtype()), str("embedding_backward: dy is ", dy), "give dy as f32, bf16 or f64");
  Shape expected = ids.shape();
  expected.push_back(dy.num_dims() ? dy.size(-1) : 1);
  WEFT_CHECK(dy.shape() == expected && num_rows >= 0,
             str("embedding_backward: dy is ", dy, ", ids are ", ids, ", ", num_rows, " rows"),
             str("give dy of shape ", ids.shape(), " plus [D]"));
  Tensor out = Tensor::empty({num_rows, dy.size(-1)}, dy.dtype() == kF64 ? kF64 : kF32, dy.device());
  if constexpr (kCuda) {
    if (dy.is_cuda()) return cuda::embedding_backward(out, dy, ids), out;
  }
  cpu::embedding_backward(out, dy, ids);
  return out;
}

Tensor gather(const Tensor& x, int64_t dim, const Tensor& index) {
  check_index("gather", index, "x", x);
  int d = wrap_dim(dim, x.num_dims(), "gather");
  WEFT_CHECK(equal_except(x.shape(), index.shape(), d),
             str("gather: shapes differ: x is ", x, ", index is ", index, ", dim is ", dim),
             str("give an index with the sizes of x except in dimension ", dim));
  Tensor out = Tensor::empty(index.shape(), x.dtype(), x.device());
  if constexpr (kCuda) {
    if (x.is_cuda()) return cuda::gather(out, x, d, index), out;
  }
  cpu::gather(out, x, d, index);
  return out;
}

Tensor scatter_add(const Shape& shape, int64_t dim, const Tensor& index, const Tensor& x) {
  check_index("scatter_add", index, "x", x);
  int d = wrap_dim(dim, shape.num_dims(), "scatter_add");
  WEFT_CHECK(is_floating(x.dtype()), str("scatter_add: x is ", x), "cast x to f32, bf16 or f64");
  WEFT_CHECK(x.shape() == index.shape() && equal_except(shape, x.shape(), d),
             str("scatter_add: shapes differ: result ", shape, ", x is ", x, ", index is ", index, ", dim is ", dim),
             str("give x and index of one shape, with the sizes of the result except in dimension ", dim));
  Tensor out = Tensor::empty(shape, x.dtype(), x.device());
  if constexpr (kCuda) {
    if (x.is_cuda()) return cuda::scatter_add(out, d, index, x), out;
  }
  cpu::scatter_add(out, d, index, x);
  return out;
}

TopK topk(const Tensor& x, int64_t k) {
  WEFT_CHECK(x.defined() && x.num_dims() >= 1 && is_floating(x.dtype()), str("topk: x is ", x),
             "give f32, bf16 or f64 [..., N]");
  WEFT_CHECK(1 <= k && k <= x.size(-1), str("topk: k is ", k, ", x is ", x), str("use 1 <= k <= ", x.size(-1)));
  Shape shape = x.shape();
  shape[shape.num_dims() - 1] = k;
  TopK top{Tensor::empty(shape, x.dtype(), x.device()), Tensor::empty(shape, kI64, x.device())};
  if (is_dry_run()) return spread(top.indices, x.size(-1)), top;
  if constexpr (kCuda) {
    if (x.is_cuda()) return cuda::topk(top.values, top.indices, x), top;
  }
  cpu::topk(top.values, top.indices, x);
  return top;
}

Tensor concatenate(std::span<const Tensor> parts, int64_t dim) {
  WEFT_CHECK(!parts.empty(), "concatenate: no parts", "give at least one tensor");
  const Tensor& first = parts[0];
  WEFT_CHECK(first.defined(), "concatenate: part 0 is undefined", "give defined tensors");
  int d = wrap_dim(dim, first.num_dims(), "concatenate");
  Shape shape = first.shape();
  shape[d] = 0;
  for (const Tensor& part : parts) {
    WEFT_CHECK(part.defined() && part.dtype() == first.dtype() && part.device() == first.device() &&
                   equal_except(part.shape(), first.shape(), d),
               str("concatenate: part ", &part - parts.data(), " is ", part, ", part 0 is ", first, ", dim is ", dim),
               str("give parts of one dtype and device whose sizes differ in dimension ", dim, " only"));
    shape[d] += part.size(d);
  }
  Tensor out = Tensor::empty(shape, first.dtype(), first.device());
  if constexpr (kCuda) {
    if (first.is_cuda()) return cuda::concatenate(out, parts, d), out;
  }
  cpu::concatenate(out, parts, d);
  return out;
}

Tensor stack(std::span<const Tensor> parts, int64_t dim) {
  WEFT_CHECK(!parts.empty(), "stack: no parts", "give at least one tensor");
  const Tensor& first = parts[0];
  WEFT_CHECK(first.defined() && first.num_dims() < kMaxDims, str("stack: part 0 is ", first),
             str("give defined tensors of at most ", kMaxDims - 1, " dimensions"));
  const int d = wrap_dim(dim, first.num_dims() + 1, "stack");
  std::vector<Tensor> slices;
  slices.reserve(parts.size());
  for (const Tensor& part : parts) {
    WEFT_CHECK(part.defined() && part.dtype() == first.dtype() && part.device() == first.device() &&
                   part.shape() == first.shape(),
               str("stack: part ", &part - parts.data(), " is ", part, ", part 0 is ", first),
               "give parts of one shape, dtype and device; concatenate joins parts of other sizes");
    slices.push_back(part.unsqueeze(d));
  }
  return concatenate(slices, d);
}

std::vector<Tensor> split(const Tensor& x, std::span<const int64_t> sizes, int64_t dim) {
  WEFT_CHECK(x.defined(), "split: x is undefined", "give a tensor");
  int d = wrap_dim(dim, x.num_dims(), "split");
  int64_t sum = 0;
  bool is_valid = true;
  for (int64_t size : sizes) {
    is_valid = is_valid && size >= 0 && size <= x.size(d);
    sum += size;
  }
  WEFT_CHECK(is_valid && sum == x.size(d),
             str("split: ", sizes.size(), " sizes with sum ", sum, " for dimension ", dim, " of ", x),
             str("give sizes from 0 that add up to ", x.size(d)));
  std::vector<Tensor> parts;
  parts.reserve(sizes.size());
  int64_t begin = 0;
  for (int64_t size : sizes) {
    parts.push_back(x.slice(d, begin, begin + size));
    begin += size;
  }
  return parts;
}

}  // namespace weft::ops
