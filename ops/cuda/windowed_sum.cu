// Sums of the last W elements along the n of [outer, n, inner], in f64, rounded once per element; a sum restarts where neighbours
// are of different segments. As on the CPU (ops/cpu/windowed_sum.cpp), n is cut into blocks of W, and a window is the end of one
// block and the beginning of the next; blocks are independent here, so all of them run at once, a thread per column and block.
// "Step" s counts in the order of summation: element n - 1 - s if that is reversed.
#include "ops/cuda/cut.h"
#include "ops/cuda/kernel.cuh"
#include "ops/cuda/reduce.h"

namespace weft::cuda {

namespace {

template <class T>
struct WindowJob {
  const T* x;
  T* y;
  const int32_t* segments;  // [outer, n] or null
  double* ends;             // [outer, n, inner]: sums from each step to the end of its block, or to that of its segment
  int64_t outer, n, inner, window, num_blocks;
  bool is_reverse;

  __device__ __forceinline__ int64_t place(int64_t step) const { return is_reverse ? n - 1 - step : step; }
  __device__ __forceinline__ bool restarts(int64_t row, int64_t step) const {
    if (!segments || step == 0) return false;
    const int32_t* at = segments + row * n;
    return at[place(step)] != at[place(step - 1)];
  }
};

// What a thread works on: one column of the steps [begin, end) of a block.
struct WindowItem {
  int64_t row, base, begin, end;
};
template <class T>
__device__ __forceinline__ WindowItem window_item(const WindowJob<T>& job, int64_t item) {
  const int64_t column = item % job.inner, block = item / job.inner, row = block / job.num_blocks;
  const int64_t begin = block % job.num_blocks * job.window;
  return {row, row * job.n * job.inner + column, begin, job.n - begin < job.window ? job.n : begin + job.window};
}

template <class T>
__global__ void __launch_bounds__(kThreads) window_ends(WindowJob<T> job) {
  const int64_t items = job.outer * job.num_blocks * job.inner;
  for (int64_t i = thread_index(); i < items; i += thread_count()) {
    const WindowItem item = window_item(job, i);
    if (item.end == job.n) continue;  // no block behind it
    double sum = 0;
    for (int64_t step = item.end - 1; step >= item.begin; --step) {
      const int64_t at = item.base + job.place(step) * job.inner;
      sum += static_cast<double>(to_compute(job.x[at]));
      job.ends[at] = sum;
      if (job.restarts(item.row, step)) sum = 0;
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) window_sums(WindowJob<T> job) {
  const int64_t items = job.outer * job.num_blocks * job.inner;
  for (int64_t i = thread_index(); i < items; i += thread_count()) {
    const WindowItem item = window_item(job, i);
    // Where the segment of the block's first step begins, or a step that no window of the block reaches.
    int64_t first = item.begin;
    while (first > 0 && item.begin - first < job.window && !job.restarts(item.row, first)) --first;
    double sum = 0;
    for (int64_t step = item.begin; step < item.end; ++step) {
      if (job.restarts(item.row, step)) {
        first = step;
        sum = 0;
      }
      const int64_t at = item.base + job.place(step) * job.inner;
      sum += static_cast<double>(to_compute(job.x[at]));
      const int64_t reached = step - job.window + 1, low = reached > first ? reached : first;
      const double all = low < item.begin ? job.ends[item.base + job.place(low) * job.inner] + sum : sum;
      job.y[at] = from_compute<T>(static_cast<Compute<T>>(all));
    }
  }
}

}  // namespace

void windowed_sum(Tensor& y, const Tensor& x, int dim, const ops::CumsumOptions& options) {
  Tensor source = dense(x), ends = Tensor::empty(x.shape(), kF64, x.device());
  Cut c;
  cut(source, dim, dim + 1, c);
  with_floating(x.dtype(), "cumsum", [&]<class T>() {
    const WindowJob<T> job{.x = source.data<T>(),
                           .y = y.mutable_data<T>(),
                           .segments = options.segments.defined() ? options.segments.data<int32_t>() : nullptr,
                           .ends = ends.mutable_data<double>(),
                           .outer = c.outer,
                           .n = c.n,
                           .inner = c.inner,
                           .window = options.window,
                           .num_blocks = (c.n + options.window - 1) / options.window,
                           .is_reverse = options.reverse};
    const unsigned grid = grid_of(job.outer * job.num_blocks * job.inner);
    cudaStream_t s = stream(x.device().index);
    launch("cumsum", window_ends<T>, grid, kThreads, 0, s, job);
    launch("cumsum", window_sums<T>, grid, kThreads, 0, s, job);
  });
}

}  // namespace weft::cuda
