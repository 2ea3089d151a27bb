// The only door to cuBLASLt. Every thread has a handle and 32 MiB of workspace per device, and keeps the algorithm of each
// shape that it has seen: the same call takes the same kernel and gives the same bits.
#pragma once

#include <string>

#include "ops/gemm_operands.h"
#include "weft/core/device.h"

namespace weft::cuda {

// c = a b + bias + beta c on this thread's stream of `device`, for at most one batch dimension of at most kMaxBatch products.
// f32 is multiplied as f32, never as TF32; bf16 is summed in f32 and rounded once. A bias has the dtype of c and starts at a
// multiple of 16 bytes. False, with nothing done, where cuBLASLt cannot add the bias to this product.
inline constexpr int64_t kMaxBatch = 65535;
bool cublaslt_matmul(const ops::Gemm& g, Device device);

std::string cublaslt_version();  // "13.1.0"

}  // namespace weft::cuda
