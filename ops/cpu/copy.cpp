#include "ops/cpu/copy.h"

#include <cstring>
#include <limits>
#include <type_traits>

#include "ops/cpu/elementwise.h"

namespace weft::cpu {

namespace {

// Floating to integer in C++ is undefined outside the range: saturates instead, NaN gives 0.
template <class To, class From>
To convert_one(From from) {
  if constexpr (std::is_same_v<From, BFloat16>) return convert_one<To>(static_cast<float>(from));
  else if constexpr (std::is_same_v<To, BFloat16>) return BFloat16(static_cast<float>(from));
  else if constexpr (std::is_same_v<To, bool>) return from != From(0);
  else if constexpr (std::is_floating_point_v<From> && std::is_integral_v<To>) {
    using Limits = std::numeric_limits<To>;
    // 2^63 as a float is exact, so `>=` catches all that does not fit.
    if (!(from > static_cast<From>(Limits::min()))) return from != from ? To(0) : Limits::min();
    if (from >= static_cast<From>(Limits::max())) return Limits::max();
    return static_cast<To>(from);
  } else return static_cast<To>(from);
}

template <class To, class From>
void run(const void*, char* const* operands, int64_t n) {
  To* to = reinterpret_cast<To*>(operands[0]);
  const From* from = reinterpret_cast<const From*>(operands[1]);
  for (int64_t i = 0; i < n; ++i) to[i] = convert_one<To>(from[i]);
}

template <class To>
Chunk chunk_to(DType from) {
  switch (from) {
    case DType::float32: return run<To, float>;
    case DType::bfloat16: return run<To, BFloat16>;
    case DType::float64: return run<To, double>;
    case DType::int64: return run<To, int64_t>;
    case DType::int32: return run<To, int32_t>;
    case DType::uint8: return run<To, uint8_t>;
    case DType::boolean: return run<To, bool>;
  }
  return nullptr;
}

Chunk conversion(DType to, DType from) {
  if (Chunk chunk = with_isa([&]<Isa I>() { return ElementwiseKernels<I>::convert(to, from); })) return chunk;
  switch (to) {
    case DType::float32: return chunk_to<float>(from);
    case DType::bfloat16: return chunk_to<BFloat16>(from);
    case DType::float64: return chunk_to<double>(from);
    case DType::int64: return chunk_to<int64_t>(from);
    case DType::int32: return chunk_to<int32_t>(from);
    case DType::uint8: return chunk_to<uint8_t>(from);
    case DType::boolean: return chunk_to<bool>(from);
  }
  return nullptr;
}

}  // namespace

void copy(Tensor& to, const Tensor& from) {
  Loop loop(to.shape());
  loop.output(to);
  loop.input(from);
  if (to.dtype() == from.dtype()) loop.copy();
  else loop.run(conversion(to.dtype(), from.dtype()), nullptr);
}

void fill(Tensor& x, double value) { copy(x, Tensor::full({}, value, x.dtype(), Device::cpu())); }

}  // namespace weft::cpu
