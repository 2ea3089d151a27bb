// Single instructions that C++ has no word for, each with what it does for the emulator (ops/cuda/emulator/emulator.h).
#pragma once

#include "ops/cuda/kernel.cuh"

namespace weft::cuda {

// x, computed here. Otherwise the compiler computes what follows from x before all loops, and holds it in registers until the last one.
__device__ __forceinline__ int made_here(int x) {
#ifndef WEFT_CUDA_EMULATED
  asm volatile("" : "+r"(x));
#endif
  return x;
}

// *from in global memory, or 0 if it is not wanted, without a branch: so that several loads are on their way together.
template <class T>
__device__ __forceinline__ T load_if(const T* from, bool is_wanted) {
#ifdef WEFT_CUDA_EMULATED
  return is_wanted ? *from : T(0);
#else
  const int p = is_wanted;
  T x;
  if constexpr (sizeof(T) == 1) {
    uint16_t wide;
    asm volatile("{.reg .pred p; setp.ne.s32 p, %2, 0; mov.b16 %0, 0; @p ld.global.u8 %0, [%1];}"
                 : "=h"(wide)
                 : "l"(from), "r"(p)
                 : "memory");
    x = static_cast<T>(wide);
  } else if constexpr (sizeof(T) == 2)
    asm volatile("{.reg .pred p; setp.ne.s32 p, %2, 0; mov.b16 %0, 0; @p ld.global.b16 %0, [%1];}"
                 : "=h"(reinterpret_cast<uint16_t&>(x))
                 : "l"(from), "r"(p)
                 : "memory");
  else if constexpr (sizeof(T) == 4)
    asm volatile("{.reg .pred p; setp.ne.s32 p, %2, 0; mov.b32 %0, 0; @p ld.global.b32 %0, [%1];}"
                 : "=r"(reinterpret_cast<uint32_t&>(x))
                 : "l"(from), "r"(p)
                 : "memory");
  else
    asm volatile("{.reg .pred p; setp.ne.s32 p, %2, 0; mov.b64 %0, 0; @p ld.global.b64 %0, [%1];}"
                 : "=l"(reinterpret_cast<uint64_t&>(x))
                 : "l"(from), "r"(p)
                 : "memory");
  return x;
#endif
}

// 16 bytes from global to shared memory without passing registers; complete after copy_wait. Zeros if !is_valid.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, bool is_valid = true) {
#ifdef WEFT_CUDA_EMULATED
  emulator::copy_async(shared, global, 16, is_valid);
#else
  auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  int bytes = is_valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
#endif
}
// The same for 4 bytes.
__device__ __forceinline__ void copy_async_4(void* shared, const void* global, bool is_valid = true) {
#ifdef WEFT_CUDA_EMULATED
  emulator::copy_async(shared, global, 4, is_valid);
#else
  auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  int bytes = is_valid ? 4 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
#endif
}
__device__ __forceinline__ void copy_commit() {
#ifdef WEFT_CUDA_EMULATED
  emulator::copy_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until at most `pending` of this thread's committed groups are under way.
template <int pending>
__device__ __forceinline__ void copy_wait() {
#ifdef WEFT_CUDA_EMULATED
  emulator::copy_wait(pending);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

// d[16, 8] += a[16, 16] b[16, 8], bf16 in, float out, by the whole warp. With g = lane / 4 and t = lane % 4 a lane holds
//   a: {(g, 2t), (g, 2t+1)}, {(g+8, ..)}, {(g, 2t+8), ..}, {(g+8, 2t+8), ..}   pairs along k, low half first
//   b: {(2t, g), (2t+1, g)}, {(2t+8, g), (2t+9, g)}                            pairs along k
//   d: (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1)
__device__ __forceinline__ void mma_bf16_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef WEFT_CUDA_EMULATED
  emulator::mma_bf16_16x8x16(d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Four 8x8 matrices of 16-bit numbers from shared memory. Lane i gives the address of row i % 8 of matrix i / 8 (16 bytes, so
// aligned); r[m] of a lane is the pair (row lane / 4, columns 2 (lane % 4) and next) of matrix m; transposed: of its transpose.
template <bool is_transposed>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
#ifdef WEFT_CUDA_EMULATED
  emulator::load_matrices(r, row, is_transposed);
#else
  auto from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (is_transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
#endif
}

// Two floats rounded to bf16, `low` in the lower half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
#ifdef WEFT_CUDA_EMULATED
  return uint32_t{BFloat16(low).bits} | uint32_t{BFloat16(high).bits} << 16;
#else
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
#endif
}

}  // namespace weft::cuda
