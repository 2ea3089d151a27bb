// Sums of the last W elements along the n of [outer, n, inner], in f64, rounded once per element; a sum restarts where neighbours
// are of different segments. n is cut into blocks of W. A window ends in one block and begins in it or in the one before, so it is
// the beginning of its own block and the end of the other: sums of at most W elements each, and no difference.
// "Step" s counts in the order of summation: element n - 1 - s if that is reversed.
#include <algorithm>

#include "ops/cpu/copy.h"
#include "ops/cpu/loop.h"
#include "ops/cpu/reduce.h"
#include "weft/core/parallel.h"

namespace weft::cpu {

namespace {

constexpr int64_t kStrip = 64;  // columns that are summed together

template <class T>
struct Strip {
  const T* x;               // the first of `width` columns
  T* y;                     // the same of the result
  const int32_t* segments;  // [n], or null
  int64_t n, inner, width, window;
  bool is_reverse;
  double*
      ends;  // [window, width]: of the block before, the sum from each step to its end, or to that of the step's segment

  using Lane = std::conditional_t<std::is_same_v<T, double>, double, float>;
  int64_t place(int64_t step) const { return is_reverse ? n - 1 - step : step; }
  bool restarts(int64_t step) const {
    return segments && step > 0 && segments[place(step)] != segments[place(step - 1)];
  }

  void run() {
    int64_t first = 0;  // of the segment
    for (int64_t begin = 0; begin < n; begin += window) {
      const int64_t end = std::min(begin + window, n);
      first = add_block(begin, end, first);
      if (end < n) keep_ends(begin, end);
    }
  }

  // Writes the sums of the steps [begin, end) and returns where the last one's segment begins.
  int64_t add_block(int64_t begin, int64_t end, int64_t first) {
    double sums[kStrip] = {};
    for (int64_t step = begin; step < end; ++step) {
      if (restarts(step)) {
        first = step;
        std::fill_n(sums, width, 0.0);
      }
      const int64_t low = std::max(step - window + 1, first), at = place(step) * inner;
      const double* before = low < begin ? ends + (low - begin + window) * width : nullptr;
      for (int64_t k = 0; k < width; ++k) {
        sums[k] += static_cast<double>(static_cast<Lane>(x[at + k]));
        y[at + k] = T(static_cast<Lane>(before ? before[k] + sums[k] : sums[k]));
      }
    }
    return first;
  }

  void keep_ends(int64_t begin, int64_t end) {
    double sums[kStrip] = {};
    for (int64_t step = end - 1; step >= begin; --step) {
      const int64_t at = place(step) * inner;
      for (int64_t k = 0; k < width; ++k) {
        sums[k] += static_cast<double>(static_cast<Lane>(x[at + k]));
        ends[(step - begin) * width + k] = sums[k];
      }
      if (restarts(step)) std::fill_n(sums, width, 0.0);
    }
  }
};

}  // namespace

void windowed_sum(Tensor& y, const Tensor& x, int dim, const ops::CumsumOptions& options) {
  if (!x.is_contiguous()) {
    Tensor dense = Tensor::empty(x.shape(), x.dtype(), Device::cpu());
    copy(dense, x);
    return windowed_sum(y, dense, dim, options);
  }
  const int64_t n = x.shape()[dim];
  int64_t inner = 1;
  for (int d = dim + 1; d < x.num_dims(); ++d) inner *= x.shape()[d];
  const int64_t outer = x.num_elements() / (n * inner), num_strips = (inner + kStrip - 1) / kStrip;
  const int32_t* segments = options.segments.defined() ? options.segments.data<int32_t>() : nullptr;
  with_type<float, BFloat16, double>(x.dtype(), "cumsum", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* from = x.data<T>();
    T* to = y.mutable_data<T>();
    const int64_t grain = std::max<int64_t>(1, kGrain / (n * std::min(inner, kStrip)));
    parallel_for(outer * num_strips, grain, [&](int64_t begin, int64_t end) {
      Tensor ends = Tensor::empty({options.window, std::min(inner, kStrip)}, kF64, Device::cpu());
      for (int64_t item = begin; item < end; ++item) {
        const int64_t row = item / num_strips, column = item % num_strips * kStrip;
        const int64_t at = row * n * inner + column;
        Strip<T>{from + at,
                 to + at,
                 segments ? segments + row * n : nullptr,
                 n,
                 inner,
                 std::min(kStrip, inner - column),
                 options.window,
                 options.reverse,
                 ends.mutable_data<double>()}
            .run();
      }
    });
  });
}

}  // namespace weft::cpu
