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

// No cuBLASLt, no epilogues.
bool linear_gelu(Tensor&, Tensor&, const Tensor&, const Tensor&, const Tensor&) { return false; }
bool matmul_gelu_backward(Tensor&, const Tensor&, const Tensor&, const Tensor&) { return false; }
bool matmul_row_sums(Tensor&, Tensor&, const Tensor&, const Tensor&) { return false; }

}  // namespace weft::cuda

#else

#include <algorithm>

#include "ops/cuda/elementwise.h"
#include "ops/cuda/gemm/cublaslt.h"

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

namespace {

// One product of two-dimensional views with an epilogue. Sizes of zero are for the caller's single ops.
bool run_with(const Epilogue& epilogue, Tensor out, const Tensor& a, const Tensor& b, const Tensor& bias) {
  if (out.num_elements() == 0 || a.size(-1) == 0) return false;
  ops::GemmCall call(out, a, b, bias, 0, dense_copy);
  const Gemm& g = call.gemm;
  auto is_aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  // f32 is for checks: how exact the library's tanh is does not matter to bf16 alone.
  if (epilogue.kind != Epilogue::row_sums && g.in != kBF16) return false;
  if (g.num_products() != 1 || g.in == kF64 || !is_aligned(g.bias) || !is_aligned(epilogue.at)) return false;
  return cublaslt_matmul(g, out.device(), epilogue);
}

}  // namespace

bool linear_gelu(Tensor& y, Tensor& inner, const Tensor& x, const Tensor& weight_t, const Tensor& bias) {
  const int64_t in = x.size(-1), out = y.size(-1);
  Tensor rows = (x.is_contiguous() ? x : dense_copy(x)).reshape({-1, in});
  return run_with({Epilogue::gelu, inner.mutable_raw(), out}, y.reshape({-1, out}), rows, weight_t, bias);
}
bool matmul_gelu_backward(Tensor& out, const Tensor& a, const Tensor& b, const Tensor& inner) {
  // Only read.
  return run_with({Epilogue::gelu_backward, const_cast<void*>(inner.raw()), inner.size(-1)}, out, a, b, {});
}
bool matmul_row_sums(Tensor& out, Tensor& sums, const Tensor& a, const Tensor& b) {
  return run_with({Epilogue::row_sums, sums.mutable_raw(), 0}, out, a, b, {});
}

}  // namespace weft::cuda

#endif
