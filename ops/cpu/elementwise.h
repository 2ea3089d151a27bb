// Elementwise kernels on the CPU: functors of ops/math/elementwise.h over packs of lanes.
// A new functor stands in the lists at the end of ops/math/elementwise.h. Arguments are checked by ops/elementwise.cpp.
#pragma once

#include "ops/cpu/isa.h"
#include "ops/cpu/loop.h"
#include "ops/math/elementwise.h"

namespace weft::cpu {

// Chunks for a dtype among f32, bf16, f64; nullptr for others.
template <Isa I>
struct ElementwiseKernels {
  template <class F>
  static Chunk map(DType dtype);  // y = f(x)
  template <class F>
  static Chunk backward(DType dtype);  // dx = dy * df(kept)
  template <class F>
  static Chunk zip(DType dtype);                  // y = f(a, b)
  static Chunk swiglu_backward(DType dtype);      // dgate, dup = df(dy, gate, up)
  static Chunk gelu_tanh_both(DType dtype);       // y, slope = f(x), df(x); f32 and f64
  static Chunk scaled_add(DType to, DType from);  // to += factor * from; functor: double factor
  static Chunk convert(DType to, DType from);     // between f32 and bf16; nullptr for others
};

// Integers, and f of bool where it stays a bool. nullptr where there is no kernel. Not compiled per instruction set.
template <class F>
Chunk integer_zip(DType dtype);
template <math::OnlyFloating F>
Chunk integer_zip(DType) {
  return nullptr;
}

template <class F>
Tensor map(const Tensor& x, F f) {
  Tensor y = Tensor::empty(x.shape(), x.dtype(), Device::cpu());
  Loop loop(x.shape());
  loop.output(y);
  loop.input(x);
  loop.run(with_isa([&]<Isa I>() { return ElementwiseKernels<I>::template map<F>(x.dtype()); }), &f);
  return y;
}

template <class F>
Tensor map_backward(const Tensor& dy, const Tensor& kept, F f) {
  Tensor dx = Tensor::empty(dy.shape(), dy.dtype(), Device::cpu());
  Loop loop(dy.shape());
  loop.output(dx);
  loop.input(dy);
  loop.input(kept);
  loop.run(with_isa([&]<Isa I>() { return ElementwiseKernels<I>::template backward<F>(dy.dtype()); }), &f);
  return dx;
}

template <class F>
Tensor zip(const Tensor& a, const Tensor& b, const Shape& shape, F f) {
  Chunk chunk = is_floating(a.dtype())
                    ? with_isa([&]<Isa I>() { return ElementwiseKernels<I>::template zip<F>(a.dtype()); })
                    : integer_zip<F>(a.dtype());
  Tensor y = Tensor::empty(shape, a.dtype(), Device::cpu());
  Loop loop(shape);
  loop.output(y);
  loop.input(a);
  loop.input(b);
  loop.run(chunk, &f);
  return y;
}

void swiglu_backward(Tensor& dgate, Tensor& dup, const Tensor& dy, const Tensor& gate, const Tensor& up);
void gelu_tanh_both(Tensor& y, Tensor& x);  // y = gelu_tanh(x), x = gelu_tanh'(x)
void where(Tensor& y, const Tensor& mask, const Tensor& a, const Tensor& b);
void scaled_add(Tensor& to, const Tensor& from, double factor);  // broadcasts `from`
void scale(Tensor& x, double factor);

}  // namespace weft::cpu
