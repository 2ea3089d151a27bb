// Products and rounding of pairs of bf16 numbers, by AVX-512 BF16. Include it before what uses pairs; the file needs -mavx512bf16.
#pragma once

#include <immintrin.h>

#include "weft/ops/attention/pairs.h"

namespace weft::ops::core {
namespace {

template <>
struct Products<uint32_t> {
  // Both products of the pairs of each lane.
  [[gnu::always_inline]] static void add(Lanes<float>& sum, Lanes<uint32_t> a, Lanes<uint32_t> b) {
    sum = (Lanes<float>)_mm512_dpbf16_ps((__m512)sum, bit_cast_lanes<__m512bh>(a), bit_cast_lanes<__m512bh>(b));
  }
  // Each lane's numbers of two rows as pairs, rounded to nearest.
  [[gnu::always_inline]] static Lanes<uint32_t> pair_of(Lanes<float> low, Lanes<float> high) {
    constexpr VectorOf<uint16_t, 32>::type order = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                    8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const auto both = bit_cast_lanes<__m512i>(neighbours_of(low, high));
    return bit_cast_lanes<Lanes<uint32_t>>(_mm512_permutexvar_epi16(bit_cast_lanes<__m512i>(order), both));
  }
  // Neighbouring lanes of two vectors of one row as pairs, rounded to nearest.
  [[gnu::always_inline]] static Lanes<uint32_t> neighbours_of(Lanes<float> first, Lanes<float> second) {
    return bit_cast_lanes<Lanes<uint32_t>>(_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
  }
};

}  // namespace
}  // namespace weft::ops::core
