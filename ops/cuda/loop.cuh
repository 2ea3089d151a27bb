// The loops of elementwise kernels. A body works on one element at given offsets (in elements, output first), and on W dense
// ones at once; the loop collapses dimensions and walks broadcast and strided operands.
//   struct Body { void one(const int64_t (&at)[N]) const; template <int W> void wide(int64_t i) const; };   // __device__
//   each<2>("exp", y.shape(), {&y, &x}, MapBody{...}, is_wide, stream);
#pragma once

#include <array>

#include "ops/cuda/kernel.cuh"

namespace weft::cuda {

template <int N>
struct Walk {
  int num_dims = 0;
  int64_t sizes[kMaxDims];       // innermost first
  int64_t strides[kMaxDims][N];  // 0 where an operand is repeated

  __device__ void locate(int64_t i, int64_t (&at)[N]) const {
#pragma unroll
    for (int k = 0; k < N; ++k) at[k] = 0;
    for (int d = 0; d < num_dims; ++d) {
      int64_t rest = i / sizes[d], index = i - rest * sizes[d];
      i = rest;
#pragma unroll
      for (int k = 0; k < N; ++k) at[k] += index * strides[d][k];
    }
  }
  bool is_dense() const {
    for (int k = 0; k < N && num_dims > 0; ++k)
      if (strides[0][k] != 1) return false;
    return num_dims <= 1;
  }
};

// Operands broadcast to `shape`; sizes of 1 are dropped and neighbours merged that every operand walks as one.
template <int N>
Walk<N> make_walk(const Shape& shape, const std::array<const Tensor*, N>& operands) {
  Walk<N> walk;
  for (int d = shape.num_dims() - 1; d >= 0; --d) {
    if (shape[d] == 1) continue;
    int64_t strides[N];
    bool merges = walk.num_dims > 0;
    for (int k = 0; k < N; ++k) {
      const Tensor& t = *operands[static_cast<size_t>(k)];
      int own = d - (shape.num_dims() - t.num_dims());
      strides[k] = own < 0 || t.shape()[own] == 1 ? 0 : t.strides()[own];
      if (merges) merges = strides[k] == walk.strides[walk.num_dims - 1][k] * walk.sizes[walk.num_dims - 1];
    }
    if (merges) {
      walk.sizes[walk.num_dims - 1] *= shape[d];
      continue;
    }
    walk.sizes[walk.num_dims] = shape[d];
    for (int k = 0; k < N; ++k) walk.strides[walk.num_dims][k] = strides[k];
    ++walk.num_dims;
  }
  return walk;
}

template <int N, class Body>
__global__ void strided_loop(Walk<N> walk, Body body, int64_t n) {
  for (int64_t i = thread_index(); i < n; i += thread_count()) {
    int64_t at[N];
    walk.locate(i, at);
    body.one(at);
  }
}

template <int N, int W, class Body>
__global__ void dense_loop(Body body, int64_t n) {
  for (int64_t i = thread_index() * W; i < n; i += thread_count() * W) {
    if (W > 1 && i + W <= n) {
      body.template wide<W>(i);
      continue;
    }
    for (int64_t j = i; j < i + W && j < n; ++j) {
      int64_t at[N];
#pragma unroll
      for (int k = 0; k < N; ++k) at[k] = j;
      body.one(at);
    }
  }
}

// kWide elements at once where `is_aligned` and every operand is dense.
template <int N, int kAtOnce, class Body>
void each(std::string_view op, const Shape& shape, const std::array<const Tensor*, N>& operands, const Body& body,
          bool is_aligned, cudaStream_t stream) {
  int64_t n = shape.num_elements();
  if (n == 0) return;
  Walk<N> walk = make_walk<N>(shape, operands);
  if (walk.is_dense() && is_aligned)
    launch(op, dense_loop<N, kAtOnce, Body>, grid_of(n, int64_t{kThreads} * kAtOnce), kThreads, 0, stream, body, n);
  else launch(op, strided_loop<N, Body>, grid_of(n), kThreads, 0, stream, walk, body, n);
}

template <int W, class T>
__device__ __forceinline__ Group<T, W> load_group(const T* p, int64_t i) {
  return *reinterpret_cast<const Group<T, W>*>(p + i);
}
template <int W, class T>
__device__ __forceinline__ void store_group(T* p, int64_t i, const Group<T, W>& x) {
  *reinterpret_cast<Group<T, W>*>(p + i) = x;
}

}  // namespace weft::cuda
