#include "ops/cuda/matmul.h"

#ifdef WEFT_CUDA_EMULATED

#include "ops/cpu/matmul.h"
#include "src/core/cuda/runtime.h"

namespace weft::cuda {

// The emulated device's memory is host memory, and there is no kernel of ours to try here.
void matmul(Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bias, double beta) {
  DeviceAccess access;
  cpu::matmul(out, a, b, bias, beta);
}

}  // namespace weft::cuda

#else

#include <algorithm>

#include "ops/cuda/cublaslt.h"
#include "ops/cuda/elementwise.h"

namespace weft::cuda {

namespace {

using ops::Gemm;

Tensor dense_copy(const Tensor& x) {
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  copy(y, x);
  return y;
}

// out = bias + beta out. Without beta out is not read, and bias arrives in it unrounded.
void start_with_bias(Tensor& out, const Tensor& bias, double beta) {
  if (beta == 0) {
    if (bias.defined()) copy(out, bias);
    else fill(out, 0);
    return;
  }
  if (beta != 1) scale(out, beta);
  if (bias.defined()) scaled_add(out, bias, 1);
}

// A bias that cuBLASLt may be able to add itself: one call, where it lies as wide loads want it.
bool may_fuse_bias(const Gemm& g) {
  return g.num_batch_dims <= 1 && g.num_products() <= kMaxBatch && g.in == g.out && g.in != kF64 && g.beta == 0 &&
         reinterpret_cast<uintptr_t>(g.bias) % 16 == 0;
}

// The innermost batch dimension is a strided batch; the outer ones, and parts of more than kMaxBatch, are a loop.
void run_batches(const Gemm& g, Device device) {
  if (g.num_batch_dims == 0) {
    cublaslt_matmul(g, device);
    return;
  }
  auto last = static_cast<size_t>(g.num_batch_dims - 1);
  int64_t count = g.batch[last];
  Gemm outer = g;
  outer.num_batch_dims = static_cast<int>(last);
  for (int64_t i = 0; i < outer.num_products(); ++i) {
    Gemm row = product(outer, i);  // its steps through the innermost dimension go first
    row.num_batch_dims = 1;
    row.a_step[0] = g.a_step[last], row.b_step[0] = g.b_step[last], row.c_step[0] = g.c_step[last];
    row.batch[0] = count;
    for (int64_t begin = 0; begin < count; begin += kMaxBatch) {
      Gemm part = product(row, begin);
      part.num_batch_dims = 1;
      part.batch[0] = std::min(kMaxBatch, count - begin);
      cublaslt_matmul(part, device);
    }
  }
}

}  // namespace

void matmul(Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bias, double beta) {
  if (out.num_elements() == 0) return;
  if (a.size(-1) == 0) return start_with_bias(out, bias, beta);
  ops::GemmCall call(out, a, b, bias, beta, dense_copy);
  Gemm& g = call.gemm;
  if (g.bias) {
    if (may_fuse_bias(g) && cublaslt_matmul(g, out.device())) return;
    start_with_bias(out, bias, beta);
    g.bias = nullptr;
    g.beta = 1;
  }
  run_batches(g, out.device());
}

}  // namespace weft::cuda

#endif
