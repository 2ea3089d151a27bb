// Products of small matrices in scratch: register tiles of kTile rows and two vectors. Every size is padded to a multiple of kStep.
#pragma once

#include "ops/cpu/recurrence/kernels.h"
#include "weft/ops/attention/tile.h"

namespace weft::cpu {
namespace {

using namespace ops::core;

#if defined(__AVX512F__)
inline constexpr int kTile = 8;  // 8 x 2 of 32 registers
#else
inline constexpr int kTile = 4;
#endif
template <class T>
inline constexpr int kStep = kTile > kLanes<T> ? kTile : kLanes<T>;

template <class T>
struct Matrix {  // rows of `ld` numbers
  T* data = nullptr;
  int64_t ld = 0;
  T* row(int64_t i) const { return data + i * ld; }
};

template <class T>
Matrix<T> take_matrix(Carver& carve, int64_t rows, int64_t width) {
  return {carve.take<T>(rows * width), width};
}

enum class Part {
  all,
  lower,       // a(r, p) counts for p <= r
  upper,       // a(r, p) counts for p >= r
  lower_rows,  // c(r, n) is wanted for n <= r
};

template <class T>
struct Extent {
  int64_t rows, width, depth;
  Part part = Part::all;
  bool adds = false;           // to c
  const T* factors = nullptr;  // of the rows of c, to which it adds
};

// c = a b, or c + a b, or factor(r) c + a b. kAdjacent: a(r, p) is at a.data[p * ld + r], otherwise at a.data[r * ld + p].
template <bool kAdjacent, class T>
[[gnu::noinline]] void product(Matrix<T> a, Matrix<T> b, Matrix<T> c, const Extent<T>& e) {
  constexpr int L = kLanes<T>;
  using V = Lanes<T>;
  for (int64_t r0 = 0; r0 < e.rows; r0 += kTile) {
    int64_t first = 0, last = e.depth, width = e.width;
    if (e.part == Part::lower) last = smaller(last, r0 + kTile);
    if (e.part == Part::upper) first = r0;
    if (e.part == Part::lower_rows) width = smaller(width, round_up(r0 + kTile, L));
    auto columns = [&]<int NR>(int64_t n0) __attribute__((always_inline)) {
      V acc[kTile][NR] = {};
      const T *at = kAdjacent ? a.data + first * a.ld + r0 : a.data + r0 * a.ld + first, *row = b.row(first) + n0;
      for (int64_t p = first; p < last; ++p, at += kAdjacent ? a.ld : 1, row += b.ld) {
        V right[NR];
#pragma GCC unroll 2
        for (int n = 0; n < NR; ++n) right[n] = load(row + n * L);
#pragma GCC unroll 8
        for (int r = 0; r < kTile; ++r) {
          V left = broadcast<V>(at[kAdjacent ? r : r * a.ld]);
#pragma GCC unroll 2
          for (int n = 0; n < NR; ++n) acc[r][n] += left * right[n];
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < kTile; ++r) {
#pragma GCC unroll 2
        for (int n = 0; n < NR; ++n) {
          T* to = c.row(r0 + r) + n0 + n * L;
          if (e.factors) acc[r][n] += load(to) * e.factors[r0 + r];
          else if (e.adds) acc[r][n] += load(to);
          store(to, acc[r][n]);
        }
      }
    };
    int64_t n0 = 0;
    for (; n0 + 2 * L <= width; n0 += 2 * L) columns.template operator()<2>(n0);
    if (n0 < width) columns.template operator()<1>(n0);
  }
}

// to(c, r) = from(r, c), by squares of kLanes: log2(kLanes) rounds that swap halves of rows.
template <class T>
[[gnu::noinline]] void transpose(Matrix<T> from, Matrix<T> to, int64_t rows, int64_t width) {
  constexpr int L = kLanes<T>;
  using V = Lanes<T>;
  using Index = typename LaneTraits<V>::Bits;
  for (int64_t r0 = 0; r0 < rows; r0 += L)
    for (int64_t c0 = 0; c0 < width; c0 += L) {
      V x[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) x[i] = load(from.row(r0 + i) + c0);
#pragma GCC unroll 4
      for (int half = 1; half < L; half *= 2) {
        Index low{}, high{};  // of rows i and i + half: lanes without and with the bit `half`
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) {
          low[i] = i & half ? L + i - half : i;
          high[i] = i & half ? L + i : i + half;
        }
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) {
          if (i & half) continue;
          V a = x[i], b = x[i + half];
          x[i] = __builtin_shuffle(a, b, low);
          x[i + half] = __builtin_shuffle(a, b, high);
        }
      }
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) store(to.row(c0 + i) + r0, x[i]);
    }
}

// Writes the rows of a block to a tensor, rounded to its dtype, or adds them to it.
template <class T>
[[gnu::noinline]] void store_rows(const Operand& to, int64_t first, int64_t rows, int64_t width, Matrix<T> from,
                                  T scale, bool adds) {
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t at = (first + i) * to.token_stride;
    const T* row = from.row(i);
    if (to.is_bf16) {
      auto* out = static_cast<BFloat16*>(const_cast<void*>(to.data)) + at;
      for (int64_t c = 0; c < width; ++c) out[c] = BFloat16(static_cast<float>(row[c] * scale));
      continue;
    }
    T* out = static_cast<T*>(const_cast<void*>(to.data)) + at;
    int64_t c = 0;
    for (; c + kLanes<T> <= width; c += kLanes<T>)
      store(out + c, adds ? load(out + c) + load(row + c) * scale : load(row + c) * scale);
    for (; c < width; ++c) out[c] = adds ? out[c] + row[c] * scale : row[c] * scale;
  }
}

}  // namespace
}  // namespace weft::cpu
