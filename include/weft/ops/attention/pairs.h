// Pairs of bf16 numbers: operands of the products of CPUs with AVX-512 BF16, where one instruction multiplies two neighbours along the
// summed dimension and adds both products to a float32 sum. A packed operand is an array of pairs, the first neighbour in the low half.
// The core's tile products are the same loops for packed numbers and for packed pairs (tile.h); here is what packs them.
#pragma once

#include <algorithm>

#include "weft/ops/attention/transpose.h"

namespace weft::ops::core {

// Arithmetic of a pass: the number it computes and sums in, the element of packed operands, and how many numbers such an element holds.
struct Bf16Pairs;
template <class A>
struct Arithmetic {
  using Number = A;
  using Packed = A;
  static constexpr int kDepth = 1;
};
template <>
struct Arithmetic<Bf16Pairs> {
  using Number = float;
  using Packed = uint32_t;
  static constexpr int kDepth = 2;
};

namespace {

// Elements of `width` numbers along the summed dimension.
template <class A>
[[gnu::always_inline]] inline int64_t steps_of(int64_t width) {
  return (width + Arithmetic<A>::kDepth - 1) / Arithmetic<A>::kDepth;
}

[[gnu::always_inline]] inline const uint16_t* bf16_row(const Operand& x, int64_t token) {
  return static_cast<const uint16_t*>(x.data) + token * x.token_stride;
}

// dst[i][p] = channels 2p and 2p + 1 of row first + i, padded with zeros to `ld` pairs and to `rows_padded` rows.
[[gnu::noinline]] inline void pack_row_pairs(const Operand& x, int64_t first, int64_t rows, int64_t width,
                                             uint32_t* dst, int64_t ld, int64_t rows_padded) {
  for (int64_t i = 0; i < rows; ++i) {
    auto* row = reinterpret_cast<uint16_t*>(dst + i * ld);
    std::copy_n(bf16_row(x, first + i), width, row);
    std::fill(row + width, row + 2 * ld, uint16_t{0});
  }
  std::fill(dst + rows * ld, dst + rows_padded * ld, 0u);
}

// dst[panel][p][lane] = channels 2p and 2p + 1 of token first + panel * kPanel + lane, zeros behind the last token and channel.
[[gnu::noinline]] inline void pack_lane_pairs(const Operand& x, int64_t first, int64_t rows, int64_t width,
                                              uint32_t* dst) {
  constexpr int L = kLanes<uint32_t>;
  pack_transposed<uint32_t>(
      rows, (width + 1) / 2, dst, [&](int64_t i, int64_t p) __attribute__((always_inline)) {
        const uint16_t* from = bf16_row(x, first + i) + 2 * p;
        Lanes<uint32_t> pairs{};
        if (width - 2 * p >= 2 * L) {
          __builtin_memcpy(&pairs, from, sizeof pairs);
        } else {
          uint16_t part[2 * L] = {};
          std::copy_n(from, width - 2 * p, part);
          __builtin_memcpy(&pairs, part, sizeof pairs);
        }
        return pairs;
      });
}

// dst[i][c] = channel c of tokens first + 2i and first + 2i + 1, padded with zeros to `ld` columns; an odd last token's neighbour is 0.
[[gnu::noinline]] inline void pack_token_pairs(const Operand& x, int64_t first, int64_t rows, int64_t width,
                                               uint32_t* dst, int64_t ld) {
  for (int64_t i = 0; i < rows; i += 2, dst += ld) {
    const uint16_t *low = bf16_row(x, first + i), *high = low + (i + 1 < rows ? x.token_stride : 0);
    const uint32_t keep = i + 1 < rows ? 0xffff0000u : 0u;
    for (int64_t c = 0; c < width; ++c) dst[c] = low[c] | ((static_cast<uint32_t>(high[c]) << 16) & keep);
    std::fill(dst + width, dst + ld, 0u);
  }
}

// Packing of operands in the arithmetic A. The pairs' operands are as they are: their products are scaled, not they.
template <class A>
[[gnu::always_inline]] inline void pack_row_operand(const Operand& x, int64_t first, int64_t rows, int64_t width,
                                                    typename Arithmetic<A>::Number scale,
                                                    typename Arithmetic<A>::Packed* dst, int64_t ld,
                                                    int64_t rows_padded) {
  if constexpr (Arithmetic<A>::kDepth == 1) pack_rows<A>(x, first, rows, width, scale, dst, ld, rows_padded);
  else pack_row_pairs(x, first, rows, width, dst, ld, rows_padded);
}
template <class A>
[[gnu::always_inline]] inline void pack_lane_operand(const Operand& x, int64_t first, int64_t rows, int64_t width,
                                                     typename Arithmetic<A>::Number scale,
                                                     typename Arithmetic<A>::Packed* dst) {
  if constexpr (Arithmetic<A>::kDepth == 1) pack_lane_rows<A>(x, first, rows, width, scale, dst);
  else pack_lane_pairs(x, first, rows, width, dst);
}

// The operand whose rows the product is summed over.
template <class A>
[[gnu::always_inline]] inline void pack_depth_operand(const Operand& x, int64_t first, int64_t rows, int64_t width,
                                                      typename Arithmetic<A>::Packed* dst, int64_t ld) {
  if constexpr (Arithmetic<A>::kDepth == 1) pack_rows<A>(x, first, rows, width, A(1), dst, ld, rows);
  else pack_token_pairs(x, first, rows, width, dst, ld);
}

// Weights and score gradients of one panel of keys, and their pairs: along the queries, and of the score gradients also along the keys.
struct PanelPairs {
  const float *weights, *dscores;                       // [query][lane of the panel]
  uint32_t *weight_depth, *dscore_depth, *dscore_rows;  // [query / 2][key] and [query][key / 2], in blocks
};

// X: uint32_t, whose Products are known where this is used. Of queries row0 to row0 + kGroup - 1. What lies behind the last query or key is no number of a pair: its place is 0.
template <class X>
[[gnu::noinline]] void pair_group(const PanelPairs& p, int panel, int64_t row0, int64_t queries, int64_t keys) {
  using V = Lanes<float>;
  constexpr int L = kLanes<float>, P = kPanel<float>;
  const int64_t keys_here = keys - panel * P;
  V lane;
  for (int c = 0; c < L; ++c) lane[c] = static_cast<float>(c);
  for (int64_t i = row0; i < row0 + kGroup; i += 2) {
    V w[2][2], ds[2][2];  // by row, by half of the panel
    for (int r = 0; r < 2; ++r)
      for (int n = 0; n < 2; ++n) {
        const int64_t from = (i + r) * P + n * L;
        const bool is_query = i + r < queries;
        w[r][n] = is_query ? load(p.weights + from) : V{};
        ds[r][n] = is_query ? load(p.dscores + from) : V{};
        if (keys_here < P) ds[r][n] = lane < broadcast<V>(static_cast<float>(keys_here - n * L)) ? ds[r][n] : V{};
      }
    for (int n = 0; n < 2; ++n) {
      const int64_t to = i / 2 * kBlock + panel * P + n * L;
      store(p.weight_depth + to, Products<X>::pair_of(w[0][n], w[1][n]));
      store(p.dscore_depth + to, Products<X>::pair_of(ds[0][n], ds[1][n]));
    }
    for (int r = 0; r < 2; ++r)
      store(p.dscore_rows + (i + r) * (kBlock / 2) + panel * L, Products<X>::neighbours_of(ds[r][0], ds[r][1]));
  }
}

}  // namespace
}  // namespace weft::ops::core
