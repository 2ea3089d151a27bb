// Causal depthwise convolution over x [B, T, D], channel by channel; equations in ops/cpu/conv.cpp.
//   y[t] = bias + sum over d of weight[W - 1 - d] x[t - d],   dx[t] = sum over d of weight[W - 1 - d] dy[t + d],
//   dweight[W - 1 - d] = sum over t of dy[t] x[t - d],        dbias = sum over t of dy[t],      0 <= d < W
// where tokens that do not exist or are of another document count as zero.
// A thread goes along a run of tokens for some neighbouring channels and keeps the last few rows, and the weights, in registers.
#include <algorithm>

#include "ops/cuda/conv.h"
#include "ops/cuda/elementwise.h"
#include "ops/cuda/kernel.cuh"
#include "ops/cuda/reduce.h"

namespace weft::cuda {

namespace {

constexpr int kHeld = 4;  // rows in registers

template <class S, class C, int N>
__device__ __forceinline__ void load(const S* at, C (&v)[N]) {
  constexpr int P = N < kWide<S> ? N : kWide<S>;
#pragma unroll
  for (int i = 0; i < N; i += P) {
    const Group<S, P> part = *reinterpret_cast<const Group<S, P>*>(at + i);
#pragma unroll
    for (int k = 0; k < P; ++k) v[i + k] = to_compute(part.at[k]);
  }
}

template <class S, class C, int N>  // up to 16 bytes
__device__ __forceinline__ void store(S* at, const C (&v)[N]) {
  Group<S, N> group;
#pragma unroll
  for (int k = 0; k < N; ++k) group.at[k] = from_compute<S>(v[k]);
  *reinterpret_cast<Group<S, N>*>(at) = group;
}

// Runs of tokens of one batch row, dealt out to threads: channels fastest.
struct Runs {
  int64_t batch, tokens, dim, length;  // tokens of a run
  __host__ __device__ int64_t per_row() const { return (tokens + length - 1) / length; }
  __host__ __device__ int64_t count() const { return batch * per_row(); }
};

// Rows of one batch row that token t may reach in one direction.
template <class T>
struct Source {
  const T* rows;  // of the first token, at this thread's channels
  int64_t stride, tokens;
  const int32_t* documents;  // of this batch row, or null

  // Whether `other` exists and is of t's document.
  __device__ __forceinline__ bool counts(int64_t other, int64_t t) const {
    return 0 <= other && other < tokens && (!documents || documents[other] == documents[t]);
  }
};

// out[t] = bias + sum over d of weight[W - 1 - d] source[t + direction d]. is_held: there are at most kHeld taps.
template <int V, int direction, bool is_held, class T, class C>
__global__ void __launch_bounds__(kThreads)
    convolve(cpu::ConvArgs<T, C> args, const T* source, int64_t stride_batch, int64_t stride_token, Runs runs) {
  const int64_t groups = args.dim / V, items = runs.count() * groups, per_row = runs.per_row(), last = args.taps - 1;
  for (int64_t item = thread_index(); item < items; item += thread_count()) {
    const int64_t channel = item % groups * V, run = item / groups, b = run / per_row;
    const int64_t begin = run % per_row * runs.length;
    const int64_t length = args.tokens - begin < runs.length ? args.tokens - begin : runs.length;
    const Source<T> from{source + b * stride_batch + channel, stride_token, args.tokens,
                         args.documents ? args.documents + b * args.tokens : nullptr};
    C bias[V] = {};
    if (args.bias) load(args.bias + channel, bias);
    // The run is walked away from the tokens it reads, so that each step needs one new row.
    const int64_t first = direction < 0 ? begin : begin + length - 1;
    C held[kHeld][V] = {}, weights[kHeld][V] = {};  // held[d] is the row at distance d
    if constexpr (is_held) {
#pragma unroll
      for (int d = 0; d < kHeld; ++d) {
        if (d > last) continue;
        load(args.weight + (last - d) * args.dim + channel, weights[d]);
        const int64_t other = first + direction * d;
        if (d > 0 && 0 <= other && other < args.tokens)
          load(from.rows + other * stride_token, held[d > 0 ? d - 1 : 0]);  // the first step moves it up
      }
    }
    for (int64_t i = 0; i < length; ++i) {
      const int64_t t = first - direction * i;
      C sum[V];
#pragma unroll
      for (int k = 0; k < V; ++k) sum[k] = bias[k];
      if constexpr (is_held) {
#pragma unroll
        for (int d = kHeld - 1; d > 0; --d)
#pragma unroll
          for (int k = 0; k < V; ++k) held[d][k] = held[d - 1][k];
        load(from.rows + t * stride_token, held[0]);
#pragma unroll
        for (int d = 0; d < kHeld; ++d)
          if (d <= last && from.counts(t + direction * d, t)) {
#pragma unroll
            for (int k = 0; k < V; ++k) sum[k] += weights[d][k] * held[d][k];
          }
      } else {
        for (int64_t d = 0; d <= last; ++d) {
          if (!from.counts(t + direction * d, t)) continue;
          load(from.rows + (t + direction * d) * stride_token, held[0]);
          load(args.weight + (last - d) * args.dim + channel, weights[0]);
#pragma unroll
          for (int k = 0; k < V; ++k) sum[k] += weights[0][k] * held[0][k];
        }
      }
      store(args.out + (b * args.tokens + t) * args.dim + channel, sum);
    }
  }
}

// Sums over each run for distances [kHeld * blockIdx.y, ..): partial [runs, W (+ 1), D], weights in the order of dweight, then
// the bias.
template <int V, class T, class C>
__global__ void __launch_bounds__(kThreads) sum_runs(cpu::ConvArgs<T, C> args, Runs runs, bool has_bias, C* partial) {
  const int64_t groups = args.dim / V, items = runs.count() * groups, per_row = runs.per_row(), taps = args.taps;
  const int64_t nearest = int64_t{blockIdx.y} * kHeld, stride = args.x_strides[1];
  for (int64_t item = thread_index(); item < items; item += thread_count()) {
    const int64_t channel = item % groups * V, run = item / groups, b = run / per_row;
    const int64_t begin = run % per_row * runs.length;
    const int64_t end = args.tokens - begin < runs.length ? args.tokens : begin + runs.length;
    const Source<T> from{args.x + b * args.x_strides[0] + channel, stride, args.tokens,
                         args.documents ? args.documents + b * args.tokens : nullptr};
    const T* dy = args.dy + b * args.dy_strides[0] + channel;
    C sums[kHeld][V] = {}, bias[V] = {}, held[kHeld][V] = {};
#pragma unroll
    for (int d = 1; d < kHeld; ++d) {
      const int64_t other = begin - nearest - d;
      if (other >= 0) load(from.rows + other * stride, held[d - 1]);  // the first step moves it up
    }
    for (int64_t t = begin; t < end; ++t) {
#pragma unroll
      for (int d = kHeld - 1; d > 0; --d)
#pragma unroll
        for (int k = 0; k < V; ++k) held[d][k] = held[d - 1][k];
      if (t >= nearest) load(from.rows + (t - nearest) * stride, held[0]);
      C v[V];
      load(dy + t * args.dy_strides[1], v);
#pragma unroll
      for (int d = 0; d < kHeld; ++d)
        if (nearest + d < taps && from.counts(t - nearest - d, t)) {
#pragma unroll
          for (int k = 0; k < V; ++k) sums[d][k] += v[k] * held[d][k];
        }
#pragma unroll
      for (int k = 0; k < V; ++k) bias[k] += v[k];
    }
    C* to = partial + run * (taps + has_bias) * args.dim + channel;
#pragma unroll
    for (int d = 0; d < kHeld; ++d)
      if (nearest + d < taps) store(to + (taps - 1 - nearest - d) * args.dim, sums[d]);
    if (has_bias && nearest == 0) store(to + taps * args.dim, bias);
  }
}

// Whether rows at `at` may be moved V elements at a time.
template <int V, class S>
bool fits(const S* at, int64_t stride_batch = 0, int64_t stride_token = 0) {
  return is_aligned(at, std::min<size_t>(16, sizeof(S) * V)) && stride_batch % V == 0 && stride_token % V == 0;
}

template <int direction, class T, class C>
void run_convolve(const cpu::ConvArgs<T, C>& args, const T* source, const int64_t (&strides)[2], int64_t batch,
                  Device device) {
  constexpr int64_t kLength = 8;
  Runs runs{.batch = batch, .tokens = args.tokens, .dim = args.dim, .length = kLength};
  if (batch * args.tokens * args.dim == 0) return;
  auto run = [&]<int V>() {
    auto start = [&](auto* kernel) {
      launch("causal_conv", kernel, grid_of(runs.count() * (args.dim / V)), kThreads, 0, stream(device.index), args,
             source, strides[0], strides[1], runs);
    };
    if (args.taps <= kHeld) start(convolve<V, direction, true, T, C>);
    else start(convolve<V, direction, false, T, C>);
  };
  if constexpr (!std::is_same_v<T, double>) {  // f64 is for gradient checks: one channel at a time
    constexpr int V = kWide<T>;
    if (args.dim % V == 0 && fits<V>(source, strides[0], strides[1]) && fits<V>(args.weight) && fits<V>(args.bias) &&
        fits<V>(args.out))
      return run.template operator()<V>();
  }
  run.template operator()<1>();
}

}  // namespace

template <class T, class C>
void ConvKernels<T, C>::forward(const cpu::ConvArgs<T, C>& args, int64_t batch, Device device) {
  run_convolve<-1>(args, args.x, args.x_strides, batch, device);
}

template <class T, class C>
void ConvKernels<T, C>::backward_input(const cpu::ConvArgs<T, C>& args, int64_t batch, Device device) {
  run_convolve<1>(args, args.dy, args.dy_strides, batch, device);
}

template <class T, class C>
void ConvKernels<T, C>::backward_weight(const cpu::ConvArgs<T, C>& args, int64_t batch, Tensor& dweight,
                                        Tensor& dbias) {
  constexpr int64_t kMostRuns = 2048, kLeastTokens = 32;
  const int64_t W = args.taps, D = args.dim;
  if (D == 0) return;
  if (batch * args.tokens == 0) {
    fill(dweight, 0);
    if (dbias.defined()) fill(dbias, 0);
    return;
  }
  Runs runs{.batch = batch,
            .tokens = args.tokens,
            .dim = D,
            .length = std::max(kLeastTokens, (batch * args.tokens + kMostRuns - 1) / kMostRuns)};
  const bool has_bias = dbias.defined();
  Tensor partial = Tensor::empty({runs.count(), W + has_bias, D}, dtype_of<C>(), dweight.device());
  auto run = [&]<int V>() {
    dim3 grid(grid_of(runs.count() * (D / V)), static_cast<unsigned>((W + kHeld - 1) / kHeld));
    launch("causal_conv_backward", sum_runs<V, T, C>, grid, kThreads, 0, stream_of(dweight), args, runs, has_bias,
           partial.mutable_data<C>());
  };
  bool is_done = false;
  if constexpr (!std::is_same_v<T, double>) {
    constexpr int V = 4;
    is_done = D % V == 0 && fits<V>(args.x, args.x_strides[0], args.x_strides[1]) &&
              fits<V>(args.dy, args.dy_strides[0], args.dy_strides[1]);
    if (is_done) run.template operator()<V>();
  }
  if (!is_done) run.template operator()<1>();
  cuda::reduce(dweight, partial.slice(1, 0, W), 1, Reduction::sum, 1);
  if (has_bias) cuda::reduce(dbias, partial.select(1, W), 1, Reduction::sum, 1);
}

template struct ConvKernels<float, float>;
template struct ConvKernels<BFloat16, float>;
template struct ConvKernels<double, double>;

}  // namespace weft::cuda
