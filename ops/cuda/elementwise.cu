// y = f(x) and dx = dy * df(kept) for the functors of ops/math/elementwise.h.
#include "ops/cuda/elementwise.h"
#include "ops/cuda/loop.cuh"

namespace weft::cuda {

namespace {

template <class T, class F>
struct MapBody {
  T* y;
  const T* x;
  F f;
  __device__ void one(const int64_t (&at)[2]) const { y[at[0]] = from_compute<T>(f.f(to_compute(x[at[1]]))); }
  template <int W>
  __device__ void wide(int64_t i) const {
    Group<T, W> in = load_group<W>(x, i), out;
#pragma unroll
    for (int k = 0; k < W; ++k) out.at[k] = from_compute<T>(f.f(to_compute(in.at[k])));
    store_group<W>(y, i, out);
  }
};

template <class T, class F>
struct BackwardBody {
  T* dx;
  const T *dy, *kept;
  F f;
  __device__ void one(const int64_t (&at)[3]) const {
    dx[at[0]] = from_compute<T>(to_compute(dy[at[1]]) * f.df(to_compute(kept[at[2]])));
  }
  template <int W>
  __device__ void wide(int64_t i) const {
    Group<T, W> up = load_group<W>(dy, i), in = load_group<W>(kept, i), out;
#pragma unroll
    for (int k = 0; k < W; ++k) out.at[k] = from_compute<T>(to_compute(up.at[k]) * f.df(to_compute(in.at[k])));
    store_group<W>(dx, i, out);
  }
};

template <class F>
void run_map(Tensor& y, const Tensor& x, F f) {
  with_floating(x.dtype(), "map", [&]<class T>() {
    MapBody<T, F> body{y.mutable_data<T>(), x.data<T>(), f};
    each<2, kWide<T>>("map", y.shape(), {&y, &x}, body, is_aligned(body.y) && is_aligned(body.x), stream_of(y));
  });
}

}  // namespace

template <class F>
Tensor map(const Tensor& x, F f) {
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  run_map(y, x, f);
  return y;
}

template <class F>
Tensor map_backward(const Tensor& dy, const Tensor& kept, F f) {
  Tensor dx = Tensor::empty(dy.shape(), dy.dtype(), dy.device());
  with_floating(dy.dtype(), "map_backward", [&]<class T>() {
    BackwardBody<T, F> body{dx.mutable_data<T>(), dy.data<T>(), kept.data<T>(), f};
    bool aligned = is_aligned(body.dx) && is_aligned(body.dy) && is_aligned(body.kept);
    each<3, kWide<T>>("map_backward", dx.shape(), {&dx, &dy, &kept}, body, aligned, stream_of(dx));
  });
  return dx;
}

void scale(Tensor& x, double factor) { run_map(x, x, math::Scale{factor}); }

// The lists of ops/math/elementwise.h by name: nvcc makes no kernel for what only a table refers to.
template Tensor map(const Tensor&, math::Scale);
template Tensor map(const Tensor&, math::AddScalar);
template Tensor map(const Tensor&, math::Neg);
template Tensor map(const Tensor&, math::Abs);
template Tensor map(const Tensor&, math::Square);
template Tensor map(const Tensor&, math::Sqrt);
template Tensor map(const Tensor&, math::Rsqrt);
template Tensor map(const Tensor&, math::Exp);
template Tensor map(const Tensor&, math::Log);
template Tensor map(const Tensor&, math::Sin);
template Tensor map(const Tensor&, math::Cos);
template Tensor map(const Tensor&, math::Tanh);
template Tensor map(const Tensor&, math::Sigmoid);
template Tensor map(const Tensor&, math::LogSigmoid);
template Tensor map(const Tensor&, math::Softplus);
template Tensor map(const Tensor&, math::Relu);
template Tensor map(const Tensor&, math::Elu);
template Tensor map(const Tensor&, math::Silu);
template Tensor map(const Tensor&, math::Gelu);
template Tensor map(const Tensor&, math::GeluTanh);
template Tensor map(const Tensor&, math::Softcap);
template Tensor map(const Tensor&, math::Clamp);
template Tensor map(const Tensor&, math::Power);

template Tensor map_backward(const Tensor&, const Tensor&, math::Abs);
template Tensor map_backward(const Tensor&, const Tensor&, math::Square);
template Tensor map_backward(const Tensor&, const Tensor&, math::Sqrt);
template Tensor map_backward(const Tensor&, const Tensor&, math::Rsqrt);
template Tensor map_backward(const Tensor&, const Tensor&, math::Exp);
template Tensor map_backward(const Tensor&, const Tensor&, math::Log);
template Tensor map_backward(const Tensor&, const Tensor&, math::Sin);
template Tensor map_backward(const Tensor&, const Tensor&, math::Cos);
template Tensor map_backward(const Tensor&, const Tensor&, math::Tanh);
template Tensor map_backward(const Tensor&, const Tensor&, math::Sigmoid);
template Tensor map_backward(const Tensor&, const Tensor&, math::LogSigmoid);
template Tensor map_backward(const Tensor&, const Tensor&, math::Softplus);
template Tensor map_backward(const Tensor&, const Tensor&, math::Relu);
template Tensor map_backward(const Tensor&, const Tensor&, math::Elu);
template Tensor map_backward(const Tensor&, const Tensor&, math::Silu);
template Tensor map_backward(const Tensor&, const Tensor&, math::Gelu);
template Tensor map_backward(const Tensor&, const Tensor&, math::GeluTanh);
template Tensor map_backward(const Tensor&, const Tensor&, math::Softcap);
template Tensor map_backward(const Tensor&, const Tensor&, math::Power);

}  // namespace weft::cuda
