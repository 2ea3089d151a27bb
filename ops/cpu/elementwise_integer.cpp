// Elementwise kernels of integers and bool, and the launchers of kernels with more operands. Plain loops that the compiler
// vectorises: no op of a training step is bound by them.
#include <type_traits>

#include "ops/cpu/elementwise.h"

namespace weft::cpu {

namespace {

// Sums, differences and products wrap around: computed unsigned.
template <class F, class T>
void run(const void*, char* const* operands, int64_t n) {
  T* y = reinterpret_cast<T*>(operands[0]);
  const T *a = reinterpret_cast<const T*>(operands[1]), *b = reinterpret_cast<const T*>(operands[2]);
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (std::is_same_v<F, math::Maximum>) y[i] = a[i] > b[i] ? a[i] : b[i];
    else if constexpr (std::is_same_v<F, math::Minimum>) y[i] = a[i] < b[i] ? a[i] : b[i];
    else if constexpr (std::is_same_v<T, bool>) y[i] = a[i] && b[i];  // Mul, the only one left for bool
    else {
      using U = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
      y[i] = static_cast<T>(F{}.template f<U>(static_cast<U>(a[i]), static_cast<U>(b[i])));
    }
  }
}

template <class T>
void run_select(const void*, char* const* operands, int64_t n) {
  T* y = reinterpret_cast<T*>(operands[0]);
  const auto* mask = reinterpret_cast<const uint8_t*>(operands[1]);
  const T *a = reinterpret_cast<const T*>(operands[2]), *b = reinterpret_cast<const T*>(operands[3]);
  for (int64_t i = 0; i < n; ++i) y[i] = mask[i] ? a[i] : b[i];
}

}  // namespace

template <class F>
Chunk integer_zip(DType dtype) {
  constexpr bool is_for_bool =
      std::is_same_v<F, math::Mul> || std::is_same_v<F, math::Maximum> || std::is_same_v<F, math::Minimum>;
  switch (dtype) {
    case DType::int64: return run<F, int64_t>;
    case DType::int32: return run<F, int32_t>;
    case DType::uint8: return run<F, uint8_t>;
    case DType::boolean:
      if constexpr (is_for_bool) return run<F, bool>;
      return nullptr;
    case DType::float32:
    case DType::bfloat16:
    case DType::float64: break;
  }
  return nullptr;
}

template Chunk integer_zip<math::Add>(DType);
template Chunk integer_zip<math::Sub>(DType);
template Chunk integer_zip<math::Mul>(DType);
template Chunk integer_zip<math::Maximum>(DType);
template Chunk integer_zip<math::Minimum>(DType);

static Chunk select_chunk(DType dtype) {
  switch (size_of(dtype)) {
    case 1: return run_select<uint8_t>;
    case 2: return run_select<uint16_t>;
    case 4: return run_select<uint32_t>;
    default: return run_select<uint64_t>;
  }
}

void where(Tensor& y, const Tensor& mask, const Tensor& a, const Tensor& b) {
  Loop loop(y.shape());
  loop.output(y);
  loop.input(mask);
  loop.input(a);
  loop.input(b);
  loop.run(select_chunk(y.dtype()), nullptr);
}

void swiglu_backward(Tensor& dgate, Tensor& dup, const Tensor& dy, const Tensor& gate, const Tensor& up) {
  Loop loop(dy.shape());
  loop.output(dgate);
  loop.output(dup);
  loop.input(dy);
  loop.input(gate);
  loop.input(up);
  loop.run(with_isa([&]<Isa I>() { return ElementwiseKernels<I>::swiglu_backward(dy.dtype()); }), nullptr);
}

void gelu_tanh_both(Tensor& y, Tensor& x) {
  Loop loop(x.shape());
  loop.output(y);
  loop.output(x);
  loop.input(x);
  loop.run(with_isa([&]<Isa I>() { return ElementwiseKernels<I>::gelu_tanh_both(x.dtype()); }), nullptr);
}

// The old values of `to` are read as an operand of their own, so that strided ones are gathered like any input.
void scaled_add(Tensor& to, const Tensor& from, double factor) {
  Loop loop(to.shape());
  loop.output(to);
  loop.input(to);
  loop.input(from);
  loop.run(with_isa([&]<Isa I>() { return ElementwiseKernels<I>::scaled_add(to.dtype(), from.dtype()); }), &factor);
}

void scale(Tensor& x, double factor) {
  Loop loop(x.shape());
  loop.output(x);
  loop.input(x);
  math::Scale f{factor};
  loop.run(with_isa([&]<Isa I>() { return ElementwiseKernels<I>::template map<math::Scale>(x.dtype()); }), &f);
}

}  // namespace weft::cpu
