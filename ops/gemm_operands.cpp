#include "ops/gemm_operands.h"

namespace weft::ops {

namespace {

// Reads the last two strides as row-major or as the transpose of row-major; false if they are neither.
bool as_operand(const Tensor& x, GemmOperand& operand) {
  int last = x.num_dims() - 1;
  int64_t rows = x.shape()[last - 1], cols = x.shape()[last];
  int64_t row_stride = x.strides()[last - 1], col_stride = x.strides()[last];
  for (int d = 0; d < last - 1; ++d)
    if (x.strides()[d] < 0) return false;
  if ((cols == 1 || col_stride == 1) && (rows == 1 || row_stride >= cols)) {
    operand = {x.raw(), false, rows == 1 ? cols : row_stride};
    return true;
  }
  if ((rows == 1 || row_stride == 1) && (cols == 1 || col_stride >= rows)) {
    operand = {x.raw(), true, cols == 1 ? rows : col_stride};
    return true;
  }
  return false;
}

// Leading dimensions of out as batch dimensions, merged where all three operands can step through two as through one.
void set_batch(Gemm& g, const Tensor& out, const Tensor& a, const Tensor& b) {
  auto step = [&](const Tensor& x, int dim) {  // dim counts in out
    int own = dim - (out.num_dims() - x.num_dims());
    return own < 0 || x.shape()[own] == 1 ? 0 : x.strides()[own];
  };
  for (int dim = 0; dim < out.num_dims() - 2; ++dim) {
    int64_t size = out.shape()[dim];
    if (size == 1) continue;
    int64_t a_step = step(a, dim), b_step = step(b, dim), c_step = out.strides()[dim];
    size_t n = static_cast<size_t>(g.num_batch_dims);
    bool merges = n > 0 && g.a_step[n - 1] == a_step * size && g.b_step[n - 1] == b_step * size &&
                  g.c_step[n - 1] == c_step * size;
    if (merges) --n;
    else g.batch[n] = 1;
    g.batch[n] *= size;
    g.a_step[n] = a_step, g.b_step[n] = b_step, g.c_step[n] = c_step;
    g.num_batch_dims = static_cast<int>(n) + 1;
  }
  // [batch, M, K] times one [K, N] is a single taller product.
  while (g.num_batch_dims > 0) {
    size_t n = static_cast<size_t>(g.num_batch_dims - 1);
    if (g.b_step[n] != 0 || g.a.is_transposed || g.c_step[n] != g.m * g.ldc) break;
    if (g.m == 1 ? g.a_step[n] < g.k : g.a_step[n] != g.m * g.a.ld) break;
    if (g.m == 1) g.a.ld = g.a_step[n];
    g.m *= g.batch[n];
    --g.num_batch_dims;
  }
}

}  // namespace

Gemm product(const Gemm& g, int64_t i) {
  Gemm one = g;
  int64_t a = 0, b = 0, c = 0;
  for (int d = g.num_batch_dims - 1; d >= 0; --d) {
    size_t at = static_cast<size_t>(d);
    int64_t index = i % g.batch[at];
    i /= g.batch[at];
    a += index * g.a_step[at];
    b += index * g.b_step[at];
    c += index * g.c_step[at];
  }
  auto in_bytes = static_cast<int64_t>(size_of(g.in)), out_bytes = static_cast<int64_t>(size_of(g.out));
  one.a.data = static_cast<const char*>(g.a.data) + a * in_bytes;
  one.b.data = static_cast<const char*>(g.b.data) + b * in_bytes;
  one.c = static_cast<char*>(g.c) + c * out_bytes;
  one.num_batch_dims = 0;
  return one;
}

GemmCall::GemmCall(Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bias, double beta,
                   Tensor (*dense_copy)(const Tensor&)) {
  gemm.in = a.dtype(), gemm.out = out.dtype(), gemm.beta = beta;
  gemm.m = a.size(-2), gemm.k = a.size(-1), gemm.n = b.size(-1), gemm.ldc = gemm.n;
  bool takes_a = as_operand(a, gemm.a), takes_b = as_operand(b, gemm.b);
  if (!takes_a) as_operand(a_dense = dense_copy(a), gemm.a);
  if (!takes_b) as_operand(b_dense = dense_copy(b), gemm.b);
  gemm.c = out.mutable_raw();
  gemm.bias = bias.raw();
  set_batch(gemm, out, takes_a ? a : a_dense, takes_b ? b : b_dense);
}

}  // namespace weft::ops
