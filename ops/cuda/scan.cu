// cumsum: running sums in f64 over the n of [outer, n, inner], rounded once per element; a sum restarts where neighbours are of
// different segments. n is cut into chunks: first every chunk's own sum, then the sum before each chunk, then the elements.
// How it is cut depends on the shape only. "Step" s counts in the order of summation: element n - 1 - s if that is reversed.
#include <algorithm>

#include "ops/cuda/cut.h"
#include "ops/cuda/kernel.cuh"
#include "ops/cuda/reduce.h"

namespace weft::cuda {

namespace {

// The sum of some steps: since the last restart among them, if there is one.
struct Partial {
  double sum;
  int32_t has_restart;
};
__device__ __forceinline__ Partial join(const Partial& before, const Partial& x) {
  return {x.has_restart ? x.sum : before.sum + x.sum, before.has_restart | x.has_restart};
}

template <class T>
struct Job {
  const T* x;
  T* y;
  const int32_t* segments;  // [outer, n] or null
  Partial* chunks;  // [outer, num_chunks, inner]: sums of the chunks, then what is before each; null for one chunk
  int64_t outer, n, inner, num_chunks, chunk;
  bool is_reverse, is_exclusive;

  __device__ __forceinline__ int64_t place(int64_t step) const { return is_reverse ? n - 1 - step : step; }
  __device__ __forceinline__ bool restarts(int64_t row, int64_t step) const {
    if (!segments || step == 0) return false;
    const int32_t* at = segments + row * n;
    return at[place(step)] != at[place(step - 1)];
  }
  __device__ __forceinline__ void store(int64_t at, double sum) const {
    y[at] = from_compute<T>(static_cast<Compute<T>>(sum));
  }
};

// A thread per column of a chunk. is_first: the chunks' sums only.
template <class T, bool is_first>
__global__ void __launch_bounds__(kThreads) scan_columns(Job<T> job) {
  constexpr int kBatch = 4;
  const int64_t items = job.outer * job.num_chunks * job.inner;
  for (int64_t item = thread_index(); item < items; item += thread_count()) {
    const int64_t column = item % job.inner, block = item / job.inner;
    const int64_t row = block / job.num_chunks, begin = block % job.num_chunks * job.chunk;
    const int64_t end = job.n - begin < job.chunk ? job.n : begin + job.chunk;
    const int64_t base = row * job.n * job.inner + column;
    Partial total{0, 0};
    if (!is_first && job.chunks) total = job.chunks[item];
    for (int64_t step = begin; step < end; step += kBatch) {
      double values[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
        values[b] = step + b < end ? static_cast<double>(to_compute(job.x[base + job.place(step + b) * job.inner])) : 0;
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (step + b >= end) break;
        if (job.restarts(row, step + b)) total = {0, 1};
        const double before = total.sum;
        total.sum += values[b];
        if (!is_first) job.store(base + job.place(step + b) * job.inner, job.is_exclusive ? before : total.sum);
      }
    }
    if (is_first) job.chunks[item] = total;
  }
}

// What is before each chunk, in place of its sum; a thread per column of x.
__global__ void __launch_bounds__(kThreads)
    scan_chunks(Partial* chunks, int64_t outer, int64_t num_chunks, int64_t inner) {
  constexpr int kBatch = 8;
  for (int64_t item = thread_index(); item < outer * inner; item += thread_count()) {
    Partial* at = chunks + item / inner * num_chunks * inner + item % inner;
    Partial before{0, 0};
    for (int64_t first = 0; first < num_chunks; first += kBatch) {
      Partial sums[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
        if (first + b < num_chunks) sums[b] = at[(first + b) * inner];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (first + b >= num_chunks) break;
        at[(first + b) * inner] = before;
        before = join(before, sums[b]);
      }
    }
  }
}

// The sum of the steps of lower threads of the block, and in `all` that of the whole block. All threads must come here.
__device__ __forceinline__ Partial sum_before(Partial mine, Partial& all) {
  constexpr int warps = kThreads / 32;
  __shared__ Partial of_warps[warps];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  auto lower = [](const Partial& p, unsigned by) {
    return Partial{__shfl_up_sync(0xffffffffu, p.sum, by), __shfl_up_sync(0xffffffffu, p.has_restart, by)};
  };
#pragma unroll
  for (unsigned offset = 1; offset < 32; offset *= 2) {
    const Partial other = lower(mine, offset);
    if (lane >= static_cast<int>(offset)) mine = join(other, mine);
  }
  if (lane == 31) of_warps[warp] = mine;
  Partial before = lower(mine, 1);
  if (lane == 0) before = {0, 0};
  __syncthreads();
  Partial of_lower{0, 0};
  all = {0, 0};
#pragma unroll
  for (int w = 0; w < warps; ++w) {
    if (w == warp) of_lower = all;
    all = join(all, of_warps[w]);
  }
  __syncthreads();  // the memory is free for the next call
  return join(of_lower, before);
}

// E steps of a row in the order of summation, moved as one if is_whole: then all exist, and their place is aligned. Zeros and
// nothing for steps from `count` on.
template <class T, int E>
__device__ __forceinline__ void load_steps(const T* row, int64_t low, int count, bool is_whole, bool is_reverse,
                                           T (&v)[E]) {
  Group<T, E> group;
  if (is_whole) group = *reinterpret_cast<const Group<T, E>*>(row + low);
#pragma unroll
  for (int k = 0; k < E; ++k) {
    if (is_whole) v[k] = is_reverse ? group.at[E - 1 - k] : group.at[k];
    else v[k] = k < count ? row[low + (is_reverse ? E - 1 - k : k)] : from_compute<T>(0);
  }
}
template <class T, int E>
__device__ __forceinline__ void store_steps(T* row, int64_t low, int count, bool is_whole, bool is_reverse,
                                            const T (&v)[E]) {
  Group<T, E> group;
#pragma unroll
  for (int k = 0; k < E; ++k) {
    if (is_whole) group.at[k] = is_reverse ? v[E - 1 - k] : v[k];
    else if (k < count) row[low + (is_reverse ? E - 1 - k : k)] = v[k];
  }
  if (is_whole) *reinterpret_cast<Group<T, E>*>(row + low) = group;
}

// inner is 1: a block per chunk of a row, E neighbours per thread. is_wide: they may be moved as one.
template <class T, bool is_first>
__global__ void __launch_bounds__(kThreads) scan_rows(Job<T> job, bool is_wide) {
  constexpr int E = kWide<T>;
  constexpr int64_t kTile = kThreads * E;
  const int64_t items = job.outer * job.num_chunks;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t row = item / job.num_chunks, begin = item % job.num_chunks * job.chunk;
    const int64_t end = job.n - begin < job.chunk ? job.n : begin + job.chunk;
    Partial total{0, 0};
    if (!is_first && job.chunks) total = job.chunks[item];
    for (int64_t tile = begin; tile < end; tile += kTile) {
      const int64_t step = tile + int64_t{threadIdx.x} * E, left = end - step;
      const int count = left < 0 ? 0 : left < E ? static_cast<int>(left) : E;
      const int64_t low = job.is_reverse ? job.n - step - E : step;  // place of the first in memory, if all E exist
      const bool is_whole = is_wide && count == E;
      T v[E];
      load_steps(job.x + row * job.n, low, count, is_whole, job.is_reverse, v);
      Partial parts[E], mine{0, 0};
#pragma unroll
      for (int k = 0; k < E; ++k) {
        parts[k] = {static_cast<double>(to_compute(v[k])), k < count && job.restarts(row, step + k)};
        mine = join(mine, parts[k]);
      }
      Partial all;
      Partial before = join(total, sum_before(mine, all));
      total = join(total, all);
      if constexpr (!is_first) {
#pragma unroll
        for (int k = 0; k < E; ++k) {
          const double previous = parts[k].has_restart ? 0 : before.sum;
          before = join(before, parts[k]);
          v[k] = from_compute<T>(static_cast<Compute<T>>(job.is_exclusive ? previous : before.sum));
        }
        store_steps(job.y + row * job.n, low, count, is_whole, job.is_reverse, v);
      }
    }
    if (is_first && threadIdx.x == 0) job.chunks[item] = total;
  }
}

template <class T>
void scan(Job<T> job, Device device) {
  const bool is_rows = job.inner == 1;
  // Chunks of a size that pays for the first pass over them, as many as keep a GPU busy.
  const int64_t least = is_rows ? 8 * kThreads * kWide<T> : 64;
  const int64_t wanted = is_rows ? 512 / job.outer : 128 * 1024 / (job.outer * job.inner);
  const int64_t most = std::clamp<int64_t>(wanted, 1, (job.n + least - 1) / least);
  const int64_t unit = is_rows ? kThreads * kWide<T> : 1;
  job.chunk = ((job.n + most - 1) / most + unit - 1) / unit * unit;
  job.num_chunks = (job.n + job.chunk - 1) / job.chunk;
  Tensor chunks;
  if (job.num_chunks > 1) {
    const int64_t bytes = job.outer * job.num_chunks * job.inner * static_cast<int64_t>(sizeof(Partial));
    chunks = Tensor::empty({bytes}, kU8, device);
    job.chunks = static_cast<Partial*>(chunks.mutable_raw());
  }
  cudaStream_t s = stream(device.index);
  const bool is_wide = is_aligned(job.x) && is_aligned(job.y) && job.n % kWide<T> == 0;
  auto run = [&](auto* rows_kernel, auto* columns_kernel) {
    if (is_rows) launch("cumsum", rows_kernel, grid_of(job.outer * job.num_chunks, 1), kThreads, 0, s, job, is_wide);
    else launch("cumsum", columns_kernel, grid_of(job.outer * job.num_chunks * job.inner), kThreads, 0, s, job);
  };
  if (job.num_chunks > 1) {
    run(scan_rows<T, true>, scan_columns<T, true>);
    launch("cumsum", scan_chunks, grid_of(job.outer * job.inner), kThreads, 0, s, job.chunks, job.outer, job.num_chunks,
           job.inner);
  }
  run(scan_rows<T, false>, scan_columns<T, false>);
}

}  // namespace

void cumsum(Tensor& y, const Tensor& x, int dim, const ops::CumsumOptions& options) {
  Tensor source = dense(x);
  Cut c;
  cut(source, dim, dim + 1, c);
  with_floating(x.dtype(), "cumsum", [&]<class T>() {
    scan(Job<T>{.x = source.data<T>(),
                .y = y.mutable_data<T>(),
                .segments = options.segments.defined() ? options.segments.data<int32_t>() : nullptr,
                .chunks = nullptr,
                .outer = c.outer,
                .n = c.n,
                .inner = c.inner,
                .num_chunks = 1,
                .chunk = c.n,
                .is_reverse = options.reverse,
                .is_exclusive = options.exclusive},
         x.device());
  });
}

}  // namespace weft::cuda
