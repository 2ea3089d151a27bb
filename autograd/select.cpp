// Look-ups.
#include "weft/ops/select.h"

#include "weft/autograd/functions.h"
#include "weft/autograd/record.h"
#include "weft/ops/elementwise.h"

namespace weft {

Var embedding(const Var& table, const Tensor& ids) {
  return record("embedding", ops::embedding(table.value(), ids), {table},
                [ids = Saved(ids), rows = table.size(0)](const Tensor& dy, Wants) {
                  return Grads{ops::embedding_backward(dy, ids, rows)};
                });
}

Var take_rows(const Var& x, const Tensor& rows) {
  return record("take_rows", ops::embedding(x.value(), rows), {x},
                [rows = Saved(rows), count = x.size(0), dtype = x.dtype()](const Tensor& dy, Wants) {
                  return Grads{ops::cast(ops::embedding_backward(dy, rows, count), dtype)};
                });
}

Var gather(const Var& x, int64_t dim, const Tensor& index) {
  return record("gather", ops::gather(x.value(), dim, index), {x},
                [dim, index = Saved(index), shape = x.shape()](const Tensor& dy, Wants) {
                  return Grads{ops::scatter_add(shape, dim, index, dy)};
                });
}

Var scatter_add(const Shape& shape, int64_t dim, const Tensor& index, const Var& x) {
  return record("scatter_add", ops::scatter_add(shape, dim, index, x.value()), {x},
                [dim, index = Saved(index)](const Tensor& dy, Wants) { return Grads{ops::gather(dy, dim, index)}; });
}

TopKVar topk(const Var& x, int64_t k) {
  auto [values, indices] = ops::topk(x.value(), k);
  Var top = record("topk", values, {x}, [indices = Saved(indices), shape = x.shape()](const Tensor& dy, Wants) {
    return Grads{ops::scatter_add(shape, -1, indices, dy)};
  });
  return {top, indices};
}

}  // namespace weft
