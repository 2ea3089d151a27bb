// The largest elements: argmax over a dimension, the k largest of rows [N]. NaN comes before all numbers, then larger values,
// then lower indices: a total order, so every way to select gives the same answer.
// Few of a row are found by k passes over it, each for the first after the last one found; many by sorting whole rows.
#include <algorithm>
#include <bit>
#include <limits>

#include "ops/cuda/cut.h"
#include "ops/cuda/kernel.cuh"
#include "ops/cuda/reduce.h"
#include "ops/cuda/select.h"
#include "ops/cuda/sort.cuh"

namespace weft::cuda {

namespace {

constexpr int64_t kNowhere = std::numeric_limits<int64_t>::max();

template <class C>
struct Candidate {
  C value;
  int64_t index;
};

template <class C>
__device__ __forceinline__ bool comes_first(const Candidate<C>& a, const Candidate<C>& b) {
  const bool a_is_nan = a.value != a.value, b_is_nan = b.value != b.value;
  if (a_is_nan != b_is_nan) return a_is_nan;
  if (!a_is_nan && a.value != b.value) return a.value > b.value;
  return a.index < b.index;
}

// Comes after every element.
template <class C>
__device__ __forceinline__ Candidate<C> nothing() {
  return {-C(INFINITY), kNowhere};
}

template <int lanes, class C>
__device__ __forceinline__ Candidate<C> first_of_lanes(Candidate<C> mine) {
#pragma unroll
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    Candidate<C> other{__shfl_xor_sync(0xffffffffu, mine.value, offset),
                       __shfl_xor_sync(0xffffffffu, mine.index, offset)};
    if (comes_first(other, mine)) mine = other;
  }
  return mine;
}

// The first of a team of `lanes` threads (the whole block if that is 0), in each of them. All threads of the block come here.
template <int lanes, class C>
__device__ __forceinline__ Candidate<C> first_of_team(Candidate<C> mine) {
  if constexpr (lanes > 0) {
    return first_of_lanes<lanes>(mine);
  } else {
    constexpr int warps = kThreads / 32;
    __shared__ Candidate<C> partial[warps];
    mine = first_of_lanes<32>(mine);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = mine;
    __syncthreads();
    mine = partial[0];
#pragma unroll
    for (int w = 1; w < warps; ++w)
      if (comes_first(partial[w], mine)) mine = partial[w];
    __syncthreads();  // the memory is free for the next call
    return mine;
  }
}

template <class T, int lanes>
__global__ void __launch_bounds__(kThreads) argmax_kernel(const T* x, Cut c, int64_t* y) {
  using C = Compute<T>;
  constexpr int size = lanes > 0 ? lanes : kThreads, teams = kThreads / size;
  const int lane = static_cast<int>(threadIdx.x) % size, team = static_cast<int>(threadIdx.x) / size;
  const int64_t items = c.outer * c.inner;
  for (int64_t first = int64_t{blockIdx.x} * teams; first < items; first += int64_t{gridDim.x} * teams) {
    const int64_t item = first + team;
    const bool is_there = item < items;
    Candidate<C> best = nothing<C>();
    if (is_there) {
      const T* at = x + item / c.inner * c.stride_outer + item % c.inner * c.stride_inner;
#pragma unroll 4
      for (int64_t i = lane; i < c.n; i += size) {
        Candidate<C> each{to_compute(at[i * c.stride_n]), i};
        if (comes_first(each, best)) best = each;
      }
    }
    best = first_of_team<lanes>(best);
    if (is_there && lane == 0) y[item] = best.index;
  }
}

template <class T, int lanes>
__global__ void __launch_bounds__(kThreads)
    select_largest(const T* x, int64_t rows, int64_t n, int64_t k, T* values, int64_t* indices) {
  using C = Compute<T>;
  constexpr int size = lanes > 0 ? lanes : kThreads, teams = kThreads / size;
  const int lane = static_cast<int>(threadIdx.x) % size, team = static_cast<int>(threadIdx.x) / size;
  for (int64_t first = int64_t{blockIdx.x} * teams; first < rows; first += int64_t{gridDim.x} * teams) {
    const int64_t row = first + team;
    const bool is_there = row < rows;
    const T* at = x + row * n;
    Candidate<C> last = nothing<C>();
    for (int64_t found = 0; found < k; ++found) {
      Candidate<C> best = nothing<C>();
      if (is_there) {
#pragma unroll 4
        for (int64_t i = lane; i < n; i += size) {
          Candidate<C> each{to_compute(at[i]), i};
          if ((found == 0 || comes_first(last, each)) && comes_first(each, best)) best = each;
        }
      }
      last = best = first_of_team<lanes>(best);
      if (is_there && lane == 0) {
        values[row * k + found] = at[best.index];
        indices[row * k + found] = best.index;
      }
    }
  }
}

template <class T>
struct BitsOf {
  using type = uint32_t;
};
template <>
struct BitsOf<BFloat16> {
  using type = uint16_t;
};
template <>
struct BitsOf<double> {
  using type = uint64_t;
};

// Ascending in the order of candidates: equal values (0 and -0, and all NaN) have equal keys.
template <class T>
struct ByValue {
  using Bits = typename BitsOf<T>::type;
  static constexpr int bits = static_cast<int>(8 * sizeof(T));
  const T* x;

  __device__ __forceinline__ Bits operator()(uint32_t i) const {
    constexpr Bits sign = static_cast<Bits>(Bits{1} << (bits - 1));
    const Compute<T> value = to_compute(x[i]);
    if (value != value) return 0;
    if (value == 0) return static_cast<Bits>(~sign);
    Bits u;
    __builtin_memcpy(&u, &x[i], sizeof u);
    return static_cast<Bits>(u & sign ? u : ~(u ^ sign));
  }
};

struct ByRow {
  uint32_t n;
  __device__ __forceinline__ uint32_t operator()(uint32_t i) const { return i / n; }
};

template <class T>
__global__ void take_sorted(const T* x, const uint32_t* order, int64_t rows, int64_t n, int64_t k, T* values,
                            int64_t* indices) {
  for (int64_t i = thread_index(); i < rows * k; i += thread_count()) {
    const int64_t row = i / k, from = order[row * n + i % k];
    values[i] = x[from];
    indices[i] = from - row * n;
  }
}

template <class T>
void sort_rows(const T* x, int64_t rows, int64_t n, int64_t k, T* values, int64_t* indices, Device device) {
  Tensor order = sorted_by("topk", ByValue<T>{x}, ByValue<T>::bits, rows * n, device);
  if (rows > 1) {
    int bits = static_cast<int>(std::bit_width(static_cast<uint64_t>(rows - 1)));
    order = sorted_by("topk", ByRow{static_cast<uint32_t>(n)}, bits, rows * n, device, std::move(order));
  }
  launch("topk", take_sorted<T>, grid_of(rows * k), kThreads, 0, stream(device.index), x,
         static_cast<const uint32_t*>(order.raw()), rows, n, k, values, indices);
}

}  // namespace

void argmax(Tensor& out, const Tensor& x, int dim) {
  Cut c;
  if (!cut(x, dim, dim + 1, c)) return argmax(out, dense(x), dim);
  auto* y = out.mutable_data<int64_t>();
  int64_t items = c.outer * c.inner;
  with_floating(x.dtype(), "argmax", [&]<class T>() {
    auto run = [&](auto* kernel, int64_t teams) {
      launch("argmax", kernel, grid_of(items, teams), kThreads, 0, stream_of(x), x.data<T>(), c, y);
    };
    // Neighbouring threads read neighbouring elements.
    bool is_along_rows = c.inner == 1 && (c.stride_n == 1 || c.stride_outer != 1);
    if (c.n == 1 || (!is_along_rows && items >= 32)) run(argmax_kernel<T, 1>, kThreads);
    else if (c.n <= 1024) run(argmax_kernel<T, 32>, kThreads / 32);
    else run(argmax_kernel<T, 0>, 1);
  });
}

void topk(Tensor& values, Tensor& indices, const Tensor& x) {
  if (values.num_elements() == 0) return;
  constexpr int64_t kFew = 16, kVisits = int64_t{1} << 21, kSortable = int64_t{1} << 31, kSorted = int64_t{1} << 24;
  Tensor source = dense(x);
  int64_t n = x.size(-1), k = values.size(-1), rows = x.num_elements() / n;
  auto* to_indices = indices.mutable_data<int64_t>();
  with_floating(x.dtype(), "topk", [&]<class T>() {
    const T* from = source.data<T>();
    T* to = values.mutable_data<T>();
    auto select = [&](auto* kernel, int64_t teams) {
      launch("topk", kernel, grid_of(rows, teams), kThreads, 0, stream_of(x), from, rows, n, k, to, to_indices);
    };
    if (k <= kFew || k * n <= kVisits || n >= kSortable) {
      if (n <= 1024) select(select_largest<T, 32>, kThreads / 32);
      else select(select_largest<T, 0>, 1);
      return;
    }
    int64_t at_once = std::max<int64_t>(1, kSorted / n);
    for (int64_t row = 0; row < rows; row += at_once)
      sort_rows(from + row * n, std::min(at_once, rows - row), n, k, to + row * k, to_indices + row * k, x.device());
  });
}

}  // namespace weft::cuda
