#include "ops/cpu/matmul.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "ops/cpu/dense.h"
#include "ops/cpu/gemm.h"
#include "ops/cpu/isa.h"
#include "ops/cpu/matmul_kernels.h"
#include "ops/cpu/onednn_gemm.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"

namespace weft::cpu {

namespace {

// Reads the last two strides as row-major or as the transpose of row-major; false if they are neither.
bool as_operand(const Tensor& x, Operand& operand) {
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

// beta * out + bias, all there is to a product over nothing.
template <class T>
void scale_and_add_bias(Tensor& out, const Tensor& bias, double beta) {
  T* y = out.mutable_data<T>();
  const T* b = bias.defined() ? bias.data<T>() : nullptr;
  int64_t cols = out.shape().back();
  for (int64_t i = 0; i < out.num_elements(); ++i) {
    double value = b ? static_cast<double>(b[i % cols]) : 0.0;
    if (beta != 0) value += beta * static_cast<double>(y[i]);
    if constexpr (std::same_as<T, BFloat16>) y[i] = BFloat16(static_cast<float>(value));
    else y[i] = static_cast<T>(value);
  }
}

// Calls f for each product; several at once if there are enough of them to keep all threads busy.
template <class F>
void for_each_product(const Gemm& g, F&& f) {
  int64_t count = g.num_products();
  if (count >= 2 * num_threads() || g.m * g.n * g.k < 32768) {
    parallel_for(count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(product(g, i));
    });
  } else {
    for (int64_t i = 0; i < count; ++i) f(product(g, i));
  }
}

// dnnl_sgemm against the matmul primitive on plain layouts. Without AVX-512 both run the same code. With it the primitive
// is better except where the inner size is long: it does not pack b (platform figures, two Zen 5 cores: 2048 cubed 486
// against 419 GFLOP/s, 4096x3072x768 460 against 382; 512 cubed the other way round).
bool prefers_sgemm(const Gemm& g) {
  return g.num_batch_dims == 0 && !g.bias && (!onednn_has_avx512() || (g.k >= 1536 && g.m >= 256 && g.n >= 256));
}

// c = bias first, then c = a b + c. A bias comes without beta.
void sgemm_with_bias(Gemm g) {
  if (g.bias) {
    WEFT_ASSERT(g.beta == 0);
    for (int64_t i = 0; i < g.m; ++i)
      std::memcpy(static_cast<float*>(g.c) + i * g.ldc, g.bias, static_cast<size_t>(g.n) * sizeof(float));
    g.bias = nullptr;
    g.beta = 1;
  }
  onednn_sgemm(g);
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

void gemm_f32(const Gemm& g) {
  // A small product is all overhead, and dnnl_sgemm has half of the primitive's.
  bool is_small = g.num_batch_dims == 0 && g.m * g.n * g.k <= 1 << 15;
  if (is_small) return sgemm_with_bias(g);
  if (prefers_sgemm(g)) return onednn_sgemm(g);
  if (!onednn_matmul(g)) for_each_product(g, sgemm_with_bias);
}

void gemm_f64(const Gemm& g) {
  auto row_major = [&](const Operand& x, int64_t rows, int64_t cols, Tensor& copy) {
    if (!x.is_transposed) return std::pair(static_cast<const double*>(x.data), x.ld);
    copy = Tensor::empty({rows, cols}, kF64, Device::cpu());
    double* to = copy.mutable_data<double>();
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c) to[r * cols + c] = static_cast<const double*>(x.data)[c * x.ld + r];
    return std::pair(static_cast<const double*>(to), cols);
  };
  Tensor a_copy, b_copy;
  auto [a, lda] = row_major(g.a, g.m, g.k, a_copy);
  auto [b, ldb] = row_major(g.b, g.k, g.n, b_copy);
  const auto* bias = static_cast<const double*>(g.bias);
  parallel_for(g.m, std::max<int64_t>(4, 100000 / (g.n * g.k)),
               [&, a = a, b = b, lda = lda, ldb = ldb](int64_t begin, int64_t end) {
                 double* c = static_cast<double*>(g.c) + begin * g.ldc;
                 for (int64_t i = 0; i < end - begin; ++i)
                   for (int64_t j = 0; j < g.n; ++j) {
                     double& x = c[i * g.ldc + j];
                     x = (g.beta == 0 ? 0 : g.beta * x) + (bias ? bias[j] : 0);
                   }
                 with_isa([&]<Isa I>() {
                   MatmulKernels<I>::gemm_f64(a + begin * lda, lda, b, ldb, c, g.ldc, end - begin, g.n, g.k);
                 });
               });
}

void matmul(Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bias, double beta) {
  if (out.num_elements() == 0) return;
  Gemm g;
  g.in = a.dtype(), g.out = out.dtype(), g.beta = beta;
  g.m = a.size(-2), g.k = a.size(-1), g.n = b.size(-1), g.ldc = g.n;
  if (g.k == 0) {
    with_type<float, BFloat16, double>(
        out.dtype(), "matmul", [&](auto tag) { scale_and_add_bias<typename decltype(tag)::type>(out, bias, beta); });
    return;
  }
  Tensor a_dense, b_dense;
  bool takes_a = as_operand(a, g.a), takes_b = as_operand(b, g.b);
  // Strides that no GEMM takes (steps in both of the last two dimensions, or rows that overlap) are copied away.
  if (!takes_a) as_operand(a_dense = dense_copy(a), g.a);
  if (!takes_b) as_operand(b_dense = dense_copy(b), g.b);
  g.c = out.mutable_raw();
  g.bias = bias.raw();
  set_batch(g, out, takes_a ? a : a_dense, takes_b ? b : b_dense);

  if (g.in == kF32) gemm_f32(g);
  else if (g.in == kF64) for_each_product(g, gemm_f64);
  else if (!onednn_matmul(g)) for_each_product(g, gemm_bf16_by_f32);
}

}  // namespace weft::cpu
