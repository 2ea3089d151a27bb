// Mixture over depth; equations in ops/cpu/depth.cpp. A block has a row: its warps share the dot products of the sources, then its threads
// the columns. The gradient of the direction is summed over rows in two stages, in the same order in every run.
#include "ops/cuda/depth.h"
#include "ops/cuda/kernel.cuh"
#include "ops/math/scalar.h"
#include "weft/core/error.h"

namespace weft::cuda {

namespace {

constexpr int kMostSources = 256, kMostQueries = 64, kMostWeights = 2048, kRowThreads = 128, kWarps = kRowThreads / 32;

// The arrays of pointers, as an argument of the kernel.
template <class T, class C>
struct Sources {
  const T* values[kMostSources];
  const C* scales[kMostSources];
  T* dvalues[kMostSources];
  C* dscales[kMostSources];
  T* outs[kMostQueries];
  const T* douts[kMostQueries];
  int count = 0, queries = 0;
  bool has_scales = false, has_dscales = false;
};

template <class T, class C>
Sources<T, C> on_host(const cpu::DepthArgs<T, C>& args) {
  WEFT_CHECK(
      args.sources <= kMostSources && args.queries <= kMostQueries && args.sources * args.queries <= kMostWeights,
      str("depth_mix: ", args.sources, " sources for ", args.queries, " queries on a GPU"),
      str("use at most ", kMostSources, " sources and ", kMostWeights,
          " weights: fewer layers, sums of blocks, smaller groups"));
  Sources<T, C> s;
  s.count = static_cast<int>(args.sources);
  s.queries = static_cast<int>(args.queries);
  s.has_scales = args.scales != nullptr, s.has_dscales = args.dscales != nullptr;
  for (int i = 0; i < s.count; ++i) {
    s.values[i] = args.values[i];
    s.scales[i] = s.has_scales ? args.scales[i] : nullptr;
    s.dvalues[i] = args.dvalues ? args.dvalues[i] : nullptr;
    s.dscales[i] = s.has_dscales ? args.dscales[i] : nullptr;
  }
  for (int q = 0; q < s.queries; ++q) {
    s.outs[q] = args.outs ? args.outs[q] : nullptr;
    s.douts[q] = args.douts ? args.douts[q] : nullptr;
  }
  return s;
}

template <class X, class Y>
__device__ __forceinline__ auto dot(const X* x, const Y* y, int64_t width) {
  decltype(to_compute(x[0]) * to_compute(y[0])) sum = 0;
  for (int64_t c = threadIdx.x % 32; c < width; c += 32) sum += to_compute(x[c]) * to_compute(y[c]);
  return warp_reduce(sum, AddOf{});
}

template <class T, class C>
__global__ void __launch_bounds__(kRowThreads)
    mix_rows(cpu::DepthArgs<T, C> args, __grid_constant__ const Sources<T, C> s, int64_t rows) {
  __shared__ C a[kMostSources];
  const int64_t D = args.width;
  for (int64_t item = blockIdx.x; item < rows * s.queries; item += gridDim.x) {
    const int64_t row = item / s.queries;
    const int q = static_cast<int>(item % s.queries);
    for (int i = threadIdx.x / 32; i < s.count; i += kWarps) {
      C score = dot(s.values[i] + row * D, args.directions + q * D, D);
      if (threadIdx.x % 32 != 0) continue;
      a[i] = s.has_scales ? score * s.scales[i][row] : score;
      if (i == 0 && args.first_scores) a[0] = args.first_scores[item];
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      C top = a[0], sum = 0;
      for (int i = 1; i < s.count; ++i) top = a[i] > top ? a[i] : top;
      for (int i = 0; i < s.count; ++i) {
        a[i] = args.is_sigmoid ? C(1) / (C(1) + math::exp(-a[i])) : math::exp(a[i] - top);
        sum += a[i];
      }
      for (int i = 0; i < s.count; ++i) {
        if (!args.is_sigmoid) a[i] /= sum;
        args.weights[item * s.count + i] = a[i];
      }
      if (args.lse) args.lse[item] = top + math::log(sum);
    }
    __syncthreads();
    for (int64_t c = threadIdx.x; c < D; c += blockDim.x) {
      C sum = 0;
      for (int i = 0; i < s.count; ++i) sum += a[i] * to_compute(s.values[i][row * D + c]);
      s.outs[q][row * D + c] = from_compute<T>(sum);
    }
    __syncthreads();
  }
}

// pull [rows, S, N] gets what multiplies v_i in the gradient of direction q.
template <class T, class C>
__global__ void __launch_bounds__(kRowThreads)
    mix_rows_backward(cpu::DepthArgs<T, C> args, __grid_constant__ const Sources<T, C> s, int64_t rows, C* pull) {
  __shared__ C da[kMostSources], z[kMostSources], ds[kMostWeights];
  const int64_t D = args.width;
  const int N = s.count, S = s.queries;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const C* weights = args.weights + row * S * N;
    for (int q = 0; q < S; ++q) {
      for (int i = threadIdx.x / 32; i < N; i += kWarps) {
        const T* v = s.values[i] + row * D;
        C with_dout = dot(v, s.douts[q] + row * D, D), with_direction = dot(v, args.directions + q * D, D);
        if (threadIdx.x % 32 == 0) da[i] = with_dout, z[i] = with_direction;
      }
      __syncthreads();
      if (threadIdx.x == 0) {
        const C* a = weights + q * N;
        C total = 0;
        for (int i = 0; i < N; ++i) total += a[i] * da[i];
        if (args.totals) total = args.totals[row * S + q];
        for (int i = 0; i < N; ++i) {
          C d = args.is_sigmoid ? da[i] * a[i] * (C(1) - a[i]) : a[i] * (da[i] - total);
          if (s.has_dscales) s.dscales[i][row] = (q > 0 ? s.dscales[i][row] : C(0)) + d * z[i];
          ds[q * N + i] = s.has_scales ? d * s.scales[i][row] : d;
          pull[(row * S + q) * N + i] = ds[q * N + i];
        }
      }
      __syncthreads();
    }
    for (int64_t c = threadIdx.x; c < D; c += blockDim.x)
      for (int i = 0; i < N; ++i) {
        C sum = 0;
        for (int q = 0; q < S; ++q)
          sum += weights[q * N + i] * to_compute(s.douts[q][row * D + c]) + ds[q * N + i] * args.directions[q * D + c];
        s.dvalues[i][row * D + c] = from_compute<T>(sum);
      }
    __syncthreads();
  }
}

// partial [chunks, S, D]: sums over a chunk of rows; a thread has a column of a query.
template <class T, class C>
__global__ void __launch_bounds__(kThreads)
    sum_direction(cpu::DepthArgs<T, C> args, __grid_constant__ const Sources<T, C> s, int64_t rows, int64_t chunk,
                  const C* pull, C* partial) {
  const int64_t begin = int64_t{blockIdx.x} * chunk, end = begin + chunk < rows ? begin + chunk : rows;
  const int64_t columns = args.width * s.queries;
  for (int64_t at = threadIdx.x; at < columns; at += blockDim.x) {
    const int64_t q = at / args.width, c = at % args.width;
    C sum = 0;
    for (int64_t row = begin; row < end; ++row)
      for (int i = 0; i < s.count; ++i)
        sum += pull[(row * s.queries + q) * s.count + i] * to_compute(s.values[i][row * args.width + c]);
    partial[blockIdx.x * columns + at] = sum;
  }
}

template <class C>
__global__ void __launch_bounds__(kThreads) sum_chunks(const C* partial, int64_t chunks, int64_t width, C* out) {
  for (int64_t c = thread_index(); c < width; c += thread_count()) {
    C sum = 0;
    for (int64_t i = 0; i < chunks; ++i) sum += partial[i * width + c];
    out[c] = sum;
  }
}

}  // namespace

template <class T, class C>
void DepthKernels<T, C>::mix(const cpu::DepthArgs<T, C>& args, int64_t rows, Device device) {
  launch("depth_mix", mix_rows<T, C>, grid_of(rows * args.queries, 1), dim3(kRowThreads), 0, stream(device.index), args,
         on_host(args), rows);
}

template <class T, class C>
void DepthKernels<T, C>::mix_backward(const cpu::DepthArgs<T, C>& args, int64_t rows, C* ddirections, Device device) {
  Sources<T, C> sources = on_host(args);
  const int64_t chunks = rows < 256 ? (rows > 0 ? rows : 1) : 256, chunk = (rows + chunks - 1) / chunks;
  const int64_t columns = args.queries * args.width;
  Tensor pull = Tensor::empty(Shape{rows, args.queries, args.sources}, dtype_of<C>(), device);
  Tensor partial = Tensor::empty(Shape{chunks, columns}, dtype_of<C>(), device);
  launch("depth_mix_backward", mix_rows_backward<T, C>, grid_of(rows, 1), dim3(kRowThreads), 0, stream(device.index),
         args, sources, rows, pull.mutable_data<C>());
  launch("depth_mix_direction", sum_direction<T, C>, dim3(static_cast<unsigned>(chunks)), dim3(kThreads), 0,
         stream(device.index), args, sources, rows, chunk, pull.data<C>(), partial.mutable_data<C>());
  launch("depth_mix_sum", sum_chunks<C>, grid_of(columns), dim3(kThreads), 0, stream(device.index), partial.data<C>(),
         chunks, columns, ddirections);
}

template struct DepthKernels<float, float>;
template struct DepthKernels<BFloat16, float>;
template struct DepthKernels<double, double>;

}  // namespace weft::cuda
