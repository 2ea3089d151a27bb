// The only door to cuBLASLt. Every thread has a handle and 32 MiB of workspace per device, and keeps the algorithm of each
// shape that it has seen: the same call takes the same kernel and gives the same bits.
#pragma once

#include <string>

#include "ops/gemm_operands.h"
#include "weft/core/device.h"

namespace weft::cuda {

// c = a b + bias + beta c on this thread's stream of `device`, for at most one batch dimension of at most kMaxBatch products.
// f32 is multiplied as f32, never as TF32; bf16 is summed in f32 and rounded once. A bias has the dtype of c and starts at a
// multiple of 16 bytes. False, with nothing done, where cuBLASLt cannot add the bias to this product or has no
// kernel with the epilogue.
//
// An epilogue does more in the same pass, for one product without beta. Its memory starts at a multiple of 16 bytes; its rows of the
// dtype of c are `ld` apart, a multiple of 8.
//   gelu           c = gelu_tanh(a b + bias); a b + bias goes to `at` [m, n]
//   gelu_backward  c = (a b) * gelu_tanh'(at), at [m, n]
//   row_sums       c = a b, and `at` [m] = sum over k of a[m, k], of the dtype of c
struct Epilogue {
  enum Kind { none, gelu, gelu_backward, row_sums } kind = none;
  void* at = nullptr;
  int64_t ld = 0;
};
inline constexpr int64_t kMaxBatch = 65535;
bool cublaslt_matmul(const ops::Gemm& g, Device device, const Epilogue& epilogue = {});

std::string cublaslt_version();  // "13.1.0"

}  // namespace weft::cuda
