// Hopper's barriers in shared memory, which count arrivals and bytes, its copy engine and shares of registers, each with what it does
// for the emulator (PTX manual: mbarrier, cp.async.bulk.tensor, setmaxnreg). Files that include this are compiled for sm_90a alone
// (weft_cuda(... HOPPER ...) in cmake/cuda.cmake).
#pragma once

#include "ops/cuda/ptx.cuh"
#include "ops/cuda/tile_map.h"

namespace weft::cuda {

// The address of shared memory as instructions take it.
__device__ __forceinline__ uint32_t shared_address(const void* at) {
#ifdef WEFT_CUDA_EMULATED
  return emulator::shared_address(at);
#else
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
#endif
}

// A barrier whose phases end when `count` arrivals and the bytes that they announced are there. One thread initialises it; others
// use it after __syncthreads. Phases are waited for by their parity, 0 first; waiting for parity 1 before any phase has ended
// returns at once.
struct SharedBarrier {
  uint64_t state;

  __device__ __forceinline__ void init(int count) {
#ifdef WEFT_CUDA_EMULATED
    emulator::barrier_init(&state, count);
#else
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&state)), "r"(count) : "memory");
#endif
  }
  // What this warp did before its last __syncwarp is seen by who waits.
  __device__ __forceinline__ void arrive() {
#ifdef WEFT_CUDA_EMULATED
    emulator::barrier_arrive(&state, 0);
#else
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&state)) : "memory");
#endif
  }
  // Arrives, and announces copies of so many bytes to this phase.
  __device__ __forceinline__ void arrive_expecting(int bytes) {
#ifdef WEFT_CUDA_EMULATED
    emulator::barrier_arrive(&state, bytes);
#else
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&state)), "r"(bytes)
                 : "memory");
#endif
  }
  __device__ __forceinline__ void wait(unsigned parity) {
#ifdef WEFT_CUDA_EMULATED
    emulator::barrier_wait(&state, parity);
#else
    asm volatile(
        "{.reg .pred has_ended;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 has_ended, [%0], %1;\n"
        "@!has_ended bra again;}" ::"r"(shared_address(&state)),
        "r"(parity)
        : "memory");
#endif
  }
};

// Makes initialised barriers known to the copy engine; then __syncthreads.
__device__ __forceinline__ void fence_barriers() {
#ifndef WEFT_CUDA_EMULATED
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// The box of `map` at (channel, head, token, batch) to shared memory at a multiple of 1024, [rows][64] elements whose groups of 8 are
// permuted by the row as a product wants them; zeros outside of the tensor. One thread asks; `barrier` counts the bytes.
__device__ __forceinline__ void copy_tile(void* to, const TileMap& map, int channel, int head, int token, int batch,
                                          SharedBarrier& barrier) {
#ifdef WEFT_CUDA_EMULATED
  emulator::copy_tile(to, map, {channel, head, token, batch}, &barrier.state);
#else
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
      "[%6];" ::"r"(shared_address(to)),
      "l"(&map), "r"(channel), "r"(head), "r"(token), "r"(batch), "r"(shared_address(&barrier.state))
      : "memory");
#endif
}

// Of all warps of a warpgroup: how many registers each of their threads may have from here on.
template <int count>
__device__ __forceinline__ void take_registers() {
#ifndef WEFT_CUDA_EMULATED
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
#endif
}
template <int count>
__device__ __forceinline__ void give_registers() {
#ifndef WEFT_CUDA_EMULATED
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
#endif
}

}  // namespace weft::cuda
