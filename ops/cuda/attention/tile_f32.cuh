// Tile products in plain arithmetic, T = float or double; bf16 operands are widened when they are read. A block is 16 x 16
// threads; thread (y, x) has elements (y + 16 i, x + 16 j) of every product. Operands pass through shared memory in strips of
// columns, so any width works; accumulators of up to kMaxWidth columns stay in registers.
#pragma once

#include "ops/cuda/attention/pairs.cuh"

namespace weft::cuda::attention::plain {

inline constexpr int kSide = 16;
inline constexpr int kStrip = 32;    // columns of a strip of a product over channels
inline constexpr int kColumns = 64;  // of a product over tokens
inline constexpr int kMostColumns = static_cast<int>(kMaxWidth) / kSide;  // per thread

template <class T>
inline constexpr int kTile = 256 / static_cast<int>(sizeof(T));  // tokens, on both sides
// Sums of backward have three levels, so that their error does not grow with the number of tokens: a tile's product, the sum of this
// many of them in registers, and the result.
inline constexpr int kTilesOfSum = 32;
template <class T>
inline constexpr int kOf = kTile<T> / kSide;  // per thread

template <class T>
struct Shared {
  T own[kTile<T>][kStrip + 1], other[kTile<T>][kStrip + 1];
  T columns[kTile<T>][kColumns];
  T weights[kTile<T>][kTile<T> + 1];
};
template <class T>
struct BackwardShared : Shared<T> {
  T dscores[kTile<T>][kTile<T> + 1];
};

__device__ __forceinline__ int thread_y() { return static_cast<int>(threadIdx.x) / kSide; }
__device__ __forceinline__ int thread_x() { return static_cast<int>(threadIdx.x) % kSide; }

template <class T>
__device__ __forceinline__ T element(const Operand& x, int64_t at) {
  if (x.is_bf16) return static_cast<T>(static_cast<float>(static_cast<const BFloat16*>(x.data)[at]));
  return static_cast<const T*>(x.data)[at];
}

// Tokens [first, first + kTile) and columns [c0, c0 + kCount) of an operand that has `n` tokens and `width` columns; zeros
// outside.
template <int kCount, int kPitch, class T>
__device__ __forceinline__ void load_strip(T (&to)[kTile<T>][kPitch], const Operand& x, int64_t first, int64_t n,
                                           int64_t c0, int64_t width) {
  for (int i = static_cast<int>(threadIdx.x); i < kTile<T> * kCount; i += kThreads) {
    int r = i / kCount, c = i % kCount;
    bool is_there = first + r < n && c0 + c < width;
    to[r][c] = is_there ? element<T>(x, (first + r) * x.token_stride + c0 + c) : T(0);
  }
}

// acc[i][j] = own (y + 16 i, :) . other (x + 16 j, :)
template <class T>
__device__ __forceinline__ void product(T (&acc)[kOf<T>][kOf<T>], Shared<T>& s, const Operand& own, int64_t own_first,
                                        int64_t own_count, const Operand& other, int64_t other_first,
                                        int64_t other_count, int64_t width) {
#pragma unroll
  for (int i = 0; i < kOf<T>; ++i)
#pragma unroll
    for (int j = 0; j < kOf<T>; ++j) acc[i][j] = 0;
  for (int64_t c0 = 0; c0 < width; c0 += kStrip) {
    __syncthreads();
    load_strip<kStrip>(s.own, own, own_first, own_count, c0, width);
    load_strip<kStrip>(s.other, other, other_first, other_count, c0, width);
    __syncthreads();
#pragma unroll 8
    for (int c = 0; c < kStrip; ++c) {
      T a[kOf<T>], b[kOf<T>];
#pragma unroll
      for (int i = 0; i < kOf<T>; ++i)
        a[i] = s.own[thread_y() + kSide * i][c], b[i] = s.other[thread_x() + kSide * i][c];
#pragma unroll
      for (int i = 0; i < kOf<T>; ++i)
#pragma unroll
        for (int j = 0; j < kOf<T>; ++j) acc[i][j] += a[i] * b[j];
    }
  }
}

// A product to shared memory, where loops over pairs can index it without being unrolled: unrolled, their functors take minutes to
// compile. A thread reads back only what it has put there itself.
template <class T>
__device__ __forceinline__ void put(T (&to)[kTile<T>][kTile<T> + 1], const T (&x)[kOf<T>][kOf<T>]) {
#pragma unroll
  for (int i = 0; i < kOf<T>; ++i)
#pragma unroll
    for (int j = 0; j < kOf<T>; ++j) to[thread_y() + kSide * i][thread_x() + kSide * j] = x[i][j];
}

// acc[i][j] += sum over r of weights (y + 16 i, r) x (first + r, x + 16 j), which is summed by itself: acc may hold many more terms.
// The weights have just been written by the block.
template <class T>
__device__ __forceinline__ void accumulate(T (&acc)[kOf<T>][kMostColumns], const T (&weights)[kTile<T>][kTile<T> + 1],
                                           Shared<T>& s, const Operand& x, int64_t first, int64_t n, int64_t width) {
  constexpr int kEach = kColumns / kSide;
#pragma unroll
  for (int c0 = 0; c0 < kMaxWidth; c0 += kColumns) {
    if (c0 >= width) break;
    __syncthreads();
    load_strip<kColumns>(s.columns, x, first, n, c0, width);
    __syncthreads();
    T sum[kOf<T>][kEach] = {};
#pragma unroll 4
    for (int r = 0; r < kTile<T>; ++r) {
      T w[kOf<T>], v[kEach];
#pragma unroll
      for (int i = 0; i < kOf<T>; ++i) w[i] = weights[thread_y() + kSide * i][r];
#pragma unroll
      for (int j = 0; j < kEach; ++j) v[j] = s.columns[r][thread_x() + kSide * j];
#pragma unroll
      for (int i = 0; i < kOf<T>; ++i)
#pragma unroll
        for (int j = 0; j < kEach; ++j) sum[i][j] += w[i] * v[j];
    }
#pragma unroll
    for (int i = 0; i < kOf<T>; ++i)
#pragma unroll
      for (int j = 0; j < kEach; ++j) acc[i][c0 / kSide + j] += sum[i][j];
  }
}

// Calls f(element of `row_of_i` and column) for the thread's share of rows of `width` columns.
template <class T, class F>
__device__ __forceinline__ void for_columns(T (&acc)[kMostColumns], int64_t width, F&& f) {
#pragma unroll
  for (int j = 0; j < kMostColumns; ++j)
    if (thread_x() + kSide * j < width) f(acc[j], thread_x() + kSide * j);
}

}  // namespace weft::cuda::attention::plain
