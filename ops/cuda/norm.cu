// RMSNorm and LayerNorm over rows x [D]; equations in ops/cpu/norm.cpp.
//   forward:  h = (x - m) r, y = h w + b;  m is 0 for RMSNorm
//   backward: g = dy w, dx = r (g - mean(g) - h mean(g h));  without mean(g) for RMSNorm
// The sums over rows (dw of dy h, db of dy) are made in two stages: each block adds up its rows in shared memory and writes one
// row of partial sums, a second kernel adds those in order.
#include <algorithm>

#include "ops/cuda/norm.h"
#include "ops/cuda/rows.cuh"

namespace weft::cuda {

namespace {

template <class L, bool has_mean>
__global__ void __launch_bounds__(L::threads) norm_forward(cpu::NormArgs<typename L::T, typename L::C> args) {
  using C = typename L::C;
  constexpr int W = L::W;
  const int64_t width = args.x_rows.width;
  const C per_element = C(1) / C(width > 0 ? width : 1);
  for_team_rows<L>(args.x_rows.count, [&](int64_t row, bool is_there) {
    const Row<L> x(args.x + offset_of(args.x_rows, row), is_there ? width : 0);
    C mean = 0;
    if constexpr (has_mean) {
      C sum = 0;
      x.each([&](const C(&v)[W], int64_t) {
#pragma unroll
        for (int k = 0; k < W; ++k) sum += v[k];
      });
      mean = team_sum<L>(sum) * per_element;
    }
    C squares = 0;
    x.each([&](const C(&v)[W], int64_t) {
#pragma unroll
      for (int k = 0; k < W; ++k) squares += (v[k] - mean) * (v[k] - mean);
    });
    const C inv = C(1) / math::sqrt(team_sum<L>(squares) * per_element + static_cast<C>(args.eps));
    if (is_there && team_lane<L>() == 0) {
      if constexpr (has_mean) args.mean[row] = mean;
      args.inv[row] = inv;
    }
    x.each([&](const C(&v)[W], int64_t i) {
      C y[W], other[W];
#pragma unroll
      for (int k = 0; k < W; ++k) y[k] = (v[k] - mean) * inv;
      if (args.weight) {
        load_group(args.weight + i, other);
#pragma unroll
        for (int k = 0; k < W; ++k) y[k] *= other[k];
      }
      if (args.bias) {
        load_group(args.bias + i, other);
#pragma unroll
        for (int k = 0; k < W; ++k) y[k] += other[k];
      }
      store_group(args.y + row * width + i, y);
    });
  });
}

// Where a block keeps its sums [kinds, D], dbias before dweight.
template <class C>
struct Sums {
  C* partial = nullptr;  // [blocks, kinds, D]
  bool has_dweight = false, has_dbias = false;
  bool is_shared = false;  // one set per team in shared memory; else the block's row of `partial` itself
  __host__ __device__ int kinds() const { return int{has_dweight} + int{has_dbias}; }
};

// To shared or global memory.
template <class C, int N>
__device__ __forceinline__ void add_group(C* at, const C (&v)[N]) {
  constexpr int P = N < kWide<C> ? N : kWide<C>;
#pragma unroll
  for (int i = 0; i < N; i += P) {
    auto* sums = reinterpret_cast<Group<C, P>*>(at + i);
    Group<C, P> sum = *sums;
#pragma unroll
    for (int k = 0; k < P; ++k) sum.at[k] += v[i + k];
    *sums = sum;
  }
}

// A block sums over more teams than one only in shared memory.
template <class L, bool has_mean>
__global__ void __launch_bounds__(L::lanes ? kThreads : 512)
    norm_backward(cpu::NormBackwardArgs<typename L::T, typename L::C> args, Sums<typename L::C> sums) {
  using C = typename L::C;
  constexpr int W = L::W;
  const int64_t width = args.x_rows.width, length = sums.kinds() * width;
  const C per_element = C(1) / C(width > 0 ? width : 1);
  const int64_t teams = sums.is_shared && L::lanes ? blockDim.x / team_size<L>() : 1;
  C* of_block = sums.is_shared ? reinterpret_cast<C*>(dynamic_shared()) : sums.partial + blockIdx.x * length;
  for (int64_t i = threadIdx.x; i < teams * length; i += blockDim.x) of_block[i] = 0;
  __syncthreads();
  C* dbias = of_block + team_index<L>() * length;
  C* dweight = dbias + (sums.has_dbias ? width : 0);

  for_team_rows<L>(args.x_rows.count, [&](int64_t row, bool is_there) {
    const int64_t here = is_there ? width : 0;
    const Row<L> x(args.x + offset_of(args.x_rows, row), here), dy(args.dy + offset_of(args.dy_rows, row), here);
    const C inv = is_there ? args.inv[row] : C(0);
    C mean = 0;
    if constexpr (has_mean) mean = is_there ? args.mean[row] : C(0);
    auto make = [&](const C(&v)[W], const C(&d)[W], int64_t i, C(&h)[W], C(&g)[W]) {
      C w[W];
      if (args.weight) load_group(args.weight + i, w);
#pragma unroll
      for (int k = 0; k < W; ++k) {
        h[k] = (v[k] - mean) * inv;
        g[k] = args.weight ? d[k] * w[k] : d[k];
      }
    };
    C sum_g = 0, sum_gh = 0;
    x.each_with(dy, [&](const C(&v)[W], const C(&d)[W], int64_t i) {
      C h[W], g[W];
      make(v, d, i, h, g);
      if (sums.has_dbias) add_group(dbias + i, d);
#pragma unroll
      for (int k = 0; k < W; ++k) {
        sum_g += g[k];
        sum_gh += g[k] * h[k];
      }
      if (sums.has_dweight) {
#pragma unroll
        for (int k = 0; k < W; ++k) g[k] = d[k] * h[k];
        add_group(dweight + i, g);
      }
    });
    C shift = 0;
    if constexpr (has_mean) shift = team_sum<L>(sum_g) * per_element;
    const C pull = team_sum<L>(sum_gh) * per_element;
    x.each_with(dy, [&](const C(&v)[W], const C(&d)[W], int64_t i) {
      C h[W], g[W];
      make(v, d, i, h, g);
#pragma unroll
      for (int k = 0; k < W; ++k) g[k] = (g[k] - shift - h[k] * pull) * inv;
      store_group(args.dx + row * width + i, g);
    });
  });

  if (!sums.is_shared) return;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < length; i += blockDim.x) {
    C total = 0;
    for (int64_t team = 0; team < teams; ++team) total += of_block[team * length + i];
    sums.partial[blockIdx.x * length + i] = total;
  }
}

constexpr int kStrips = 16;

// totals[i] = sum over the rows of partial [rows, length], columns [0, width).
template <class C>
__global__ void add_partial_sums(const C* partial, int64_t rows, int64_t length, int64_t width, C* totals) {
  __shared__ C strips[kStrips][32];
  const int64_t column = int64_t{blockIdx.x} * 32 + threadIdx.x;
  C sum = 0;
  if (column < width)
    for (int64_t row = threadIdx.y; row < rows; row += kStrips) sum += partial[row * length + column];
  strips[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || column >= width) return;
  C total = 0;
  for (int strip = 0; strip < kStrips; ++strip) total += strips[strip][threadIdx.x];
  totals[column] = total;
}

template <bool has_mean, class T, class C>
void forward(const cpu::NormArgs<T, C>& args, Device device, std::string_view op) {
  const cpu::Rows& rows = args.x_rows;
  bool wide = is_wide(args.x, rows) && are_aligned(args.weight, args.bias, args.y);
  with_layout<T>(wide, rows.width, kMostHeld, [&]<class L>() {
    launch_rows<L>(op, norm_forward<L, has_mean>, rows.count, rows.width, device, args);
  });
}

// Blocks of a backward with sums: enough to keep a GPU busy, few enough that partial sums are little beside the rows. The same
// number for every GPU, for the same bits.
int64_t num_sum_blocks(int64_t steps, int64_t threads) {
  constexpr int64_t kMultiprocessors = 132, kThreadsEach = 768, kStepsEach = 4;
  int64_t most = kMultiprocessors * std::max<int64_t>(kThreadsEach / threads, 1);
  return std::min(most, (steps + kStepsEach - 1) / kStepsEach);
}

template <bool has_mean, class T, class C>
void backward(const cpu::NormBackwardArgs<T, C>& args, C* dweight, C* dbias, Device device, std::string_view op) {
  // Two rows and more values than a thread of a block of 1024 has registers for; longer rows come from the cache again.
  constexpr int64_t kMostHeldHere = 8 * 1024;
  const cpu::Rows& rows = args.x_rows;
  const int64_t width = rows.width;
  Sums<C> sums{.has_dweight = dweight != nullptr, .has_dbias = dbias != nullptr};
  const int64_t length = sums.kinds() * width;
  bool wide = is_wide(args.x, rows) && is_wide(args.dy, args.dy_rows) && are_aligned(args.weight, args.dx);
  with_layout<T>(wide, width, kMostHeldHere, [&]<class L>() {
    if (length == 0) return launch_rows<L>(op, norm_backward<L, has_mean>, rows.count, width, device, args, sums);
    const int64_t teams = teams_of_block<L>();
    const unsigned threads = threads_of<L>(width);
    const int64_t blocks = num_sum_blocks((rows.count + teams - 1) / teams, threads);
    const int64_t most_shared = std::min(128 * 1024, max_shared_bytes(device.index) - 1024);  // static memory is in it
    auto shared_bytes = static_cast<size_t>(teams * length) * sizeof(C);
    sums.is_shared = static_cast<int64_t>(shared_bytes) <= most_shared;
    if (!sums.is_shared) shared_bytes = 0;
    Tensor partial = Tensor::empty({blocks, length}, dtype_of<C>(), device);
    sums.partial = partial.mutable_data<C>();
    cudaStream_t s = stream(device.index);
    launch(op, norm_backward<L, has_mean>, static_cast<unsigned>(blocks), threads, shared_bytes, s, args, sums);
    auto add = [&](const C* from, C* totals) {
      launch(op, add_partial_sums<C>, static_cast<unsigned>((width + 31) / 32), dim3(32, kStrips), 0, s, from, blocks,
             length, width, totals);
    };
    if (dbias) add(sums.partial, dbias);
    if (dweight) add(sums.partial + (dbias ? width : 0), dweight);
  });
}

}  // namespace

template <class T, class C>
void NormKernels<T, C>::rms_norm(const cpu::NormArgs<T, C>& args, Device device) {
  forward<false>(args, device, "rms_norm");
}
template <class T, class C>
void NormKernels<T, C>::layer_norm(const cpu::NormArgs<T, C>& args, Device device) {
  forward<true>(args, device, "layer_norm");
}
template <class T, class C>
void NormKernels<T, C>::rms_norm_backward(const cpu::NormBackwardArgs<T, C>& args, C* dweight, Device device) {
  backward<false>(args, dweight, static_cast<C*>(nullptr), device, "rms_norm_backward");
}
template <class T, class C>
void NormKernels<T, C>::layer_norm_backward(const cpu::NormBackwardArgs<T, C>& args, C* dweight, C* dbias,
                                            Device device) {
  backward<true>(args, dweight, dbias, device, "layer_norm_backward");
}

template struct NormKernels<float, float>;
template struct NormKernels<BFloat16, float>;
template struct NormKernels<double, double>;

}  // namespace weft::cuda
