// Tile products on tensor cores: bf16 in, f32 sums, by blocks of four warps. Each warp owns 16 M rows of the block's own side and
// multiplies them with 64 tokens of the walked side, which pass through shared memory. With g = lane / 4 and t = lane % 4 a lane
// has, of every 16 x 8 product, elements (g + 8 half, 2 t + e) in d[2 half + e]; these are also the first operand of the next
// product, so weights never leave registers.
#pragma once

#include "ops/cuda/attention/pairs.cuh"
#include "ops/cuda/ptx.cuh"

namespace weft::cuda::attention::tensor {

inline constexpr int kWarps = 4, kBlock = 32 * kWarps;
inline constexpr int kWalked = 64;  // tokens of a tile of the walked side

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) % 32; }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) / 32; }
__device__ __forceinline__ int lane_g() { return lane_index() / 4; }
__device__ __forceinline__ int lane_t() { return lane_index() % 4; }

// Tokens x channels in shared memory. A row's groups of 8 channels are permuted by its number, so that the same group of eight
// rows lies in different banks.
template <int kWidth>
struct Rows {
  static_assert(kWidth % 64 == 0);
  uint16_t* at;

  __device__ __forceinline__ uint16_t* group(int row, int channel) const {
    return at + row * kWidth + (channel / 8 ^ (row & 7)) * 8;
  }
  // For a row that is the lane's number modulo 8, as the rows of all matrix loads are.
  __device__ __forceinline__ const uint16_t* lane_group(int row, int channel) const {
    return at + row * kWidth + (channel / 8 ^ (lane_index() & 7)) * 8;
  }
};

// Tokens [first, first + kRows) of an operand with `n` tokens, zeros outside and in columns beyond `width`. Complete after
// copy_wait and a barrier.
template <int kRows, int kWidth>
__device__ __forceinline__ void load_rows(const Rows<kWidth>& to, const Operand& x, int64_t first, int64_t n, int width,
                                          bool is_wide) {
  constexpr int kLanes = 8;
  const auto* data = static_cast<const uint16_t*>(x.data);
  for (int r = static_cast<int>(threadIdx.x) / kLanes; r < kRows; r += kBlock / kLanes) {
    const uint16_t* row = data + (first + r) * x.token_stride;
    for (int c = static_cast<int>(threadIdx.x) % kLanes * 8; c < kWidth; c += kLanes * 8) {
      bool is_there = first + r < n && c < width;
      if (is_wide) {
        copy_async_16(to.group(r, c), is_there ? row + c : data, is_there);
      } else {
        Group<uint16_t, 8> group;
#pragma unroll
        for (int i = 0; i < 8; ++i) group.at[i] = is_there && c + i < width ? row[c + i] : uint16_t{0};
        *reinterpret_cast<Group<uint16_t, 8>*>(to.group(r, c)) = group;
      }
    }
  }
}

// One row of numbers of the walked tile, 4 bytes each, `stride` apart; zeros outside and without `data`.
template <class T>
__device__ __forceinline__ void load_numbers(T (&to)[kWalked], const T* data, int64_t stride, int64_t first, int64_t n,
                                             int begin_thread) {
  static_assert(sizeof(T) == 4);
  int i = static_cast<int>(threadIdx.x) - begin_thread;
  if (i < 0 || i >= kWalked) return;
  bool is_there = data && first + i < n;
  if (data) copy_async_4(&to[i], is_there ? data + (first + i) * stride : data, is_there);
  else to[i] = 0;
}

// Positions and documents of the walked tile.
struct Tokens {
  int32_t position[kWalked], document[kWalked];

  __device__ __forceinline__ void load(const Side& side, const ops::core::BiasView&, int64_t b, int64_t first, int) {
    const TokenView& v = side.tokens;
    load_numbers(position, v.position + b * v.batch_stride, v.stride, first, side.count, 0);
    load_numbers(document, v.document ? v.document + b * v.document_batch_stride : nullptr, v.document_stride, first,
                 side.count, kWalked);
  }
  __device__ __forceinline__ Token<int32_t> at(int i) const { return {position[i], document[i]}; }
};

// The same with their biases for one head. They are there after a barrier.
struct BiasedTokens : Tokens {
  ops::core::Bias<float> bias[kWalked];

  __device__ __forceinline__ void load(const Side& side, const ops::core::BiasView& biases, int64_t b, int64_t first,
                                       int head) {
    Tokens::load(side, biases, b, first, head);
    const int i = static_cast<int>(threadIdx.x);
    if (i < kWalked)
      bias[i] = ops::core::split_bias<float>(first + i < side.count ? biases.at(b, first + i, head) : 0.0);
  }
  __device__ __forceinline__ BiasedToken<float> at(int i) const { return {Tokens::at(i), bias[i]}; }
};
template <class Score>
using TileTokensOf = std::conditional_t<ops::core::takes_bias<Score>(), BiasedTokens, Tokens>;

// d[m][n] = (own rows first_own + 16 m ..) . (walked rows first_walked + 8 n ..), over 16 * steps channels
template <int M, int N, int kWidth>
__device__ __forceinline__ void product(float (&d)[M][N][4], const Rows<kWidth>& own, int first_own,
                                        const Rows<kWidth>& walked, int first_walked, int steps) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) d[m][n][i] = 0;
  const int lane = lane_index();
#pragma unroll 2
  for (int k = 0; k < steps; ++k) {
    uint32_t a[M][4];
#pragma unroll
    for (int m = 0; m < M; ++m)
      load_matrices<false>(a[m], own.lane_group(first_own + 16 * m + lane % 16, 16 * k + lane / 16 * 8));
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t b[4];
      load_matrices<false>(
          b, walked.lane_group(first_walked + 8 * n + lane / 16 * 8 + lane % 8, 16 * k + lane / 8 % 2 * 8));
      const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
#pragma unroll
      for (int m = 0; m < M; ++m) {
        mma_bf16_16x8x16(d[m][n], a[m], low);
        mma_bf16_16x8x16(d[m][n + 1], a[m], high);
      }
    }
  }
}

// acc[m][c] += (weights of own rows 16 m .. and walked tokens) x (walked rows first_walked .., channels first_channel + 8 c ..)
template <int M, int N, int C, int kWidth>
__device__ __forceinline__ void accumulate(float (&acc)[M][C][4], const float (&weights)[M][N][4],
                                           const Rows<kWidth>& walked, int first_walked, int first_channel) {
  const int lane = lane_index();
#pragma unroll
  for (int n = 0; n < N; n += 2) {
    uint32_t a[M][4];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        a[m][i] = pack_bf16(weights[m][n + i / 2][i % 2 * 2], weights[m][n + i / 2][i % 2 * 2 + 1]);
#pragma unroll
    for (int c = 0; c < C; c += 2) {
      uint32_t b[4];
      load_matrices<true>(b,
                          walked.lane_group(first_walked + 8 * n + lane % 16, first_channel + 8 * c + lane / 16 * 8));
      const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
#pragma unroll
      for (int m = 0; m < M; ++m) {
        mma_bf16_16x8x16(acc[m][c], a[m], low);
        mma_bf16_16x8x16(acc[m][c + 1], a[m], high);
      }
    }
  }
}

template <int M, int C>
__device__ __forceinline__ void clear(float (&acc)[M][C][4]) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int c = 0; c < C; ++c)
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[m][c][i] = 0;
}

// Calls f(value, column) for what a lane has of half h of the rows of acc, columns below `width`.
template <int C, class F>
__device__ __forceinline__ void for_columns(float (&acc)[C][4], int h, int first_column, int64_t width, F&& f) {
#pragma unroll
  for (int c = 0; c < C; ++c)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      int column = first_column + 8 * c + 2 * lane_t() + e;
      if (column < width) f(acc[c][2 * h + e], column);
    }
}

// The same, times `factor`, to a row in bf16: in pairs where all rows begin at one.
template <int C>
__device__ __forceinline__ void store_bf16(BFloat16* row, float (&acc)[C][4], int h, int first_column, int64_t width,
                                           float factor) {
  if (width % 2 != 0) {
    for_columns(acc, h, first_column, width, [&](float x, int c) { row[c] = BFloat16(factor * x); });
    return;
  }
#pragma unroll
  for (int c = 0; c < C; ++c) {
    const int column = first_column + 8 * c + 2 * lane_t();
    if (column < width)
      *reinterpret_cast<uint32_t*>(row + column) = pack_bf16(factor * acc[c][2 * h], factor * acc[c][2 * h + 1]);
  }
}

// The row of the block's own tile of half h of fragment m.
template <int M>
__device__ __forceinline__ int own_row(int m, int h) {
  return (warp_index() * M + m) * 16 + 8 * h + lane_g();
}

}  // namespace weft::cuda::attention::tensor
