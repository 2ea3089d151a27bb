// Rows [D] as kernels read them, for norms, softmax and losses. A row is read by a team of threads: part of a warp if it is
// short, else a whole block. Up to kMostHeld elements stay in registers, so that memory is read once however many passes a
// kernel makes; longer rows are read again in every pass. What a team computes does not depend on the other rows.
#pragma once

#include <limits>

#include "ops/cpu/norm_rows.h"
#include "ops/cuda/kernel.cuh"
#include "ops/math/scalar.h"

namespace weft::cuda {

inline constexpr int kPerThread = 16;            // elements of a row that a thread holds
inline constexpr int64_t kMostHeld = 16 * 1024;  // with the largest block

// W elements are moved at a time; a team has `lanes` threads, or the whole block if that is 0.
template <class T_, int W_, int lanes_, bool is_held_>
struct Layout {
  using T = T_;
  using C = Compute<T>;
  static constexpr int W = W_, lanes = lanes_, groups = kPerThread / W;
  static constexpr bool is_held = is_held_;
  static constexpr int threads = lanes ? kThreads : is_held ? 1024 : 512;  // the most of a block
};

// Calls f<L>() with a layout for rows of `width` elements that are moved one at a time and read again in every pass: these compile in a
// fraction of the time.
template <class T, class F>
void with_simple_layout(int64_t width, F&& f) {
  if (width <= 8 * kPerThread) f.template operator()<Layout<T, 1, 8, false>>();
  else if (width <= 32 * kPerThread) f.template operator()<Layout<T, 1, 32, false>>();
  else f.template operator()<Layout<T, 1, 0, false>>();
}

// Calls f<L>() with the layout for rows of `width` elements. is_wide: all rows may be moved 16 bytes at a time. f64 is for gradient checks.
template <class T, class F>
void with_layout(bool is_wide, int64_t width, int64_t most_held, F&& f) {
  if constexpr (std::is_same_v<T, double>) {
    with_simple_layout<T>(width, f);
  } else if (!is_wide) {
    with_simple_layout<T>(width, f);
  } else {
    constexpr int W = kWide<T>;
    if (width <= 8 * kPerThread) f.template operator()<Layout<T, W, 8, true>>();
    else if (width <= 32 * kPerThread) f.template operator()<Layout<T, W, 32, true>>();
    else if (width <= most_held) f.template operator()<Layout<T, W, 0, true>>();
    else f.template operator()<Layout<T, W, 0, false>>();
  }
}

// Whether the rows at `at` may be moved 16 bytes at a time.
template <class T>
bool is_wide(const T* at, const cpu::Rows& rows) {
  bool fits = is_aligned(at) && rows.width % kWide<T> == 0;
  for (int level = 0; level < cpu::Rows::kLevels; ++level)
    fits = fits && (rows.sizes[level] == 1 || rows.strides[level] % kWide<T> == 0);
  return fits;
}
// Null, or vectors and row-major tensors whose rows are as wide as those that is_wide() was asked for.
template <class... P>
bool are_aligned(const P*... at) {
  return (is_aligned(at) && ...);
}

template <class L>
unsigned threads_of(int64_t width) {
  if (L::lanes || !L::is_held) return L::threads;
  return static_cast<unsigned>((width + 32 * kPerThread - 1) / (32 * kPerThread) * 32);
}
template <class L>
int64_t teams_of_block() {
  return L::lanes ? kThreads / (L::lanes ? L::lanes : 1) : 1;
}

// For kernels of one team per row.
template <class L, class... P, class... A>
void launch_rows(std::string_view op, void (*kernel)(P...), int64_t rows, int64_t width, Device device, A... args) {
  if (rows == 0) return;
  launch(op, kernel, grid_of(rows, teams_of_block<L>()), threads_of<L>(width), 0, stream(device.index), args...);
}

template <class L>
__device__ __forceinline__ int team_lane() {
  if constexpr (L::lanes > 0) return static_cast<int>(threadIdx.x % L::lanes);
  else return static_cast<int>(threadIdx.x);
}
template <class L>
__device__ __forceinline__ int team_size() {
  if constexpr (L::lanes > 0) return L::lanes;
  else return static_cast<int>(blockDim.x);
}
template <class L>
__device__ __forceinline__ int team_index() {  // in the block
  if constexpr (L::lanes > 0) return static_cast<int>(threadIdx.x / L::lanes);
  else return 0;
}

// Calls f(row, is_there) for the rows of this thread's team. Every thread of the block makes the same number of calls, so f may
// reduce over its team; where a block has more teams than there are rows left, is_there is false.
template <class L, class F>
__device__ __forceinline__ void for_team_rows(int64_t count, F&& f) {
  constexpr int64_t teams = L::lanes ? kThreads / (L::lanes ? L::lanes : 1) : 1;
  for (int64_t first = blockIdx.x * teams; first < count; first += gridDim.x * teams) {
    int64_t row = first + team_index<L>();
    f(row, row < count);
  }
}

template <class Index>
__device__ __forceinline__ int64_t offset_by_division(const cpu::Rows& rows, Index row) {
  auto inner = static_cast<Index>(rows.sizes[2]), middle = static_cast<Index>(rows.sizes[1]);
  Index outer = row / inner;
  return static_cast<int64_t>(row % inner) * rows.strides[2] + static_cast<int64_t>(outer % middle) * rows.strides[1] +
         static_cast<int64_t>(outer / middle) * rows.strides[0];
}
// Elements before row `row`.
__device__ __forceinline__ int64_t offset_of(const cpu::Rows& rows, int64_t row) {
  static_assert(cpu::Rows::kLevels == 3);
  if (rows.sizes[0] == 1 && rows.sizes[1] == 1) return row * rows.strides[2];
  return rows.count >> 32 ? offset_by_division(rows, static_cast<uint64_t>(row))
                          : offset_by_division(rows, static_cast<uint32_t>(row));
}

// To global memory in one access. A Group that is stored as such is at times split into its elements by the compiler.
template <class G>
__device__ __forceinline__ void store_one(void* at, G group) {
#ifndef WEFT_CUDA_EMULATED
  if constexpr (sizeof(G) == 16) {
    uint4 words;
    __builtin_memcpy(&words, &group, sizeof words);
    return __stwb(static_cast<uint4*>(at), words);
  } else if constexpr (sizeof(G) == 8) {
    uint2 words;
    __builtin_memcpy(&words, &group, sizeof words);
    return __stwb(static_cast<uint2*>(at), words);
  }
#endif
  *static_cast<G*>(at) = group;
}

// N elements from memory, and to global memory, in accesses of up to 16 bytes; `at` must be aligned to them.
template <class S, class C, int N>
__device__ __forceinline__ void load_group(const S* at, C (&v)[N]) {
  constexpr int P = N < kWide<S> ? N : kWide<S>;
#pragma unroll
  for (int i = 0; i < N; i += P) {
    Group<S, P> part = *reinterpret_cast<const Group<S, P>*>(at + i);
#pragma unroll
    for (int k = 0; k < P; ++k) v[i + k] = static_cast<C>(to_compute(part.at[k]));
  }
}
template <class S, class C, int N>
__device__ __forceinline__ void store_group(S* at, const C (&v)[N]) {
  constexpr int P = N < kWide<S> ? N : kWide<S>;
#pragma unroll
  for (int i = 0; i < N; i += P) {
    Group<S, P> part;
#pragma unroll
    for (int k = 0; k < P; ++k) part.at[k] = from_compute<S>(v[i + k]);
    store_one(at + i, part);
  }
}

struct Same {
  template <class C>
  __device__ C operator()(C x) const {
    return x;
  }
};

// One row as a thread of its team sees it; every element goes through f when it is read.
template <class L, class F = Same>
class Row {
 public:
  using C = typename L::C;
  using T = typename L::T;
  static constexpr int W = L::W;

  __device__ __forceinline__ Row(const T* at, int64_t width, F f = {}) : at_(at), width_(width), f_(f) {
    if constexpr (L::is_held) {
#pragma unroll
      for (int j = 0; j < L::groups; ++j)
        if (first_of(j) < width_) read(first_of(j), held_[j]);
    }
  }

  // Calls g(values, index of the first) for this thread's groups.
  template <class G>
  __device__ __forceinline__ void each(G&& g) const {
    for_groups([&](int64_t first, const C(&v)[W], int) { g(v, first); });
  }
  // The same groups of two rows: g(values, values of other, index of the first).
  template <class G>
  __device__ __forceinline__ void each_with(const Row& other, G&& g) const {
    for_groups([&](int64_t first, const C(&v)[W], int j) {
      if constexpr (L::is_held) {
        g(v, other.held_[j], first);
      } else {
        C u[W];
        other.read(first, u);
        g(v, u, first);
      }
    });
  }

 private:
  __device__ __forceinline__ int64_t first_of(int j) const { return (j * team_size<L>() + team_lane<L>()) * W; }
  __device__ __forceinline__ void read(int64_t first, C (&v)[W]) const {
    load_group(at_ + first, v);
#pragma unroll
    for (int k = 0; k < W; ++k) v[k] = f_(v[k]);
  }
  template <class G>
  __device__ __forceinline__ void for_groups(G&& g) const {
    if constexpr (L::is_held) {
#pragma unroll
      for (int j = 0; j < L::groups; ++j)
        if (first_of(j) < width_) g(first_of(j), held_[j], j);
    } else {
      for (int64_t first = int64_t{team_lane<L>()} * W; first < width_; first += int64_t{team_size<L>()} * W) {
        C v[W];
        read(first, v);
        g(first, v, 0);
      }
    }
  }

  const T* at_;
  int64_t width_;
  F f_;
  C held_[L::is_held ? L::groups : 1][W];
};

// Over the threads of a team; every one gets the result. All threads of the block must come here.
template <class L, class Op>
__device__ __forceinline__ typename L::C team_reduce(typename L::C x, Op op, typename L::C neutral) {
  if constexpr (L::lanes == 0) {
    return block_reduce(x, op, neutral);
  } else {
#pragma unroll
    for (int offset = L::lanes / 2; offset > 0; offset /= 2) x = op(x, __shfl_xor_sync(0xffffffffu, x, offset));
    return x;
  }
}
template <class L>
__device__ __forceinline__ typename L::C team_sum(typename L::C x) {
  return team_reduce<L>(x, AddOf{}, 0);
}

}  // namespace weft::cuda
