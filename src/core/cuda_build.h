// Whether this build has CUDA, for `if constexpr` in core and ops. Only targets whose objects depend on it are told (WEFT_CUDA_DEFINITIONS in
// cmake/cuda.cmake), so that all others are compiled alike in every build; they ask has_cuda_kernels() of weft/core/stream.h.
#pragma once

#ifndef WEFT_CUDA_BUILD
#error \
    "this file's target does not know whether the build has CUDA: give it WEFT_CUDA_DEFINITIONS, or ask has_cuda_kernels()"
#endif

namespace weft {

// True in builds with CUDA kernels. Callers write `if constexpr (kCuda) { if (x.is_cuda()) return cuda::f(x); }`.
#ifdef WEFT_WITH_CUDA
inline constexpr bool kCuda = true;
#else
inline constexpr bool kCuda = false;
#endif
#ifdef WEFT_CUDA_EMULATED
inline constexpr bool kCudaEmulated = true;
#else
inline constexpr bool kCudaEmulated = false;
#endif

}  // namespace weft
