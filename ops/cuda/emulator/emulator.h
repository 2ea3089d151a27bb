// Runs CUDA kernels on the CPU, for tests where there is no GPU: kernel files are compiled as C++, a block's threads are fibers
// of one thread, and barriers and warp functions are rendezvous of fibers. Strict where a GPU is not: a thread that ends while
// others wait at a barrier, lanes of a warp at different functions, and a missing lane are Errors.
// Races, unordered accesses between barriers, are Errors too, and asynchronous copies arrive no sooner than they are waited for
// (ops/cuda/emulator/memory.h). What only Hopper has is in ops/cuda/emulator/hopper.h. It shows nothing about speed. x86-64 only.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "src/core/cuda/emulated_types.h"

namespace weft::cuda::emulator {

inline constexpr int kWarp = 32, kExchangeBytes = 32;

// What a fiber sees of itself.
struct Self {
  dim3 thread, block, block_size, grid;
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
};
extern thread_local const Self* self;

// Calls body() for every thread of every block, `shared_bytes` of memory filled with NaN per block. `op` is for errors.
void run(std::string_view op, dim3 grid, dim3 block, size_t shared_bytes, void* context, void (*body)(void*));
template <class F>
void run(std::string_view op, dim3 grid, dim3 block, size_t shared_bytes, F&& f) {
  run(op, grid, block, shared_bytes, &f, [](void* context) { (*static_cast<std::remove_reference_t<F>*>(context))(); });
}

void block_barrier();
// Gives `bytes` of this lane to the warp and returns every lane's, kExchangeBytes apart, when all have come to the same function.
const unsigned char* warp_exchange(const char* function, const void* mine, int bytes);
int lane();
int warp();

template <class T>
T shuffle(const char* function, T x, int from) {
  static_assert(sizeof(T) <= kExchangeBytes);
  const unsigned char* all = warp_exchange(function, &x, sizeof x);
  T y;
  std::memcpy(&y, all + (from < 0 || from >= kWarp ? lane() : from) * kExchangeBytes, sizeof y);
  return y;
}

void mma_bf16_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void load_matrices(uint32_t (&r)[4], const void* row, bool is_transposed);

// Asynchronous copies of this thread: the target is NaN until copy_wait.
void copy_async(void* shared, const void* global, int bytes, bool is_valid);
void copy_commit();
void copy_wait(int pending);

// This thread is about to change them in one atomic step.
void on_atomic(void* at, size_t bytes);

// Ends the launch with an Error: this thread has done what is never right.
[[noreturn]] void stop(std::string problem);

}  // namespace weft::cuda::emulator

// The language and its built-in names.
#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static thread_local
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
#define __grid_constant__
#define threadIdx (::weft::cuda::emulator::self->thread)
#define blockIdx (::weft::cuda::emulator::self->block)
#define blockDim (::weft::cuda::emulator::self->block_size)
#define gridDim (::weft::cuda::emulator::self->grid)

inline void __syncthreads() { ::weft::cuda::emulator::block_barrier(); }
inline void __syncwarp(unsigned = 0xffffffffu) { ::weft::cuda::emulator::warp_exchange("__syncwarp", nullptr, 0); }
template <class T>
T __shfl_sync(unsigned, T x, int from, int width = 32) {
  int lane = ::weft::cuda::emulator::lane();
  return ::weft::cuda::emulator::shuffle("__shfl_sync", x, lane / width * width + (from & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned, T x, int mask, int = 32) {
  return ::weft::cuda::emulator::shuffle("__shfl_xor_sync", x, ::weft::cuda::emulator::lane() ^ mask);
}
template <class T>
T __shfl_down_sync(unsigned, T x, unsigned by, int width = 32) {
  int lane = ::weft::cuda::emulator::lane(), from = lane + static_cast<int>(by);
  return ::weft::cuda::emulator::shuffle("__shfl_down_sync", x, from / width == lane / width ? from : lane);
}
template <class T>
T __shfl_up_sync(unsigned, T x, unsigned by, int width = 32) {
  int lane = ::weft::cuda::emulator::lane(), from = lane - static_cast<int>(by);
  return ::weft::cuda::emulator::shuffle("__shfl_up_sync", x, from >= lane / width * width ? from : lane);
}
inline unsigned __ballot_sync(unsigned, bool claim) {
  const unsigned char* all = ::weft::cuda::emulator::warp_exchange("__ballot_sync", &claim, 1);
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i) bits |= unsigned{all[i * ::weft::cuda::emulator::kExchangeBytes] != 0} << i;
  return bits;
}
inline bool __any_sync(unsigned mask, bool claim) { return __ballot_sync(mask, claim) != 0; }
inline bool __all_sync(unsigned mask, bool claim) { return __ballot_sync(mask, claim) == 0xffffffffu; }

template <class T>
T __ldg(const T* p) {
  return *p;
}
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return x ? std::countr_zero(static_cast<unsigned>(x)) + 1 : 0; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
inline void sincospi(double x, double* s, double* c) { *s = std::sin(M_PI * x), *c = std::cos(M_PI * x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
// Fibers of one thread: what is left of an atomic step is that it orders nothing.
#define WEFT_UNWATCHED __attribute__((no_sanitize("thread"), noinline))
template <class T>
WEFT_UNWATCHED T atomicAdd(T* to, T x) {
  ::weft::cuda::emulator::on_atomic(to, sizeof(T));
  T old = *to;
  *to += x;
  return old;
}
#undef WEFT_UNWATCHED

namespace weft::cuda {
inline unsigned char* dynamic_shared() { return emulator::self->shared; }
// CUDA's min and max of mixed integers and floats are in the global namespace.
template <class A, class B>
constexpr auto min(A a, B b) {
  return b < a ? b : a;
}
template <class A, class B>
constexpr auto max(A a, B b) {
  return a < b ? b : a;
}
}  // namespace weft::cuda
