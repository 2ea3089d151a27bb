// Packing of the operand whose tokens become lanes: rows of channels are read as vectors and transposed in registers.
#pragma once

#include <utility>

#include "weft/ops/attention/tile.h"

namespace weft::ops::core {
namespace {

// Lane c of row i and lane i of row c change places where the bit S of i and c differs. Over all bits this transposes the rows.
template <int S, class X, int... I>
[[gnu::always_inline]] inline void exchange_lanes(Lanes<X> (&rows)[kLanes<X>], std::integer_sequence<int, I...>) {
  constexpr int L = kLanes<X>;
  using Index = typename LaneTraits<Lanes<X>>::Bits;
  constexpr Index low = {((I & S) ? L + I - S : I)...}, high = {((I & S) ? L + I : I + S)...};
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    if (i & S) continue;
    const Lanes<X> a = rows[i], b = rows[i + S];
    rows[i] = __builtin_shuffle(a, b, low), rows[i + S] = __builtin_shuffle(a, b, high);
  }
}
template <class X>
[[gnu::always_inline]] inline void transpose_lanes(Lanes<X> (&rows)[kLanes<X>]) {
  constexpr auto all = std::make_integer_sequence<int, kLanes<X>>{};
  exchange_lanes<1, X>(rows, all);
  if constexpr (kLanes < X >> 2) exchange_lanes<2, X>(rows, all);
  if constexpr (kLanes < X >> 4) exchange_lanes<4, X>(rows, all);
  if constexpr (kLanes < X >> 8) exchange_lanes<8, X>(rows, all);
}

// dst[panel][c][lane] = element c of row panel * kPanel + lane, zeros behind the last row. lanes_of(i, c) gives elements c, c + 1, ... of row
// i, whatever lies behind the last one.
template <class X, class F>
[[gnu::always_inline]] inline void pack_transposed(int64_t rows, int64_t width, X* dst, F&& lanes_of) {
  constexpr int P = kPanel<X>, L = kLanes<X>;
  for (int64_t i0 = 0; i0 < round_up(rows, P); i0 += L) {
    X* to = dst + i0 / P * P * width + i0 % P;
    for (int64_t c0 = 0; c0 < width; c0 += L) {
      Lanes<X> block[L];
#pragma GCC unroll 16
      for (int r = 0; r < L; ++r) block[r] = i0 + r < rows ? lanes_of(i0 + r, c0) : Lanes<X>{};
      transpose_lanes<X>(block);
      const int64_t columns = smaller(L, width - c0);
#pragma GCC unroll 16
      for (int c = 0; c < L; ++c)
        if (c < columns) store(to + (c0 + c) * P, block[c]);
    }
  }
}

// `count` elements from `at` on in the first lanes, zeros in the others; elements beyond them are not read.
template <class T>
[[gnu::always_inline]] inline Lanes<T> elements(const Operand& x, int64_t at, int64_t count) {
  constexpr int L = kLanes<T>;
  if (count >= L && !x.is_bf16) return load(static_cast<const T*>(x.data) + at);
  if constexpr (sizeof(T) == sizeof(float))
    if (count >= L) {
      typename VectorOf<uint16_t, L>::type high;
      __builtin_memcpy(&high, static_cast<const uint16_t*>(x.data) + at, sizeof high);
      return bit_cast_lanes<Lanes<T>>(__builtin_convertvector(high, Lanes<uint32_t>) << 16);
    }
  T part[L] = {};
  for (int64_t i = 0; i < smaller(count, L); ++i) part[i] = element<T>(x, at + i);
  return load(part);
}

// dst[panel][c][lane] = scale * x(first + panel * kPanel + lane, c): lanes are tokens, zeros behind the last one.
template <class T>
[[gnu::noinline]] void pack_lane_rows(const Operand& x, int64_t first, int64_t rows, int64_t width, T scale, T* dst) {
  const Lanes<T> factor = broadcast<Lanes<T>>(scale);
  pack_transposed<T>(
      rows, width, dst, [&](int64_t i, int64_t c) __attribute__((always_inline)) {
        return elements<T>(x, (first + i) * x.token_stride + c, width - c) * factor;
      });
}

}  // namespace
}  // namespace weft::ops::core
