// y = a ? b and y = x ? number. Which comparison it is, a kernel is told when it runs: memory takes longer.
#include "ops/cuda/compare.h"
#include "ops/cuda/loop.cuh"

namespace weft::cuda {

namespace {

using math::Comparison;

template <class T>
struct PairBody {
  bool* y;
  const T *a, *b;
  Comparison kind;
  __device__ bool value(T x, T z) const {
    using C = math::Comparable<T>;
    return math::compare(kind, static_cast<C>(x), static_cast<C>(z));
  }
  __device__ void one(const int64_t (&at)[3]) const { y[at[0]] = value(a[at[1]], b[at[2]]); }
  template <int W>
  __device__ void wide(int64_t i) const {
    for (int k = 0; k < W; ++k) y[i + k] = value(a[i + k], b[i + k]);
  }
};

template <class T>
struct NumberBody {
  bool* y;
  const T* x;
  double number;
  Comparison kind;
  __device__ void one(const int64_t (&at)[2]) const { y[at[0]] = math::compare_number(kind, x[at[1]], number); }
  template <int W>
  __device__ void wide(int64_t i) const {
    for (int k = 0; k < W; ++k) y[i + k] = math::compare_number(kind, x[i + k], number);
  }
};

template <class F>
void with_any(DType dtype, F&& f) {
  with_type<float, BFloat16, double, int64_t, int32_t, uint8_t, bool>(dtype, "compare", f);
}

}  // namespace

void compare(Tensor& y, const Tensor& a, const Tensor& b, Comparison kind) {
  with_any(a.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    PairBody<T> body{y.mutable_data<bool>(), a.data<T>(), b.data<T>(), kind};
    each<3, 4>("compare", y.shape(), {&y, &a, &b}, body, true, stream_of(y));
  });
}

void compare(Tensor& y, const Tensor& x, double number, Comparison kind) {
  with_any(x.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    NumberBody<T> body{y.mutable_data<bool>(), x.data<T>(), number, kind};
    each<2, 4>("compare", y.shape(), {&y, &x}, body, true, stream_of(y));
  });
}

}  // namespace weft::cuda
