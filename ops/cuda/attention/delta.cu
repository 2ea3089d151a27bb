// delta[b, t, h] = dout . out - dlse: eight lanes per row. Rows are [B, T, H] of any strides, f32 or bf16 each, or both f64.
#include "ops/cuda/attention/problem.cuh"

namespace weft::cuda {

namespace attention {
namespace {

// kCount consecutive elements as the computing type.
template <class T, int kCount>
__device__ __forceinline__ void read(T (&to)[kCount], const Operand& x, int64_t at) {
  if (x.is_bf16) {
    auto group = *reinterpret_cast<const Group<BFloat16, kCount>*>(static_cast<const BFloat16*>(x.data) + at);
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = static_cast<T>(static_cast<float>(group.at[i]));
  } else {
    auto group = *reinterpret_cast<const Group<T, kCount>*>(static_cast<const T*>(x.data) + at);
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = group.at[i];
  }
}

template <class T, int kCount>
__global__ void __launch_bounds__(kThreads) delta_rows(Problem p, Operand out, const T* dlse, T* delta, int64_t rows) {
  constexpr int kLanes = 8;
  for (int64_t i0 = thread_index() / 32 * (32 / kLanes); i0 < rows; i0 += thread_count() / kLanes) {
    int64_t i = i0 + threadIdx.x % 32 / kLanes, b = i / (p.queries * p.heads), t = i / p.heads % p.queries;
    T sum = 0;
    if (i < rows) {
      Operand x = p.dout.at(b, i % p.heads), y = out.at(b, i % p.heads);
      for (int64_t c = threadIdx.x % kLanes * kCount; c < p.value_width; c += kLanes * kCount) {
        T u[kCount], v[kCount];
        read(u, x, t * x.token_stride + c), read(v, y, t * y.token_stride + c);
#pragma unroll
        for (int j = 0; j < kCount; ++j) sum += u[j] * v[j];
      }
    }
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (i < rows && threadIdx.x % kLanes == 0) delta[i] = dlse ? sum - dlse[i] : sum;
  }
}

template <class T>
void run_delta(const Problem& p, const Operand& out, const void* dlse, void* delta) {
  constexpr int kMost = 16 / static_cast<int>(sizeof(T));
  int64_t rows = p.batch * p.queries * p.heads;
  bool is_wide = are_rows_wide(p.dout, p.value_width) && are_rows_wide(out, p.value_width);
  auto kernel = is_wide ? delta_rows<T, kMost> : delta_rows<T, 1>;
  launch("attention_delta", kernel, dim3(rows == 0 ? 0 : grid_of(rows, kThreads / 8)), dim3(kThreads), 0, stream_of(p),
         p, out, static_cast<const T*>(dlse), static_cast<T*>(delta), rows);
}

}  // namespace
}  // namespace attention

void attention_delta(const ops::core::Problem& problem, const ops::core::Operand& out, const void* dlse, void* delta) {
  if (problem.compute == kF64) attention::run_delta<double>(problem, out, dlse, delta);
  else attention::run_delta<float>(problem, out, dlse, delta);
}

}  // namespace weft::cuda
