// Element types. bfloat16 is only a storage type: results are computed in float32 and rounded once, to nearest even.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "weft/core/error.h"

#if defined(__CUDACC__)
#define WEFT_HD __host__ __device__ __forceinline__
#else
#define WEFT_HD inline
#endif

namespace weft {

enum class DType : uint8_t { float32, bfloat16, float64, int64, int32, uint8, boolean };

inline constexpr DType kF32 = DType::float32, kBF16 = DType::bfloat16, kF64 = DType::float64, kI64 = DType::int64,
                       kI32 = DType::int32, kU8 = DType::uint8, kBool = DType::boolean;

// The upper half of a float32. Conversion from float rounds to nearest even; a NaN stays a NaN.
struct BFloat16 {
  uint16_t bits = 0;

  BFloat16() = default;
  WEFT_HD explicit BFloat16(float x) : bits(round(x)) {}
  WEFT_HD operator float() const { return expand(bits); }

 private:
  WEFT_HD static uint16_t round(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800  // one instruction; a NaN has other bits
    uint16_t rounded;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(x));
    return rounded;
#else
    uint32_t u = to_bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);
    return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
#endif
  }
  WEFT_HD static float expand(uint16_t bits) {
    uint32_t u = static_cast<uint32_t>(bits) << 16;
    float x;
    __builtin_memcpy(&x, &u, 4);
    return x;
  }
  WEFT_HD static uint32_t to_bits(float x) {
    uint32_t u;
    __builtin_memcpy(&u, &x, 4);
    return u;
  }
};

size_t size_of(DType dtype);              // bytes of one element
std::string_view to_string(DType dtype);  // "f32", "bf16", "f64", "i64", "i32", "u8", "bool"
bool is_floating(DType dtype);            // f32, bf16, f64

template <class T>
struct TypeTag {
  using type = T;
};

template <class T>
constexpr DType dtype_of() {
  if constexpr (std::same_as<T, float>) return kF32;
  else if constexpr (std::same_as<T, BFloat16>) return kBF16;
  else if constexpr (std::same_as<T, double>) return kF64;
  else if constexpr (std::same_as<T, int64_t>) return kI64;
  else if constexpr (std::same_as<T, int32_t>) return kI32;
  else if constexpr (std::same_as<T, uint8_t>) return kU8;
  else {
    static_assert(std::same_as<T, bool>, "no DType for this type");
    return kBool;
  }
}

// Calls f(TypeTag<T>{}) for the T of `dtype` among Ts; otherwise an Error that names op, dtype and the supported ones.
//   with_type<float, double>(x.dtype(), "softmax", [&](auto tag) { using T = typename decltype(tag)::type; ... });
template <class... Ts, class F>
void with_type(DType dtype, std::string_view op, F&& f) {
  bool found = ((dtype == dtype_of<Ts>() ? (f(TypeTag<Ts>{}), true) : false) || ...);
  if (!found) {
    std::string supported;
    ((supported += supported.empty() ? "" : ", ", supported += to_string(dtype_of<Ts>())), ...);
    fail(str(op, ": dtype ", dtype, " is not supported"), str("cast to one of: ", supported));
  }
}

}  // namespace weft
