#include "ops/cpu/matmul_kernels.h"

#include <algorithm>
#include <cstring>

namespace weft::cpu {

namespace {

constexpr int64_t kTile = 4;
typedef float Four __attribute__((vector_size(16)));
typedef int32_t Places __attribute__((vector_size(16)));

inline void transpose_tile(const float* from, int64_t from_ld, float* to, int64_t to_ld) {
  Four x[kTile];
  for (int64_t i = 0; i < kTile; ++i) std::memcpy(&x[i], from + i * from_ld, sizeof(Four));
  const Four low01 = __builtin_shuffle(x[0], x[1], Places{0, 4, 1, 5}),
             low23 = __builtin_shuffle(x[2], x[3], Places{0, 4, 1, 5}),
             high01 = __builtin_shuffle(x[0], x[1], Places{2, 6, 3, 7}),
             high23 = __builtin_shuffle(x[2], x[3], Places{2, 6, 3, 7});
  const Four y[kTile] = {
      __builtin_shuffle(low01, low23, Places{0, 1, 4, 5}), __builtin_shuffle(low01, low23, Places{2, 3, 6, 7}),
      __builtin_shuffle(high01, high23, Places{0, 1, 4, 5}), __builtin_shuffle(high01, high23, Places{2, 3, 6, 7})};
  for (int64_t i = 0; i < kTile; ++i) std::memcpy(to + i * to_ld, &y[i], sizeof(Four));
}

}  // namespace

// Four rows of `to` at a time are written a cache line of each after the other.
template <Isa I>
void MatmulKernels<I>::transpose(const float* from, int64_t from_ld, int64_t rows, int64_t cols, float* to,
                                 int64_t to_ld) {
  constexpr int64_t kLine = 16;
  for (int64_t r0 = 0; r0 < rows; r0 += kLine)
    for (int64_t c = 0; c < cols; c += kTile)
      for (int64_t r = r0; r < std::min(rows, r0 + kLine); r += kTile) {
        if (r + kTile <= rows && c + kTile <= cols) {
          transpose_tile(from + r * from_ld + c, from_ld, to + c * to_ld + r, to_ld);
          continue;
        }
        for (int64_t i = r; i < std::min(rows, r + kTile); ++i)
          for (int64_t j = c; j < std::min(cols, c + kTile); ++j) to[j * to_ld + i] = from[i * from_ld + j];
      }
}

template <Isa I>
void MatmulKernels<I>::widen(const BFloat16* from, int64_t from_ld, int64_t rows, int64_t cols, float* to,
                             int64_t to_ld) {
  for (int64_t r = 0; r < rows; ++r) {
    const BFloat16* x = from + r * from_ld;
    float* y = to + r * to_ld;
    for (int64_t c = 0; c < cols; ++c) y[c] = x[c];
  }
}

template <Isa I>
void MatmulKernels<I>::narrow(const float* from, int64_t from_ld, const BFloat16* bias, int64_t rows, int64_t cols,
                              BFloat16* to, int64_t to_ld) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* x = from + r * from_ld;
    BFloat16* y = to + r * to_ld;
    if (bias)
      for (int64_t c = 0; c < cols; ++c) y[c] = BFloat16(x[c] + static_cast<float>(bias[c]));
    else
      for (int64_t c = 0; c < cols; ++c) y[c] = BFloat16(x[c]);
  }
}

// Four rows of c share each row of b; blocks of 128 x 256 of b stay in the second-level cache.
template <Isa I>
void MatmulKernels<I>::gemm_f64(const double* a, int64_t lda, const double* b, int64_t ldb, double* c, int64_t ldc,
                                int64_t m, int64_t n, int64_t k) {
  constexpr int64_t kBlockK = 128, kBlockN = 256;
  for (int64_t n0 = 0; n0 < n; n0 += kBlockN) {
    int64_t width = n - n0 < kBlockN ? n - n0 : kBlockN;
    for (int64_t k0 = 0; k0 < k; k0 += kBlockK) {
      int64_t k1 = k - k0 < kBlockK ? k : k0 + kBlockK;
      int64_t i = 0;
      for (; i + 4 <= m; i += 4) {
        double *c0 = c + i * ldc + n0, *c1 = c0 + ldc, *c2 = c1 + ldc, *c3 = c2 + ldc;
        const double *a0 = a + i * lda, *a1 = a0 + lda, *a2 = a1 + lda, *a3 = a2 + lda;
        for (int64_t l = k0; l < k1; ++l) {
          const double* row = b + l * ldb + n0;
          double x0 = a0[l], x1 = a1[l], x2 = a2[l], x3 = a3[l];
          for (int64_t j = 0; j < width; ++j) {
            c0[j] += x0 * row[j];
            c1[j] += x1 * row[j];
            c2[j] += x2 * row[j];
            c3[j] += x3 * row[j];
          }
        }
      }
      for (; i < m; ++i) {
        double* c0 = c + i * ldc + n0;
        for (int64_t l = k0; l < k1; ++l) {
          const double* row = b + l * ldb + n0;
          double x0 = a[i * lda + l];
          for (int64_t j = 0; j < width; ++j) c0[j] += x0 * row[j];
        }
      }
    }
  }
}

template struct MatmulKernels<kThisIsa>;

}  // namespace weft::cpu
