// Tensor::zeros and Tensor::full of dense CUDA tensors.
#include "src/core/cuda/problems.h"
#include "src/core/cuda/runtime.h"
#include "weft/core/dry_run.h"

namespace weft {

namespace {

template <class T>
__global__ void fill(T* x, int64_t n, T value) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x)
    x[i] = value;
}

}  // namespace

void cuda_fill(Tensor& t, double value) {
  int64_t n = t.num_elements();
  if (n == 0 || is_dry_run()) return;
  cudaStream_t stream = cuda::stream_of(t);
  void* data = t.mutable_raw();
  if (value == 0) return cuda::check(cudaMemsetAsync(data, 0, t.num_bytes(), stream), "zeros");
  constexpr int kThreads = 256;
  auto blocks = static_cast<unsigned>(std::min<int64_t>((n + kThreads - 1) / kThreads, 16384));
  with_type<float, BFloat16, double, int64_t, int32_t, uint8_t, bool>(t.dtype(), "full", [&](auto tag) {
    using T = typename decltype(tag)::type;
    T x;
    if constexpr (std::is_same_v<T, BFloat16>) x = BFloat16(static_cast<float>(value));
    else x = static_cast<T>(value);
    fill<T><<<blocks, kThreads, 0, stream>>>(static_cast<T*>(data), n, x);
  });
  cuda::note_launch("full");
  cuda::check_launch("full", stream);
}

}  // namespace weft
