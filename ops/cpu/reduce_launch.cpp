// How reductions are cut: a tensor becomes [outer, n, inner], one group of neighbouring reduced dimensions at a time.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/cpu/copy.h"
#include "ops/cpu/loop.h"
#include "ops/cpu/reduce.h"
#include "weft/core/parallel.h"

namespace weft::cpu {

namespace {

// x as [outer, n, inner] with one stride each.
struct Cut {
  int64_t outer = 1, n = 1, inner = 1, stride_outer = 0, stride_n = 0, stride_inner = 0;
};

// Merges dimensions [begin, end) of x; false if their strides do not allow it.
bool merge(const Tensor& x, int begin, int end, int64_t& size, int64_t& stride) {
  size = 1;
  stride = 0;
  for (int d = end - 1; d >= begin; --d) {
    if (x.shape()[d] == 1) continue;
    if (size == 1) stride = x.strides()[d];
    else if (x.strides()[d] != stride * size) return false;
    size *= x.shape()[d];
  }
  return true;
}
bool cut(const Tensor& x, int begin, int end, Cut& c) {
  return merge(x, 0, begin, c.outer, c.stride_outer) && merge(x, begin, end, c.n, c.stride_n) &&
         merge(x, end, x.num_dims(), c.inner, c.stride_inner);
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

DType lane_dtype(DType dtype) { return dtype == kF64 ? kF64 : kF32; }

// out[outer, inner] = the block results joined in order, in f64.
template <class L, class T>
void join_blocks(const L* blocks, int64_t num_blocks, int64_t outer, int64_t inner, Reduction kind, double scale,
                 T* out) {
  parallel_for(outer * inner, std::max<int64_t>(1, kGrain / num_blocks), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const L* at = blocks + i / inner * num_blocks * inner + i % inner;
      double joined = static_cast<double>(at[0]);
      for (int64_t b = 1; b < num_blocks; ++b) {
        auto value = static_cast<double>(at[b * inner]);
        if (kind == Reduction::sum) joined += value;
        else joined = std::isnan(joined) || joined > value ? joined : value;
      }
      using Computed = std::conditional_t<std::is_same_v<T, double>, double, float>;
      out[i] = T(static_cast<Computed>(joined * scale));
    }
  });
}

// Reduces dimensions [begin, end) of x, which is at least one element, into row-major `out`.
void reduce_group(Tensor& out, const Tensor& x, int begin, int end, Reduction kind, double scale) {
  Cut c;
  if (!cut(x, begin, end, c) || !fit_to_kernels(c)) {
    Tensor dense = Tensor::empty(x.shape(), x.dtype(), Device::cpu());
    copy(dense, x);
    return reduce_group(out, dense, begin, end, kind, scale);
  }
  bool is_rows = c.inner == 1;
  int64_t block = is_rows ? kRowBlock : kColumnBlock, num_blocks = (c.n + block - 1) / block;
  int64_t num_strips = is_rows ? 1 : (c.inner + kColumnStrip - 1) / kColumnStrip;
  DType lane = lane_dtype(x.dtype());
  bool is_direct = num_blocks == 1 && out.dtype() == lane;
  Tensor blocks = is_direct ? out : Tensor::empty({c.outer, num_blocks, c.inner}, lane, Device::cpu());
  ReduceJob job{x.raw(),
                x.dtype(),
                kind,
                c.outer,
                c.n,
                c.inner,
                c.stride_outer,
                c.stride_n,
                blocks.mutable_raw(),
                is_direct ? scale : 1};
  int64_t item_elements = std::min(c.n, block) * std::min(c.inner, kColumnStrip);
  parallel_for(
      c.outer * num_blocks * num_strips, std::max<int64_t>(1, kGrain / item_elements),
      [&](int64_t first, int64_t last) {
        with_isa([&]<Isa I>() { (is_rows ? ReduceKernels<I>::rows : ReduceKernels<I>::columns)(job, first, last); });
      });
  if (is_direct) return;
  with_type<float, double>(lane, "reduce", [&](auto lane_tag) {
    using L = typename decltype(lane_tag)::type;
    with_type<float, BFloat16, double>(out.dtype(), "reduce", [&](auto tag) {
      using T = typename decltype(tag)::type;
      join_blocks(blocks.data<L>(), num_blocks, c.outer, c.inner, kind, scale, out.mutable_data<T>());
    });
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
  // The last group first, into the lane type; kept as dimensions of size 1 so that the other bits stay valid.
  Shape shape = x.shape();
  for (int d = begin; d < end; ++d) shape[d] = 1;
  Tensor partial = Tensor::empty(shape, lane_dtype(x.dtype()), Device::cpu());
  reduce_group(partial, x, begin, end, kind, 1);
  reduce(out, partial, left, kind, scale);
}

void argmax(Tensor& out, const Tensor& x, int dim) {
  if (dim != x.num_dims() - 1 || !x.is_contiguous()) {
    Shape shape = x.shape(), strides = x.strides();
    shape.erase(dim);
    shape.push_back(x.shape()[dim]);
    strides.erase(dim);
    strides.push_back(x.strides()[dim]);
    Tensor dense = Tensor::empty(shape, x.dtype(), Device::cpu());
    copy(dense, x.as_strided(shape, strides, 0));
    return argmax(out, dense, dense.num_dims() - 1);
  }
  int64_t n = x.shape().back();
  Tensor highest = Tensor::empty(out.shape(), lane_dtype(x.dtype()), Device::cpu());
  reduce(highest, x, 1u << dim, Reduction::max, 1);
  int64_t* y = out.mutable_data<int64_t>();
  with_type<float, BFloat16, double>(x.dtype(), "argmax", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using L = std::conditional_t<std::is_same_v<T, double>, double, float>;
    const T* rows = x.data<T>();
    const L* best = highest.data<L>();
    parallel_for(out.num_elements(), std::max<int64_t>(1, kGrain / n), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        auto is_best = [&](T value) {
          L v = static_cast<L>(value);
          return v == best[row] || (std::isnan(v) && std::isnan(best[row]));
        };
        y[row] = std::find_if(rows + row * n, rows + (row + 1) * n, is_best) - (rows + row * n);
      }
    });
  });
}

namespace {

constexpr int64_t kScanBlock = 32 * 1024;  // elements of one block of sum_of_squares and all_finite

template <class F>
double sum_over_blocks(const Tensor& x, F&& of_block) {
  int64_t n = x.num_elements(), bytes = static_cast<int64_t>(size_of(x.dtype())),
          num_blocks = (n + kScanBlock - 1) / kScanBlock;
  Tensor sums = Tensor::empty({num_blocks}, kF64, Device::cpu());
  double* sum = sums.mutable_data<double>();
  parallel_for(num_blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      sum[b] = of_block(static_cast<const char*>(x.raw()) + b * kScanBlock * bytes,
                        std::min(kScanBlock, n - b * kScanBlock));
  });
  double total = 0;
  for (int64_t b = 0; b < num_blocks; ++b) total += sum[b];
  return total;
}

}  // namespace

double sum_of_squares(const Tensor& x) {
  return sum_over_blocks(x, [&](const void* at, int64_t n) {
    return with_isa([&]<Isa I>() { return ReduceKernels<I>::sum_of_squares(x.dtype(), at, n); });
  });
}

bool all_finite(const Tensor& x) {
  double num_bad_blocks = sum_over_blocks(x, [&](const void* at, int64_t n) {
    return with_isa([&]<Isa I>() { return ReduceKernels<I>::all_finite(x.dtype(), at, n); }) ? 0.0 : 1.0;
  });
  return num_bad_blocks == 0;
}

// Each running sum is kept in f64 and rounded once per element.
void cumsum(Tensor& y, const Tensor& x, int dim, const ops::CumsumOptions& options) {
  if (!x.is_contiguous()) {
    Tensor dense = Tensor::empty(x.shape(), x.dtype(), Device::cpu());
    copy(dense, x);
    return cumsum(y, dense, dim, options);
  }
  Cut c;
  cut(x, dim, dim + 1, c);
  constexpr int64_t kStrip = 64;
  int64_t num_strips = (c.inner + kStrip - 1) / kStrip;
  with_type<float, BFloat16, double>(x.dtype(), "cumsum", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using L = std::conditional_t<std::is_same_v<T, double>, double, float>;
    const T* from = x.data<T>();
    T* to = y.mutable_data<T>();
    const int32_t* segments = options.segments.defined() ? options.segments.data<int32_t>() : nullptr;
    int64_t grain = std::max<int64_t>(1, kGrain / (c.n * std::min(c.inner, kStrip)));
    parallel_for(c.outer * num_strips, grain, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        int64_t column = item % num_strips * kStrip, width = std::min(kStrip, c.inner - column);
        double sums[kStrip] = {};
        for (int64_t i = 0; i < c.n; ++i) {
          int64_t row = item / num_strips * c.n + (options.reverse ? c.n - 1 - i : i), at = row * c.inner + column;
          if (segments && i > 0 && segments[row] != segments[options.reverse ? row + 1 : row - 1])
            std::fill_n(sums, width, 0.0);
          for (int64_t k = 0; k < width; ++k) {
            double before = sums[k];
            sums[k] += static_cast<double>(static_cast<L>(from[at + k]));
            to[at + k] = T(static_cast<L>(options.exclusive ? before : sums[k]));
          }
        }
      }
    });
  });
}

}  // namespace weft::cpu
