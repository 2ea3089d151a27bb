// Sums, means and maxima over any dimensions: one group of neighbouring dimensions at a time, x seen as [outer, n, inner].
// A thread joins a few elements in f32 (f64 for f64) and adds that to a sum in f64; threads, blocks and parts of n are joined
// in f64. How n is cut depends on the shape only, so every GPU gives the same bits.
#include <algorithm>
#include <bit>
#include <vector>

#include "ops/cuda/cut.h"
#include "ops/cuda/kernel.cuh"
#include "ops/cuda/reduce.h"

namespace weft::cuda {

namespace {

// Where results go: `scale` times a result, in any floating dtype.
struct Result {
  void* data = nullptr;
  DType dtype = kF64;
  double scale = 1;

  __device__ __forceinline__ void store(int64_t i, double x) const {
    x *= scale;
    if (dtype == DType::float64) static_cast<double*>(data)[i] = x;
    else if (dtype == DType::float32) static_cast<float*>(data)[i] = static_cast<float>(x);
    else static_cast<BFloat16*>(data)[i] = BFloat16(static_cast<float>(x));
  }
};

template <class R, class C>
__device__ __forceinline__ C neutral_of() {
  return std::is_same_v<R, AddOf> ? C(0) : -C(INFINITY);
}

// Pairs, then pairs of pairs: a short chain of operations.
template <class R, int N, class C>
__device__ __forceinline__ C join_all(const C* v) {
  if constexpr (N == 1) return v[0];
  else return R{}(join_all<R, N / 2>(v), join_all<R, N / 2>(v + N / 2));
}

// What one thread of `lanes` finds in x[0 .. n): wide accesses between the first and the last 16-byte boundary.
template <class T, class R>
__device__ __forceinline__ double reduce_run(const T* x, int64_t n, int lane, int lanes) {
  using C = Compute<T>;
  constexpr int W = kWide<T>, kBatch = 4;
  int64_t head = static_cast<int64_t>((16 - reinterpret_cast<uintptr_t>(x) % 16) % 16 / sizeof(T));
  if (head > n) head = n;
  const auto* body = reinterpret_cast<const Group<T, W>*>(x + head);
  const int64_t groups = (n - head) / W;
  double total = neutral_of<R, double>();
  for (int64_t i = lane; i < head; i += lanes) total = R{}(total, static_cast<double>(to_compute(x[i])));
  int64_t g = lane;
  for (; g + (kBatch - 1) * lanes < groups; g += kBatch * lanes) {
    Group<T, W> parts[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) parts[b] = body[g + b * lanes];
    C v[kBatch * W];
#pragma unroll
    for (int i = 0; i < kBatch * W; ++i) v[i] = to_compute(parts[i / W].at[i % W]);
    total = R{}(total, static_cast<double>(join_all<R, kBatch * W>(v)));
  }
  for (; g < groups; g += lanes) {
    Group<T, W> part = body[g];
    C v[W];
#pragma unroll
    for (int k = 0; k < W; ++k) v[k] = to_compute(part.at[k]);
    total = R{}(total, static_cast<double>(join_all<R, W>(v)));
  }
  for (int64_t i = head + groups * W + lane; i < n; i += lanes)
    total = R{}(total, static_cast<double>(to_compute(x[i])));
  return total;
}

struct RowsJob {
  int64_t rows, n, stride;      // of x: elements with stride 1
  int64_t parts = 1, part = 0;  // of a row: how many, elements of each
  Result out;                   // [rows, parts]
};

// A team of `lanes` threads per part of a row; the whole block if that is 0.
template <class T, class R, int lanes>
__global__ void __launch_bounds__(kThreads) reduce_rows(const T* x, RowsJob job) {
  constexpr int size = lanes > 0 ? lanes : kThreads, teams = kThreads / size;
  const int lane = static_cast<int>(threadIdx.x) % size, team = static_cast<int>(threadIdx.x) / size;
  const int64_t items = job.rows * job.parts;
  for (int64_t first = int64_t{blockIdx.x} * teams; first < items; first += int64_t{gridDim.x} * teams) {
    const int64_t item = first + team;
    const bool is_there = item < items;
    const int64_t row = is_there ? item / job.parts : 0, begin = is_there ? item % job.parts * job.part : job.n;
    const int64_t n = job.n - begin < job.part ? job.n - begin : job.part;
    double total = reduce_run<T, R>(x + row * job.stride + begin, n, lane, size);
    if constexpr (lanes > 0) {
#pragma unroll
      for (int offset = lanes / 2; offset > 0; offset /= 2)
        total = R{}(total, __shfl_xor_sync(0xffffffffu, total, offset));
    } else {
      total = block_reduce(total, R{}, neutral_of<R, double>());
    }
    if (is_there && lane == 0) job.out.store(item, total);
  }
}

struct ColumnsJob {
  int64_t outer, n, inner, stride_outer, stride_n;  // of x: inner with stride 1
  int64_t strips = 1, parts = 1, part = 0;          // strips of columns; parts of n: how many, rows of each
  Result out;                                       // [outer, parts, inner]
};

// A block per strip of columns and part of n: threads side by side take W columns each, threads behind one another every
// blockDim.y-th row. blockDim.y is a power of two.
template <class T, class R, int W>
__global__ void __launch_bounds__(kThreads) reduce_columns(const T* x, ColumnsJob job) {
  using C = Compute<T>;
  __shared__ double joined[W * kThreads];
  constexpr int kBatch = 4;
  const int threads = static_cast<int>(blockDim.x * blockDim.y);
  const int me = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  const int64_t items = job.outer * job.parts * job.strips, step = blockDim.y;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t column = (item % job.strips * blockDim.x + threadIdx.x) * W, block = item / job.strips;
    const int64_t first = block % job.parts * job.part, outer = block / job.parts;
    const int64_t rows = job.n - first < job.part ? job.n - first : job.part;
    double total[W];
#pragma unroll
    for (int k = 0; k < W; ++k) total[k] = neutral_of<R, double>();
    if (column < job.inner) {
      const T* at = x + outer * job.stride_outer + first * job.stride_n + column;
      int64_t r = threadIdx.y;
      for (; r + (kBatch - 1) * step < rows; r += kBatch * step) {
        Group<T, W> parts[kBatch];
#pragma unroll
        for (int b = 0; b < kBatch; ++b)
          parts[b] = *reinterpret_cast<const Group<T, W>*>(at + (r + b * step) * job.stride_n);
#pragma unroll
        for (int k = 0; k < W; ++k) {
          C v[kBatch];
#pragma unroll
          for (int b = 0; b < kBatch; ++b) v[b] = to_compute(parts[b].at[k]);
          total[k] = R{}(total[k], static_cast<double>(join_all<R, kBatch>(v)));
        }
      }
      for (; r < rows; r += step) {
        Group<T, W> part = *reinterpret_cast<const Group<T, W>*>(at + r * job.stride_n);
#pragma unroll
        for (int k = 0; k < W; ++k) total[k] = R{}(total[k], static_cast<double>(to_compute(part.at[k])));
      }
    }
#pragma unroll
    for (int k = 0; k < W; ++k) joined[k * threads + me] = total[k];
    for (int half = static_cast<int>(blockDim.y) / 2; half > 0; half /= 2) {
      __syncthreads();
      if (static_cast<int>(threadIdx.y) >= half) continue;
#pragma unroll
      for (int k = 0; k < W; ++k) {
        double* mine = joined + k * threads + me;
        *mine = R{}(*mine, mine[half * static_cast<int>(blockDim.x)]);
      }
    }
    if (threadIdx.y == 0 && column < job.inner)
      for (int k = 0; k < W; ++k) job.out.store(block * job.inner + column + k, joined[k * threads + me]);
    __syncthreads();  // the memory is free for the next item
  }
}

constexpr int64_t kItems = 1024;  // blocks that keep a large GPU busy

// Cuts n into at most `most` parts of a multiple of `unit`.
void divide(int64_t n, int64_t most, int64_t unit, int64_t& parts, int64_t& part) {
  most = std::max<int64_t>(most, 1);
  part = ((n + most - 1) / most + unit - 1) / unit * unit;
  parts = (n + part - 1) / part;
}

int64_t power_of_two_above(int64_t n) { return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(n))); }

template <class T, class R>
void reduce_cut(const T* x, const Cut& c, const Result& out, Device device);

template <class T, class R>
void reduce_cut_rows(const T* x, const Cut& c, const Result& out, Device device) {
  constexpr int64_t kWhole = 16 * 1024, kLeast = 8 * 1024;  // elements
  RowsJob job{.rows = c.outer, .n = c.n, .stride = c.stride_outer, .out = out};
  divide(c.n, c.n <= kWhole ? 1 : std::min(kItems / c.outer, c.n / kLeast), 64, job.parts, job.part);
  Tensor partial;
  if (job.parts > 1) {
    partial = Tensor::empty({c.outer, job.parts}, kF64, device);
    job.out = Result{.data = partial.mutable_raw()};
  }
  auto run = [&](auto* kernel, int64_t teams) {
    launch("reduce", kernel, grid_of(c.outer * job.parts, teams), kThreads, 0, stream(device.index), x, job);
  };
  if (c.n <= 64) run(reduce_rows<T, R, 8>, kThreads / 8);
  else if (c.n <= 2048) run(reduce_rows<T, R, 32>, kThreads / 32);
  else run(reduce_rows<T, R, 0>, 1);
  if (job.parts == 1) return;
  Cut rest{.outer = c.outer, .n = job.parts, .stride_outer = job.parts, .stride_n = 1};
  reduce_cut<double, R>(partial.data<double>(), rest, out, device);
}

template <class T, class R>
void reduce_cut_columns(const T* x, const Cut& c, const Result& out, Device device) {
  constexpr int64_t kWhole = 512, kLeast = 64;  // rows
  constexpr int wide = std::is_same_v<T, double> ? 1 : kWide<T>;
  bool is_wide = is_aligned(x) && c.inner % wide == 0 && c.stride_n % wide == 0 && c.stride_outer % wide == 0;
  int64_t width = is_wide ? wide : 1;
  ColumnsJob job{
      .outer = c.outer, .n = c.n, .inner = c.inner, .stride_outer = c.stride_outer, .stride_n = c.stride_n, .out = out};
  // A warp side by side and eight deep, unless there are fewer columns or rows.
  int64_t deep = power_of_two_above((c.n + 3) / 4);
  int64_t side = std::min(power_of_two_above((c.inner + width - 1) / width), kThreads / std::min<int64_t>(deep, 8));
  deep = std::min(deep, kThreads / side);
  job.strips = (c.inner + side * width - 1) / (side * width);
  divide(c.n, c.n <= kWhole ? 1 : std::min(kItems / (c.outer * job.strips), c.n / kLeast), 4 * deep, job.parts,
         job.part);
  Tensor partial;
  if (job.parts > 1) {
    partial = Tensor::empty({c.outer, job.parts, c.inner}, kF64, device);
    job.out = Result{.data = partial.mutable_raw()};
  }
  auto run = [&](auto* kernel) {
    launch("reduce", kernel, grid_of(c.outer * job.parts * job.strips, 1),
           dim3(static_cast<unsigned>(side), static_cast<unsigned>(deep)), 0, stream(device.index), x, job);
  };
  if (is_wide) run(reduce_columns<T, R, wide>);
  else run(reduce_columns<T, R, 1>);
  if (job.parts == 1) return;
  Cut rest{.outer = c.outer,
           .n = job.parts,
           .inner = c.inner,
           .stride_outer = job.parts * c.inner,
           .stride_n = c.inner,
           .stride_inner = 1};
  reduce_cut<double, R>(partial.data<double>(), rest, out, device);
}

template <class T, class R>
void reduce_cut(const T* x, const Cut& c, const Result& out, Device device) {
  (c.inner == 1 ? reduce_cut_rows<T, R> : reduce_cut_columns<T, R>)(x, c, out, device);
}

// The kernels want stride 1 along n (then inner is 1) or along inner. A column of rows [outer, n] may also be read as inner.
bool fit_to_kernels(Cut& c) {
  if (c.inner == 1 && (c.n == 1 || c.stride_n == 1)) return true;
  if (c.inner == 1 && c.stride_outer == 1) {
    c.inner = c.outer;
    c.stride_inner = 1;
    c.outer = 1;
    c.stride_outer = 0;
  }
  return c.inner > 1 && c.stride_inner == 1;
}

// Reduces dimensions [begin, end) of x, which is at least one element, into row-major `out`.
void reduce_group(Tensor& out, const Tensor& x, int begin, int end, Reduction kind, double scale) {
  Cut c;
  if (!cut(x, begin, end, c) || !fit_to_kernels(c)) {
    Tensor copied = Tensor::empty(x.shape(), x.dtype(), x.device());
    copy(copied, x);
    return reduce_group(out, copied, begin, end, kind, scale);
  }
  Result result{.data = out.mutable_raw(), .dtype = out.dtype(), .scale = scale};
  with_floating(x.dtype(), "reduce", [&]<class T>() {
    (kind == Reduction::sum ? reduce_cut<T, AddOf> : reduce_cut<T, MaxOf>)(x.data<T>(), c, result, x.device());
  });
}

}  // namespace

void reduce(Tensor& out, const Tensor& x, unsigned reduced, Reduction kind, double scale) {
  auto is_reduced = [&](int d) { return (reduced >> d & 1u) != 0; };
  int end = x.num_dims();
  while (end > 0 && !is_reduced(end - 1)) --end;
  if (end == 0) {  // nothing to reduce
    Tensor view = out.reshape(x.shape());
    return copy(view, x);
  }
  int begin = end;
  while (begin > 0 && (is_reduced(begin - 1) || x.shape()[begin - 1] == 1)) --begin;
  unsigned left = reduced & ((1u << begin) - 1);
  if (left == 0) return reduce_group(out, x, begin, end, kind, scale);
  // The last group first; kept as dimensions of size 1 so that the other bits stay valid.
  Shape shape = x.shape();
  for (int d = begin; d < end; ++d) shape[d] = 1;
  Tensor partial = Tensor::empty(shape, x.dtype() == kF64 ? kF64 : kF32, x.device());
  reduce_group(partial, x, begin, end, kind, 1);
  cuda::reduce(out, partial, left, kind, scale);
}

namespace {

// Calls f(x[i]) for this thread's share of the elements of a grid.
template <class T, class F>
__device__ __forceinline__ void for_elements(const T* x, int64_t n, F&& f) {
  constexpr int W = kWide<T>;
  int64_t head = static_cast<int64_t>((16 - reinterpret_cast<uintptr_t>(x) % 16) % 16 / sizeof(T));
  if (head > n) head = n;
  const auto* body = reinterpret_cast<const Group<T, W>*>(x + head);
  const int64_t groups = (n - head) / W, me = thread_index(), threads = thread_count();
  for (int64_t i = me; i < head; i += threads) f(to_compute(x[i]));
#pragma unroll 4
  for (int64_t g = me; g < groups; g += threads) {
    Group<T, W> part = body[g];
#pragma unroll
    for (int k = 0; k < W; ++k) f(to_compute(part.at[k]));
  }
  for (int64_t i = head + groups * W + me; i < n; i += threads) f(to_compute(x[i]));
}

template <class T>
__global__ void __launch_bounds__(kThreads) squares(const T* x, int64_t n, double* sums) {
  double sum = 0;
  for_elements(x, n, [&](Compute<T> v) { sum = fma(static_cast<double>(v), static_cast<double>(v), sum); });
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads) find_not_finite(const T* x, int64_t n, int32_t* found) {
  bool is_found = false;
  for_elements(x, n, [&](Compute<T> v) { is_found |= v - v != 0; });  // NaN for what is not finite
  if (is_found) *found = 1;                                           // whoever writes, writes the same
}

constexpr int64_t kElementsOfBlock = 8 * 1024, kMostBlocks = 1056;

}  // namespace

double sum_of_squares(std::span<const Tensor> all) {
  std::vector<unsigned> blocks;  // of each tensor
  unsigned num_blocks = 0;
  for (const Tensor& x : all) {
    blocks.push_back(x.num_elements() > 0 ? grid_of(x.num_elements(), kElementsOfBlock, kMostBlocks) : 0);
    num_blocks += blocks.back();
  }
  if (num_blocks == 0) return 0;
  Tensor sums = Tensor::empty(Shape{num_blocks}, kF64, all[0].device());
  double* next = sums.mutable_data<double>();
  for (size_t i = 0; i < all.size(); ++i) {
    if (blocks[i] == 0) continue;
    Tensor source = dense(all[i]);
    with_floating(source.dtype(), "sum_of_squares", [&]<class T>() {
      launch("sum_of_squares", squares<T>, blocks[i], kThreads, 0, stream_of(source), source.data<T>(),
             source.num_elements(), next);
    });
    next += blocks[i];
  }
  std::vector<double> host(num_blocks);
  copy_bytes(host.data(), sums.raw(), sums.num_bytes(), Device::cpu(), all[0].device());
  double total = 0;
  const double* at = host.data();
  for (unsigned count : blocks) {
    double sum = 0;
    for (unsigned b = 0; b < count; ++b) sum += *at++;
    total += sum;
  }
  return total;
}

bool all_finite(const Tensor& x) {
  if (x.num_elements() == 0) return true;
  Tensor source = dense(x), found = Tensor::zeros({1}, kI32, x.device());
  int64_t n = x.num_elements();
  with_floating(x.dtype(), "all_finite", [&]<class T>() {
    launch("all_finite", find_not_finite<T>, grid_of(n, kElementsOfBlock, kMostBlocks), kThreads, 0, stream_of(x),
           source.data<T>(), n, found.mutable_data<int32_t>());
  });
  int32_t host = 0;
  copy_bytes(&host, found.raw(), sizeof host, Device::cpu(), x.device());
  return host == 0;
}

}  // namespace weft::cuda
