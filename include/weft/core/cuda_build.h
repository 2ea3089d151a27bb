// Whether this build has CUDA. Apart from device.h, so that files which do not ask are the same in every build.
#pragma once

namespace weft {

// True in builds with CUDA kernels. Callers write `if constexpr (kCuda) { if (x.is_cuda()) return cuda::f(x); }`.
#ifdef WEFT_WITH_CUDA
inline constexpr bool kCuda = true;
#else
inline constexpr bool kCuda = false;
#endif
// The GPU is played by the CPU, for tests of kernels: never chosen unless asked for.
#ifdef WEFT_CUDA_EMULATED
inline constexpr bool kCudaEmulated = true;
#else
inline constexpr bool kCudaEmulated = false;
#endif

}  // namespace weft
