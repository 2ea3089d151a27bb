// Products of a block's 64 rows with up to 64 columns, summed over any depth. Elements of both sides are given by functions, pass
// through shared memory in strips of the depth and are summed in registers: on tensor cores for bf16 tensors, else in plain arithmetic.
// Tensor cores multiply numbers of bf16. Where that loses what is wanted, an operand is two of them: itself rounded, and what that leaves.
#pragma once

#include "ops/cuda/ptx.cuh"
#include "ops/cuda/recurrence/kernels.h"

namespace weft::cuda::recurrence {

inline constexpr int kColumns = 64, kDepth = 64;
inline constexpr int kSplitDepth = kDepth / 2;  // the second half of a strip has what rounding left
inline constexpr int kBlock = 128;              // threads

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
  using Element = T;  // of the tensors
  using Stored = T;
  static constexpr bool kRounds = false;
  static constexpr int kPitch = kDepth + 1;

  static __device__ __forceinline__ int first_row() { return 16 * warp_of() + lane_of() / 8; }
  static __device__ __forceinline__ int first_column() { return lane_of() % 8; }
  static __device__ __forceinline__ int row_step(int i) { return 4 * i; }
  static __device__ __forceinline__ int column_step(int n, int) { return 8 * n; }
  static __device__ __forceinline__ T stored(T x) { return x; }
  static __device__ __forceinline__ void multiply_add(T (&at)[8][4], const T* x, const T* y, const Range& range) {
    for (int k = range.first; k < range.last; ++k) {
      T a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = x[(first_row() + row_step(i)) * kPitch + k];
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        if (n < range.first_group || n >= range.last_group) continue;
        const T b = y[(first_column() + column_step(n, 0)) * kPitch + k];
#pragma unroll
        for (int i = 0; i < 4; ++i) at[n][i] += a[i] * b;
      }
    }
  }
};

struct TensorCores {
  using T = float;
  using Element = BFloat16;
  using Stored = uint16_t;
  static constexpr bool kRounds = true;
  static constexpr int kPitch = kDepth + 8;  // the same group of eight rows lies in different banks

  static __device__ __forceinline__ int first_row() { return 16 * warp_of() + lane_of() / 4; }
  static __device__ __forceinline__ int first_column() { return 2 * (lane_of() % 4); }
  static __device__ __forceinline__ int row_step(int i) { return i / 2 * 8; }
  static __device__ __forceinline__ int column_step(int n, int i) { return 8 * n + i % 2; }
  static __device__ __forceinline__ uint16_t stored(float x) { return BFloat16(x).bits; }
  static __device__ __forceinline__ float left(float x) { return x - static_cast<float>(BFloat16(x)); }
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
    const int row = made_here(A::first_row()), column = made_here(A::first_column());
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) f(row + A::row_step(i), column + A::column_step(n, i), at[n][i]);
  }
  // Of columns below `columns` calls change(row, column, element), then put(row, column, element), in groups of 16 columns: what change loads
  // does not wait behind what put stores.
  template <class F, class G>
  __device__ __forceinline__ void each(int64_t columns, F&& change, G&& put) {
    const int row = made_here(A::first_row()), column = made_here(A::first_column());
#pragma unroll
    for (int first = 0; first < 8; first += 2) {
      if (8 * first >= columns) return;
#pragma unroll
      for (int n = first; n < first + 2; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) change(row + A::row_step(i), column + A::column_step(n, i), at[n][i]);
#pragma unroll
      for (int n = first; n < first + 2; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) put(row + A::row_step(i), column + A::column_step(n, i), at[n][i]);
    }
  }
  // Elements of a row times f(row).
  template <class F>
  __device__ __forceinline__ void scale_rows(F&& f) {
    const int row = made_here(A::first_row());
    typename A::T factors[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) factors[i] = f(row + A::row_step(i));
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) at[n][i] *= factors[i];
  }
  // to += from(row, column, element of the other tile).
  template <class F>
  __device__ __forceinline__ void add(const Tile& other, F&& from) {
    const int row = made_here(A::first_row()), column = made_here(A::first_column());
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) at[n][i] += from(row + A::row_step(i), column + A::column_step(n, i), other.at[n][i]);
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
// Whether operands are rounded to what the arithmetic multiplies, or are split in two where it rounds.
enum class Operands { rounded, split };
template <class A, Operands kOperands>
inline constexpr bool kIsSplit = kOperands == Operands::split&& A::kRounds;

// Elements f(row, k, true) of `rows` x `depth`, both multiples of 16 up to 64; `depth` at most kSplitDepth if they are split. Half a warp has 16
// neighbours in memory. A thread loads eight elements before it stores the first one, so that it does not wait for each of them.
template <class A, Along kAlong, Operands kOperands = Operands::rounded, class F>
__device__ __forceinline__ void stage(typename A::Stored* to, int rows, int depth, F&& f) {
  constexpr int kNear = 16, kFar = kBlock / kNear, kBatch = 8;
  static_assert(kFar * kBatch == kRows && kRows == kDepth && kColumns <= kRows);
  constexpr bool kIsDepth = kAlong == Along::depth;
  const int near_end = kIsDepth ? depth : rows, far_end = kIsDepth ? rows : depth;
  // The two halves of a warp are four apart: their rows are in different banks.
  const int far = made_here(warp_of() + lane_of() / kNear * (kFar / 2));
#pragma unroll 1
  for (int near = lane_of() % kNear; near < near_end; near += kNear) {
    typename A::T x[kBatch];
#pragma unroll
    for (int n = 0; n < kBatch; ++n) {
      const int other = far + n * kFar;
      x[n] = f(kIsDepth ? other : near, kIsDepth ? near : other, n * kFar < far_end);
    }
#pragma unroll
    for (int n = 0; n < kBatch; ++n) {
      if (n * kFar >= far_end) break;
      const int other = far + n * kFar, r = kIsDepth ? other : near, k = kIsDepth ? near : other;
      to[r * A::kPitch + k] = A::stored(x[n]);
      if constexpr (kIsSplit<A, kOperands>) to[r * A::kPitch + kSplitDepth + k] = A::stored(A::left(x[n]));
    }
  }
}

// Of strips that stage() has filled. The product of what rounding left of both sides is left out: split operands lose parts in 2^18, rounded
// ones in 2^9.
template <class A, Operands kOperands>
__device__ __forceinline__ void multiply_strips(Tile<A>& tile, const typename A::Stored* x, const typename A::Stored* y,
                                                const Range& range) {
  A::multiply_add(tile.at, x, y, range);
  if constexpr (kIsSplit<A, kOperands>) {
    A::multiply_add(tile.at, x, y + kSplitDepth, range);
    A::multiply_add(tile.at, x + kSplitDepth, y, range);
  }
}

// tile(r, c) += sum over k < depth of x(r, k) y(c, k), for columns below `columns`. x and y have a third argument: whether the element is
// wanted; they give 0 if it is not, without a branch. All threads come here; barriers are inside.
template <class A, Along kX, Along kY, Operands kOperands = Operands::rounded, class X, class Y>
__device__ __forceinline__ void multiply(Tile<A>& tile, Strips<typename A::T>& s, int64_t columns, int64_t depth, X&& x,
                                         Y&& y) {
  constexpr int kStep = kIsSplit<A, kOperands> ? kSplitDepth : kDepth;
  const int wide = in_steps(columns), all = static_cast<int>(depth);
  for (int k0 = 0; k0 < all; k0 += kStep) {
    const int count = static_cast<int>(smaller(kStep, all - k0)), steps = in_steps(count);
    __syncthreads();
    stage<A, kX, kOperands>(strip<A>(s, 0), kRows, steps,
                            [&](int r, int k, bool is_wanted) { return x(r, k0 + k, is_wanted && k < count); });
    stage<A, kY, kOperands>(strip<A>(s, 1), wide, steps, [&](int c, int k, bool is_wanted) {
      return y(c, k0 + k, is_wanted && k < count && c < columns);
    });
    __syncthreads();
    multiply_strips<A, kOperands>(tile, strip<A>(s, 0), strip<A>(s, 1), {0, wide / 8, 0, steps});
  }
}

}  // namespace weft::cuda::recurrence
