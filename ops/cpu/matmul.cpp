#include "ops/cpu/matmul.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "ops/cpu/dense.h"
#include "ops/cpu/gemm.h"
#include "ops/cpu/isa.h"
#include "ops/cpu/matmul_kernels.h"
#include "ops/cpu/onednn_gemm.h"
#include "weft/core/dry_run.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"

namespace weft::cpu {

namespace {

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
// against 419 GFLOP/s, 4096x3072x768 460 against 382; 512 cubed the other way round), and it reads a transposed a slowly (two Zen 4
// cores, gradients of weights of 4096 tokens: 128x128 213 against 173, 512x128 219 against 185).
bool prefers_sgemm(const Gemm& g) {
  if (g.num_batch_dims > 0 || g.bias) return false;
  if (!onednn_has_avx512()) return true;
  const int64_t narrowest = g.a.is_transposed ? 64 : 256;
  return g.k >= 1536 && g.m >= narrowest && g.n >= narrowest;
}

// The primitive also reads a transposed operand again for each block of the other one. A copy of it as rows is small work beside a
// product that uses each of its elements often: a weight for all tokens (4096x128x512 195 against 225 GFLOP/s, on two Zen 4 cores).
constexpr int64_t kUsesOfCopy = 512;

// x [rows, cols], which is stored as its transpose, as rows. They begin no power of two apart, which would share one place in the cache.
GemmOperand as_rows(const GemmOperand& x, int64_t rows, int64_t cols, Tensor& copy) {
  const int64_t ld = cols + (cols % 256 == 0 ? 16 : 0);
  copy = Tensor::empty({rows, ld}, kF32, Device::cpu());
  const auto* from = static_cast<const float*>(x.data);
  auto* to = copy.mutable_data<float>();
  constexpr int64_t kLine = 16;
  parallel_for((cols + kLine - 1) / kLine, std::max<int64_t>(1, 16384 / (kLine * rows)),
               [&](int64_t begin, int64_t end) {
                 const int64_t first = begin * kLine, last = std::min(cols, end * kLine);
                 with_isa([&]<Isa I>() {
                   MatmulKernels<I>::transpose(from + first * x.ld, x.ld, last - first, rows, to + first, ld);
                 });
               });
  return {to, false, ld};
}

// c = bias first, then c = a b + c. A bias comes without beta.
void sgemm_with_bias(Gemm g) {
  if (is_dry_run()) return;
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

void gemm_f32(const Gemm& g) {
  // A small product is all overhead, and dnnl_sgemm has half of the primitive's.
  bool is_small = g.num_batch_dims == 0 && g.m * g.n * g.k <= 1 << 15;
  if (is_small) return sgemm_with_bias(g);
  if (prefers_sgemm(g)) return onednn_sgemm(g);
  Gemm as = g;
  Tensor a_rows, b_rows;
  if (g.num_batch_dims == 0 && onednn_has_avx512()) {
    if (g.b.is_transposed && g.m >= kUsesOfCopy) as.b = as_rows(g.b, g.k, g.n, b_rows);
    if (g.a.is_transposed && g.n >= kUsesOfCopy) as.a = as_rows(g.a, g.m, g.k, a_rows);
  }
  if (!onednn_matmul(as)) for_each_product(as, sgemm_with_bias);
}

void gemm_f64(const Gemm& g) {
  auto row_major = [&](const GemmOperand& x, int64_t rows, int64_t cols, Tensor& copy) {
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
  if (a.size(-1) == 0) {
    with_type<float, BFloat16, double>(
        out.dtype(), "matmul", [&](auto tag) { scale_and_add_bias<typename decltype(tag)::type>(out, bias, beta); });
    return;
  }
  ops::GemmCall call(out, a, b, bias, beta, dense_copy);
  const Gemm& g = call.gemm;
  if (g.in == kF32) gemm_f32(g);
  else if (g.in == kF64) for_each_product(g, gemm_f64);
  else if (!onednn_matmul(g)) for_each_product(g, gemm_bf16_by_f32);
}

}  // namespace weft::cpu
