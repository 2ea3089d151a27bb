// What every kernel file shares: the computing type of a storage type, wide loads, sums over a warp and a block in a fixed
// order (the same bits every time), grids, the launch. bf16 is read as float and rounded once when it is stored.
//
// Kernel files also compile as C++ for the emulator (ops/cuda/emulator/emulator.h), which runs blocks and threads on the CPU where there
// is no GPU. For that they use launch() instead of <<<>>>, dynamic_shared() instead of an extern array, PTX only in ptx.cuh,
// hopper.cuh and wgmma.cuh (with a plain version beside it; rounding to bf16 is in weft/core/dtype.h), warp functions with all 32 lanes present, and no library of device code.
#pragma once

#include <cstdint>
#include <string_view>

#ifdef WEFT_CUDA_EMULATED
#include "ops/cuda/emulator/emulator.h"
#endif
#include "src/core/cuda/problems.h"
#include "src/core/cuda/runtime.h"
#include "weft/core/dry_run.h"
#include "weft/core/tensor.h"

namespace weft::cuda {

template <class T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::type;  // float for f32 and bf16, double for f64

template <class T>
__device__ __forceinline__ Compute<T> to_compute(T x) {
  return static_cast<Compute<T>>(x);
}
template <class T>
__device__ __forceinline__ T from_compute(Compute<T> x) {
  return T(x);
}

// N consecutive elements, moved as one access of up to 16 bytes. The address must be aligned to sizeof(Group).
template <class T, int N>
struct alignas(sizeof(T) * N) Group {
  T at[N];
};
template <class T>
inline constexpr int kWide = 16 / static_cast<int>(sizeof(T));  // elements of the widest access

inline bool is_aligned(const void* p, size_t bytes = 16) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

// Calls f<T>() for the type of a floating tensor.
template <class F>
void with_floating(DType dtype, std::string_view op, F&& f) {
  with_type<float, BFloat16, double>(dtype, op,
                                     [&](auto tag) { f.template operator()<typename decltype(tag)::type>(); });
}

inline constexpr int kThreads = 256;

// Blocks for n items at `per_block` each; never more than a loop over the grid needs to keep a GPU busy.
inline unsigned grid_of(int64_t n, int64_t per_block = kThreads, int64_t most = 132 * 32) {
  int64_t blocks = (n + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks > most ? most : blocks);
}

__device__ __forceinline__ int64_t thread_index() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int64_t thread_count() { return int64_t{gridDim.x} * blockDim.x; }

struct AddOf {
  template <class C>
  __device__ C operator()(C a, C b) const {
    return a + b;
  }
};
struct MaxOf {  // NaN wins
  template <class C>
  __device__ C operator()(C a, C b) const {
    return a != a ? a : a > b ? a : b;
  }
};

template <class C, class Op>
__device__ __forceinline__ C warp_reduce(C x, Op op) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x = op(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;  // in every lane
}

// Over a block of up to 1024 threads (a multiple of 32); every thread gets the result. All threads must come here.
template <class C, class Op>
__device__ __forceinline__ C block_reduce(C x, Op op, C neutral) {
  __shared__ C partial[32];
  __shared__ C whole;
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  x = warp_reduce(x, op);
  if (lane == 0) partial[warp] = x;
  __syncthreads();
  if (warp == 0) {
    x = warp_reduce(lane < warps ? partial[lane] : neutral, op);
    if (lane == 0) whole = x;
  }
  __syncthreads();
  C result = whole;
  __syncthreads();  // the memory is free for the next call
  return result;
}
template <class C>
__device__ __forceinline__ C block_sum(C x) {
  return block_reduce(x, AddOf{}, C(0));
}

// Memory of the block whose size is given to launch(), aligned to 128 bytes.
#ifndef WEFT_CUDA_EMULATED
extern __shared__ __align__(128) unsigned char weft_shared_memory[];
__device__ __forceinline__ unsigned char* dynamic_shared() { return weft_shared_memory; }
#endif

// Starts kernel(args...) on the stream; Error that names `op` if that fails.
//   launch("rms_norm", rms_norm_kernel<T>, rows, kThreads, 0, stream_of(y), x, w, y, n);
template <class... P, class... A>
void launch(std::string_view op, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            A... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || is_dry_run()) return;
  note_launch(op, int64_t{grid.x} * grid.y * grid.z, int64_t{block.x} * block.y * block.z, shared_bytes);
#ifdef WEFT_CUDA_EMULATED
  emulator::run(op, grid, block, shared_bytes, [&] { kernel(static_cast<P>(args)...); });
  check_launch(op, stream);
#else
  // The limit without asking is 48 KiB, static memory included.
  if (shared_bytes > 32 * 1024)
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          op);
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<P>(args)...);
  check_launch(op, stream);
#endif
}

}  // namespace weft::cuda
