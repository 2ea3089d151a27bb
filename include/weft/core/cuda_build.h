// Whether this build has CUDA. This has a header of its own, so that files that do not ask are compiled alike in every build.
#pragma once

namespace weft {

// True in builds with CUDA kernels. Callers write `if constexpr (kCuda) { if (x.is_cuda()) return cuda::f(x); }`.
#ifdef WEFT_WITH_CUDA
inline constexpr bool kCuda = true;
#else
inline constexpr bool kCuda = false;
#endif
// The CPU emulates a GPU, for tests of kernels. An emulated GPU is used only where a caller names it.
#ifdef WEFT_CUDA_EMULATED
inline constexpr bool kCudaEmulated = true;
#else
inline constexpr bool kCudaEmulated = false;
#endif

}  // namespace weft
