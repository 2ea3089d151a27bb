// What a warp does with its rows of a backward tile in registers, whoever multiplies: weights and gradients of scores in place of
// products, and sums into memory. Who has which element: forward_rows.cuh.
#pragma once

#include "ops/cuda/attention/tile_bf16.cuh"

namespace weft::cuda::attention::tensor {

// factor * acc to rows of `stride` elements of a gradient, row 0 at element `at`: added in f32, or stored in bf16.
template <int M, int C>
__device__ __forceinline__ void give_rows(const Problem& p, void* gradient, int64_t at, int64_t stride,
                                          float (&acc)[M][C][4], int64_t first, int64_t count, int first_column,
                                          int64_t width, float factor) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t i = first + own_row<M>(m, h);
      if (i >= count) continue;
      if (p.are_grads_bf16) {
        store_bf16(static_cast<BFloat16*>(gradient) + at + i * stride, acc[m], h, first_column, width, factor);
      } else {
        float* row = static_cast<float*>(gradient) + at + i * stride;
        for_columns(acc[m], h, first_column, width, [&](float x, int c) { row[c] += factor * x; });
      }
    }
}

// Weights and score gradients of a tile in place of its products, by gradient_of(product, dweight, m, h, walked token). kBiased: adds
// the gradients of pairs' biases to those of the lane's rows.
template <bool kBiased = false, int M, int N, class F>
__device__ __forceinline__ void differentiate(float (&x)[M][N][4], float (&dweight)[M][N][4], F&& gradient_of,
                                              float (*bias_sums)[2] = nullptr) {
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e)
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float &s = x[m][n][2 * h + e], &dw = dweight[m][n][2 * h + e];
          auto g = gradient_of(s, dw, m, h, 8 * n + 2 * lane_t() + e);
          s = g.weight, dw = g.dscore;
          if constexpr (kBiased) bias_sums[m][h] += g.dbias;
        }
}

// Adds the rows' gradients of biases: own rows from `first` on, sums over the walked tokens of a tile for one head.
template <int M>
__device__ __forceinline__ void give_bias(const ops::core::BiasView& biases, int64_t b, int64_t first, int head,
                                          float (&sums)[M][2]) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) add_bias_gradient<4>(biases, b, first + own_row<M>(m, h), head, sums[m][h]);
}

}  // namespace weft::cuda::attention::tensor
