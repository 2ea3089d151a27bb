// One product by cuBLASLt called directly, past the library's own door to it (ops/cuda/gemm/cublaslt.h): the limit of `weft bench gemm`.
// Only in builds with CUDA proper.
#pragma once

#include <functional>

#include "weft/core/tensor.h"

namespace weft::bench {

// A call of c = a b + beta c on this thread's stream. a [M, K] and b [K, N] are bf16 or f32 in one of the two plain layouts, c [M, N] is
// row-major. Making it times the kernels that cuBLASLt proposes, which writes to c; the call runs the fastest of them.
std::function<void()> cublaslt_route(const Tensor& a, const Tensor& b, const Tensor& c, double beta);

}  // namespace weft::bench
