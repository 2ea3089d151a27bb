// Mixture over depth; equations in ops/cpu/depth.cpp. A block has a row: its warps share the dot products of the sources, then its threads
// the columns. The gradient of the direction is summed over rows in two stages, in the same order in every run.
#include "ops/cuda/depth.h"
#include "ops/cuda/kernel.cuh"
#include "ops/math/scalar.h"
#include "weft/core/error.h"

namespace weft::cuda {

namespace {

constexpr int kMostSources = 256, kMostQueries = 64, kRowThreads = 128, kWarps = kRowThreads / 32;

// The arrays of pointers, as an argument of the kernel.
template <class T, class C>
struct Sources {
  const T* values[kMostSources];
  const C* scales[kMostSources];
  T* outs[kMostQueries];
  const T* douts[kMostQueries];
  int count = 0, queries = 0;
  bool has_scales = false;
};

template <class T, class C>
Sources<T, C> on_host(const cpu::DepthArgs<T, C>& args) {
  WEFT_CHECK(args.sources <= kMostSources && args.queries <= kMostQueries,
             str("depth_mix: ", args.sources, " sources for ", args.queries, " queries on a GPU"),
             str("use at most ", kMostSources, " sources and ", kMostQueries,
                 " queries: fewer layers, sums of blocks, smaller groups"));
  Sources<T, C> s;
  s.count = static_cast<int>(args.sources);
  s.queries = static_cast<int>(args.queries);
  s.has_scales = args.scales != nullptr;
  for (int i = 0; i < s.count; ++i) {
    s.values[i] = args.values[i];
    s.scales[i] = s.has_scales ? args.scales[i] : nullptr;
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

template <class T, class C>
__global__ void __launch_bounds__(kRowThreads)
    mix_rows_backward(cpu::DepthArgs<T, C> args, __grid_constant__ const Sources<T, C> s, int64_t rows) {
  __shared__ C da[kMostSources];
  const int64_t D = args.width;
  for (int64_t item = blockIdx.x; item < rows * s.queries; item += gridDim.x) {
    const int64_t row = item / s.queries;
    const T* dout = s.douts[item % s.queries] + row * D;
    for (int i = threadIdx.x / 32; i < s.count; i += kWarps) {
      C with_dout = dot(s.values[i] + row * D, dout, D);
      if (threadIdx.x % 32 == 0) da[i] = with_dout;
    }
    __syncthreads();
    const C* a = args.weights + item * s.count;
    C total = 0;
    for (int i = 0; i < s.count; ++i) total += a[i] * da[i];
    if (args.totals) total = args.totals[item];
    for (int i = threadIdx.x; i < s.count; i += blockDim.x)
      args.dscores[item * s.count + i] = args.is_sigmoid ? da[i] * a[i] * (C(1) - a[i]) : a[i] * (da[i] - total);
    __syncthreads();
  }
}

// A source's readings, as an argument of the kernel.
template <class T, class C>
struct Readings {
  const T* douts[kMostSources];
  const C* weights[kMostSources];
  const C* dscores[kMostSources];
  const C* directions[kMostSources];
  int64_t strides[kMostSources];
  int count = 0;
};

template <class T, class C>
__global__ void __launch_bounds__(kRowThreads)
    gather_rows(cpu::DepthSourceArgs<T, C> args, __grid_constant__ const Readings<T, C> r, int64_t rows) {
  __shared__ C a[kMostSources], ds[kMostSources];
  const int64_t D = args.width;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    for (int q = threadIdx.x; q < r.count; q += blockDim.x) {
      a[q] = r.weights[q][row * r.strides[q]];
      ds[q] = r.dscores[q][row * r.strides[q]];
    }
    __syncthreads();
    const C scale = args.scale ? args.scale[row] : C(1);
    C with_directions = 0;
    for (int64_t c = threadIdx.x; c < D; c += blockDim.x) {
      C from_outs = 0, from_scores = 0;
      for (int q = 0; q < r.count; ++q) {
        from_outs += a[q] * to_compute(r.douts[q][row * D + c]);
        from_scores += ds[q] * r.directions[q][c];
      }
      with_directions += from_scores * to_compute(args.value[row * D + c]);
      args.dvalue[row * D + c] = from_compute<T>(from_outs + scale * from_scores);
    }
    with_directions = block_sum(with_directions);
    if (args.dscale && threadIdx.x == 0) args.dscale[row] = with_directions;
    __syncthreads();
  }
}

// partial [chunks, S, D]: sums over a chunk of rows; a thread has a column of a query. Block (chunk, columns).
template <class T, class C>
__global__ void __launch_bounds__(kThreads)
    sum_direction(cpu::DepthArgs<T, C> args, __grid_constant__ const Sources<T, C> s, int64_t rows, int64_t chunk,
                  C* partial) {
  const int64_t begin = int64_t{blockIdx.x} * chunk, end = begin + chunk < rows ? begin + chunk : rows;
  const int64_t columns = args.width * s.queries;
  for (int64_t at = int64_t{blockIdx.y} * blockDim.x + threadIdx.x; at < columns;
       at += int64_t{gridDim.y} * blockDim.x) {
    const int64_t q = at / args.width, c = at % args.width;
    C sum = 0;
    for (int64_t row = begin; row < end; ++row)
      for (int i = 0; i < s.count; ++i) {
        const C ds = args.dscores[(row * s.queries + q) * s.count + i];
        sum += (s.has_scales ? ds * s.scales[i][row] : ds) * to_compute(s.values[i][row * args.width + c]);
      }
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
  Tensor partial = Tensor::empty(Shape{chunks, columns}, dtype_of<C>(), device);
  launch("depth_mix_backward", mix_rows_backward<T, C>, grid_of(rows * args.queries, 1), dim3(kRowThreads), 0,
         stream(device.index), args, sources, rows);
  launch("depth_mix_direction", sum_direction<T, C>, dim3(static_cast<unsigned>(chunks), grid_of(columns)),
         dim3(kThreads), 0, stream(device.index), args, sources, rows, chunk, partial.mutable_data<C>());
  launch("depth_mix_sum", sum_chunks<C>, grid_of(columns), dim3(kThreads), 0, stream(device.index), partial.data<C>(),
         chunks, columns, ddirections);
}

template <class T, class C>
void DepthKernels<T, C>::source_backward(const cpu::DepthSourceArgs<T, C>& args, int64_t rows, Device device) {
  WEFT_CHECK(args.readings <= kMostSources, str("depth_mix: a source with ", args.readings, " readers on a GPU"),
             str("use at most ", kMostSources, " readers: fewer layers"));
  Readings<T, C> r;
  r.count = static_cast<int>(args.readings);
  for (int q = 0; q < r.count; ++q) {
    r.douts[q] = args.douts[q], r.weights[q] = args.weights[q], r.dscores[q] = args.dscores[q];
    r.directions[q] = args.directions[q], r.strides[q] = args.strides[q];
  }
  launch("depth_source_backward", gather_rows<T, C>, grid_of(rows, 1), dim3(kRowThreads), 0, stream(device.index), args,
         r, rows);
}

template struct DepthKernels<float, float>;
template struct DepthKernels<BFloat16, float>;
template struct DepthKernels<double, double>;

}  // namespace weft::cuda
