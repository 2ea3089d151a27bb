// y = f(a, b) with broadcasting, selection, and the gradients of swiglu.
#include <type_traits>

#include "ops/cuda/elementwise.h"
#include "ops/cuda/loop.cuh"

namespace weft::cuda {

namespace {

template <class T, class F>
struct ZipBody {
  T* y;
  const T *a, *b;
  F f;
  __device__ T value(T x, T z) const {
    if constexpr (std::is_same_v<T, float> || std::is_same_v<T, double> || std::is_same_v<T, BFloat16>) {
      return from_compute<T>(f.f(to_compute(x), to_compute(z)));
    } else if constexpr (std::is_same_v<F, math::Maximum>) {
      return x > z ? x : z;
    } else if constexpr (std::is_same_v<F, math::Minimum>) {
      return x < z ? x : z;
    } else if constexpr (std::is_same_v<T, bool>) {
      return x && z;  // Mul, the only one left for bool
    } else {          // sums, differences and products wrap around: computed unsigned
      using U = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
      return static_cast<T>(f.template f<U>(static_cast<U>(x), static_cast<U>(z)));
    }
  }
  __device__ void one(const int64_t (&at)[3]) const { y[at[0]] = value(a[at[1]], b[at[2]]); }
  template <int W>
  __device__ void wide(int64_t i) const {
    Group<T, W> x = load_group<W>(a, i), z = load_group<W>(b, i), out;
#pragma unroll
    for (int k = 0; k < W; ++k) out.at[k] = value(x.at[k], z.at[k]);
    store_group<W>(y, i, out);
  }
};

template <class T>  // an unsigned integer of the element's size
struct WhereBody {
  T* y;
  const uint8_t* mask;
  const T *a, *b;
  __device__ void one(const int64_t (&at)[4]) const { y[at[0]] = mask[at[1]] ? a[at[2]] : b[at[3]]; }
  template <int W>
  __device__ void wide(int64_t i) const {
    for (int k = 0; k < W; ++k) y[i + k] = mask[i + k] ? a[i + k] : b[i + k];
  }
};

template <class T>
struct SwigluBackwardBody {
  T *dgate, *dup;
  const T *dy, *gate, *up;
  __device__ void one(const int64_t (&at)[5]) const {
    Compute<T> g, u;
    math::Swiglu{}.df(to_compute(dy[at[2]]), to_compute(gate[at[3]]), to_compute(up[at[4]]), g, u);
    dgate[at[0]] = from_compute<T>(g), dup[at[1]] = from_compute<T>(u);
  }
  template <int W>
  __device__ void wide(int64_t i) const {
    Group<T, W> d = load_group<W>(dy, i), x = load_group<W>(gate, i), z = load_group<W>(up, i), g, u;
#pragma unroll
    for (int k = 0; k < W; ++k) {
      Compute<T> a, b;
      math::Swiglu{}.df(to_compute(d.at[k]), to_compute(x.at[k]), to_compute(z.at[k]), a, b);
      g.at[k] = from_compute<T>(a), u.at[k] = from_compute<T>(b);
    }
    store_group<W>(dgate, i, g);
    store_group<W>(dup, i, u);
  }
};

template <class T>
void run_where(Tensor& y, const Tensor& mask, const Tensor& a, const Tensor& b) {
  WhereBody<T> body{static_cast<T*>(y.mutable_raw()), static_cast<const uint8_t*>(mask.raw()),
                    static_cast<const T*>(a.raw()), static_cast<const T*>(b.raw())};
  each<4, 4>("where", y.shape(), {&y, &mask, &a, &b}, body, true, stream_of(y));
}

template <class T, class F>
void run_zip(Tensor& y, const Tensor& a, const Tensor& b, F f) {
  ZipBody<T, F> body{y.mutable_data<T>(), a.data<T>(), b.data<T>(), f};
  each<3, kWide<T>>("zip", y.shape(), {&y, &a, &b}, body,
                    is_aligned(body.y) && is_aligned(body.a) && is_aligned(body.b), stream_of(y));
}

}  // namespace

template <class F>
Tensor zip(const Tensor& a, const Tensor& b, const Shape& shape, F f) {
  Tensor y = Tensor::empty(shape, a.dtype(), a.device());
  auto run = [&](auto tag) { run_zip<typename decltype(tag)::type>(y, a, b, f); };
  if constexpr (math::OnlyFloating<F>) with_type<float, BFloat16, double>(a.dtype(), "zip", run);
  else if constexpr (std::is_same_v<F, math::Add> || std::is_same_v<F, math::Sub>)
    with_type<float, BFloat16, double, int64_t, int32_t, uint8_t>(a.dtype(), "zip", run);
  else with_type<float, BFloat16, double, int64_t, int32_t, uint8_t, bool>(a.dtype(), "zip", run);
  return y;
}

void where(Tensor& y, const Tensor& mask, const Tensor& a, const Tensor& b) {
  switch (size_of(y.dtype())) {
    case 1: return run_where<uint8_t>(y, mask, a, b);
    case 2: return run_where<uint16_t>(y, mask, a, b);
    case 4: return run_where<uint32_t>(y, mask, a, b);
    default: return run_where<uint64_t>(y, mask, a, b);
  }
}

void swiglu_backward(Tensor& dgate, Tensor& dup, const Tensor& dy, const Tensor& gate, const Tensor& up) {
  with_floating(dy.dtype(), "swiglu_backward", [&]<class T>() {
    SwigluBackwardBody<T> body{dgate.mutable_data<T>(), dup.mutable_data<T>(), dy.data<T>(), gate.data<T>(),
                               up.data<T>()};
    bool aligned = is_aligned(body.dgate) && is_aligned(body.dup) && is_aligned(body.dy) && is_aligned(body.gate) &&
                   is_aligned(body.up);
    each<5, kWide<T>>("swiglu_backward", dy.shape(), {&dgate, &dup, &dy, &gate, &up}, body, aligned, stream_of(dy));
  });
}

// ZipFunctors by name, as in elementwise.cu.
template Tensor zip(const Tensor&, const Tensor&, const Shape&, math::Add);
template Tensor zip(const Tensor&, const Tensor&, const Shape&, math::Sub);
template Tensor zip(const Tensor&, const Tensor&, const Shape&, math::Mul);
template Tensor zip(const Tensor&, const Tensor&, const Shape&, math::Div);
template Tensor zip(const Tensor&, const Tensor&, const Shape&, math::Maximum);
template Tensor zip(const Tensor&, const Tensor&, const Shape&, math::Minimum);
template Tensor zip(const Tensor&, const Tensor&, const Shape&, math::Swiglu);
template Tensor zip(const Tensor&, const Tensor&, const Shape&, math::ClampGradient);
template Tensor zip(const Tensor&, const Tensor&, const Shape&, math::PowerOf);
template Tensor zip(const Tensor&, const Tensor&, const Shape&, math::PowerSlopeOfBase);
template Tensor zip(const Tensor&, const Tensor&, const Shape&, math::PowerSlopeOfExponent);
template Tensor zip(const Tensor&, const Tensor&, const Shape&, math::SquaredError);
template Tensor zip(const Tensor&, const Tensor&, const Shape&, math::BceWithLogits);
template Tensor zip(const Tensor&, const Tensor&, const Shape&, math::BceWithLogitsSlope);

}  // namespace weft::cuda
