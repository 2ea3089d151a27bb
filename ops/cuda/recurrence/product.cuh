// Products of a block's 64 rows with up to 64 columns, summed over any depth. Elements of both sides are given by functions, pass
// through shared memory in strips of the depth and are summed in registers: on tensor cores for bf16 tensors, else in plain arithmetic.
#pragma once

#include "ops/cuda/ptx.cuh"
#include "ops/cuda/recurrence/kernels.h"

namespace weft::cuda::recurrence {

inline constexpr int kColumns = 64, kDepth = 64;
inline constexpr int kBlock = 128;  // threads

__host__ __device__ constexpr int64_t smaller(int64_t a, int64_t b) { return b < a ? b : a; }
__host__ __device__ constexpr int in_steps(int64_t n) { return static_cast<int>((n + 15) / 16 * 16); }
__device__ __forceinline__ int lane_of() { return static_cast<int>(threadIdx.x) % 32; }
__device__ __forceinline__ int warp_of() { return static_cast<int>(threadIdx.x) / 32; }

// What a warp multiplies: groups of 8 columns, and steps of the depth.
struct Range {
  int first_group, last_group, first, last;
};

// A warp has rows 16 warp to 16 warp + 15; a thread has in at[n][i] an element of columns 8 n to 8 n + 7.
template <class T_>
struct Plain {
  using T = T_;
  using Stored = T;
  static constexpr int kPitch = kDepth + 1;

  static __device__ __forceinline__ int row(int i) { return 16 * warp_of() + lane_of() / 8 + 4 * i; }
  static __device__ __forceinline__ int column(int n, int) { return 8 * n + lane_of() % 8; }
  static __device__ __forceinline__ T stored(T x) { return x; }
  static __device__ __forceinline__ void multiply_add(T (&at)[8][4], const T* x, const T* y, const Range& range) {
    for (int k = range.first; k < range.last; ++k) {
      T a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = x[row(i) * kPitch + k];
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        if (n < range.first_group || n >= range.last_group) continue;
        const T b = y[column(n, 0) * kPitch + k];
#pragma unroll
        for (int i = 0; i < 4; ++i) at[n][i] += a[i] * b;
      }
    }
  }
};

struct TensorCores {
  using T = float;
  using Stored = uint16_t;
  static constexpr int kPitch = kDepth + 8;  // the same group of eight rows lies in different banks

  static __device__ __forceinline__ int row(int i) { return 16 * warp_of() + lane_of() / 4 + i / 2 * 8; }
  static __device__ __forceinline__ int column(int n, int i) { return 8 * n + 2 * (lane_of() % 4) + i % 2; }
  static __device__ __forceinline__ uint16_t stored(float x) { return BFloat16(x).bits; }
  static __device__ __forceinline__ void multiply_add(float (&at)[8][4], const uint16_t* x, const uint16_t* y,
                                                      const Range& range) {
    const int lane = lane_of();
    for (int k = range.first; k < range.last; k += 16) {
      uint32_t a[4];
      load_matrices<false>(a, x + (16 * warp_of() + lane % 16) * kPitch + k + lane / 16 * 8);
#pragma unroll
      for (int n = 0; n < 8; n += 2) {
        if (n < range.first_group || n >= range.last_group) continue;
        uint32_t b[4];
        load_matrices<false>(b, y + (8 * n + lane / 16 * 8 + lane % 8) * kPitch + k + lane / 8 % 2 * 8);
        const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
        mma_bf16_16x8x16(at[n], a, low);
        mma_bf16_16x8x16(at[n + 1], a, high);
      }
    }
  }
};

template <class A>
struct Tile {
  typename A::T at[8][4];

  __device__ __forceinline__ void clear() {
    each([](int, int, typename A::T& x) { x = 0; });
  }
  // Calls f(row, column, element) for the thread's elements.
  template <class F>
  __device__ __forceinline__ void each(F&& f) {
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) f(A::row(i), A::column(n, i), at[n][i]);
  }
  // to += from(row, column, element of the other tile).
  template <class F>
  __device__ __forceinline__ void add(const Tile& other, F&& from) {
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) at[n][i] += from(A::row(i), A::column(n, i), other.at[n][i]);
  }
};

// Both operands of a product, or two matrices of chunk x chunk.
template <class T>
struct Strips {
  T at[2][kRows][kDepth + 1];
};
template <class A>
__device__ __forceinline__ typename A::Stored* strip(Strips<typename A::T>& s, int side) {
  return reinterpret_cast<typename A::Stored*>(&s.at[side][0][0]);
}

// Which of an operand's elements are neighbours in memory.
enum class Along { depth, rows };

// Elements f(row, k) of `rows` x `depth`, both multiples of 16.
template <class A, Along kAlong, class F>
__device__ __forceinline__ void stage(typename A::Stored* to, int rows, int depth, F&& f) {
  for (int i = static_cast<int>(threadIdx.x); i < rows * depth; i += kBlock) {
    const int r = kAlong == Along::depth ? i / depth : i % rows, k = kAlong == Along::depth ? i % depth : i / rows;
    to[r * A::kPitch + k] = A::stored(f(r, k));
  }
}

// tile(r, c) += sum over k < depth of x(r, k) y(c, k), for columns below `columns`. All threads come here; barriers are inside.
template <class A, Along kX, Along kY, class X, class Y>
__device__ __forceinline__ void multiply(Tile<A>& tile, Strips<typename A::T>& s, int64_t columns, int64_t depth, X&& x,
                                         Y&& y) {
  using T = typename A::T;
  const int wide = in_steps(columns);
  for (int64_t k0 = 0; k0 < depth; k0 += kDepth) {
    const int count = static_cast<int>(smaller(kDepth, depth - k0)), steps = in_steps(count);
    __syncthreads();
    stage<A, kX>(strip<A>(s, 0), kRows, steps, [&](int r, int k) { return k < count ? x(r, k0 + k) : T(0); });
    stage<A, kY>(strip<A>(s, 1), wide, steps,
                 [&](int c, int k) { return k < count && c < columns ? y(c, k0 + k) : T(0); });
    __syncthreads();
    A::multiply_add(tile.at, strip<A>(s, 0), strip<A>(s, 1), {0, wide / 8, 0, steps});
  }
}

}  // namespace weft::cuda::recurrence
