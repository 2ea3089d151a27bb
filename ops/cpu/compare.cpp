#include "ops/cpu/compare.h"

#include "ops/cpu/loop.h"

namespace weft::cpu {

namespace {

using math::Comparison;

template <class T, Comparison kind>
void run_pair(const void*, char* const* operands, int64_t n) {
  using C = math::Comparable<T>;
  auto* y = reinterpret_cast<bool*>(operands[0]);
  const auto* a = reinterpret_cast<const T*>(operands[1]);
  const auto* b = reinterpret_cast<const T*>(operands[2]);
  for (int64_t i = 0; i < n; ++i) y[i] = math::compare(kind, static_cast<C>(a[i]), static_cast<C>(b[i]));
}

template <class T, Comparison kind>
void run_number(const void* number, char* const* operands, int64_t n) {
  auto* y = reinterpret_cast<bool*>(operands[0]);
  const auto* x = reinterpret_cast<const T*>(operands[1]);
  const double bound = *static_cast<const double*>(number);
  for (int64_t i = 0; i < n; ++i) y[i] = math::compare_number(kind, x[i], bound);
}

// Calls f<T, kind>(): the loops know the comparison when they are compiled.
template <class F>
void with_kernel(DType dtype, Comparison kind, F&& f) {
  with_type<float, BFloat16, double, int64_t, int32_t, uint8_t, bool>(dtype, "compare", [&](auto tag) {
    using T = typename decltype(tag)::type;
    switch (kind) {
      case Comparison::equal: return f.template operator()<T, Comparison::equal>();
      case Comparison::not_equal: return f.template operator()<T, Comparison::not_equal>();
      case Comparison::less: return f.template operator()<T, Comparison::less>();
      case Comparison::less_equal: return f.template operator()<T, Comparison::less_equal>();
      case Comparison::greater: return f.template operator()<T, Comparison::greater>();
      case Comparison::greater_equal: return f.template operator()<T, Comparison::greater_equal>();
    }
  });
}

}  // namespace

void compare(Tensor& y, const Tensor& a, const Tensor& b, Comparison kind) {
  Loop loop(y.shape());
  loop.output(y);
  loop.input(a);
  loop.input(b);
  with_kernel(a.dtype(), kind, [&]<class T, Comparison k>() { loop.run(run_pair<T, k>, nullptr); });
}

void compare(Tensor& y, const Tensor& x, double number, Comparison kind) {
  Loop loop(y.shape());
  loop.output(y);
  loop.input(x);
  with_kernel(x.dtype(), kind, [&]<class T, Comparison k>() { loop.run(run_number<T, k>, &number); });
}

}  // namespace weft::cpu
