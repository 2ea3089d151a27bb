// Tile products of the attention core: register tiles of kRowStep x 2 vectors, and packing of rows into scratch.
// Blocks are kBlock tokens; on the lane side a block is cut into panels of two vectors, on the row side into groups of kGroup.
#pragma once

#include <cstddef>
#include <type_traits>

#include "weft/core/dtype.h"
#include "weft/ops/attention/lanes.h"
#include "weft/ops/attention/problem.h"

namespace weft::ops::core {

inline constexpr int kBlock = 96, kGroup = 12, kGroups = kBlock / kGroup;
// Sums over many tokens have three levels, so that their error does not grow with the number of tokens. A tile is summed by itself; its sum
// is added to the sum of kTilesOfSum tiles; and that is added to the result.
inline constexpr int kTilesOfSum = 32;
static_assert(kGroup % kRowStep == 0);

namespace {

template <class T>
inline constexpr int kPanel = 2 * kLanes<T>;
template <class T>
inline constexpr int kPanels = kBlock / kPanel<T>;

template <class T>
[[gnu::always_inline]] inline Lanes<T> load(const T* p) {
  Lanes<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
[[gnu::always_inline]] inline void store(T* p, Lanes<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}
[[gnu::always_inline]] inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
[[gnu::always_inline]] inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
[[gnu::always_inline]] inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Products of packed elements X. Those of pairs of bf16 numbers (pairs.h) are instructions: the file with their instances has them.
template <class X>
struct Products {
  [[gnu::always_inline]] static void add(Lanes<X>& sum, Lanes<X> a, Lanes<X> b) { sum += a * b; }
};

// acc[r][n] += sum_p a(r, p) * b(p, n); a(r, p) = a[p * lda + r] if rows are adjacent, else a[r * lda + p].
// X is the type of the sums, or pairs of bf16 numbers.
template <int NR, bool kRowsAdjacent, class X, class T>
[[gnu::always_inline]] inline void multiply(const X* a, int64_t lda, const X* b, int64_t ldb, int64_t depth,
                                            T (&acc)[kRowStep][NR]) {
  for (int64_t p = 0; p < depth; ++p) {
    Lanes<X> row[NR];
#pragma GCC unroll 4
    for (int n = 0; n < NR; ++n) row[n] = load(b + p * ldb + n * kLanes<X>);
#pragma GCC unroll 16
    for (int r = 0; r < kRowStep; ++r) {
      Lanes<X> x = broadcast<Lanes<X>>(kRowsAdjacent ? a[p * lda + r] : a[r * lda + p]);
#pragma GCC unroll 4
      for (int n = 0; n < NR; ++n) Products<X>::add(acc[r][n], x, row[n]);
    }
  }
}

// c(r, :) = factor(r) * c(r, :) + sum_p a(r, p) b(p, :) for kRowStep rows and `width` columns (a multiple of the lanes);
// b and c are rows in scratch. kFresh: c is written, not read; kScaled: factors are given. The sum over p does not begin with c, which
// may hold many more terms.
template <bool kRowsAdjacent, bool kFresh, bool kScaled, class X, class T>
[[gnu::always_inline]] inline void row_product(const X* a, int64_t lda, const X* b, int64_t ldb, int64_t depth, T* c,
                                               int64_t ldc, int64_t width, const std::type_identity_t<T>* factors) {
  constexpr int L = kLanes<T>;
  auto columns = [&]<int NR>(int64_t n0) __attribute__((always_inline)) {
    Lanes<T> acc[kRowStep][NR] = {};
    multiply<NR, kRowsAdjacent>(a, lda, b + n0, ldb, depth, acc);
#pragma GCC unroll 16
    for (int r = 0; r < kRowStep; ++r) {
#pragma GCC unroll 4
      for (int n = 0; n < NR; ++n) {
        T* to = c + r * ldc + n0 + n * L;
        if constexpr (kScaled) acc[r][n] += load(to) * factors[r];
        else if constexpr (!kFresh) acc[r][n] += load(to);
        store(to, acc[r][n]);
      }
    }
  };
  int64_t n0 = 0;
  for (; n0 + 2 * L <= width; n0 += 2 * L) columns.template operator()<2>(n0);
  if (n0 < width) columns.template operator()<1>(n0);
}

// Row i of `to` (stride elements apart) += factor * row i of `rows`.
template <class T>
[[gnu::always_inline]] inline void add_rows(T* to, int64_t stride, const T* rows, int64_t ld, int64_t width,
                                            int64_t count, T factor) {
  constexpr int L = kLanes<T>;
  for (int64_t i = 0; i < count; ++i, to += stride, rows += ld) {
    int64_t c = 0;
    for (; c + L <= width; c += L) store(to + c, load(to + c) + load(rows + c) * factor);
    for (; c < width; ++c) to[c] += factor * rows[c];
  }
}

// Element i of a row of an operand, as the computing type.
template <class T>
[[gnu::always_inline]] inline T element(const Operand& x, int64_t at) {
  if (x.is_bf16) {
    uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(x.data)[at]) << 16;
    return static_cast<T>(__builtin_bit_cast(float, bits));
  }
  return static_cast<const T*>(x.data)[at];
}

// dst[i][0..ld) = scale * row (first + i) of x, padded with zeros to `ld` columns and to `rows_padded` rows.
template <class T>
[[gnu::noinline]] void pack_rows(const Operand& x, int64_t first, int64_t rows, int64_t width, T scale, T* dst,
                                 int64_t ld, int64_t rows_padded) {
  for (int64_t i = 0; i < rows; ++i) {
    int64_t at = (first + i) * x.token_stride;
    T* row = dst + i * ld;
    if (x.is_bf16) {
      const auto* src = static_cast<const uint16_t*>(x.data) + at;
      for (int64_t c = 0; c < width; ++c)
        row[c] = static_cast<T>(__builtin_bit_cast(float, static_cast<uint32_t>(src[c]) << 16)) * scale;
    } else {
      const T* src = static_cast<const T*>(x.data) + at;
      int64_t c = 0;
      for (; c + kLanes<T> <= width; c += kLanes<T>) store(row + c, load(src + c) * scale);
      for (; c < width; ++c) row[c] = src[c] * scale;
    }
    for (int64_t c = width; c < ld; ++c) row[c] = 0;
  }
  for (int64_t i = rows * ld; i < rows_padded * ld; ++i) dst[i] = 0;
}

// dst[panel][c][lane] = scale * x(first + panel * kPanel + lane, c): lanes are tokens, zeros behind the last one.
template <class T>
[[gnu::noinline]] void pack_lanes(const Operand& x, int64_t first, int64_t rows, int64_t width, T scale, T* dst) {
  constexpr int P = kPanel<T>;
  for (int64_t i = 0; i < round_up(rows, P); ++i) {
    T* to = dst + i / P * P * width + i % P;
    int64_t at = (first + i) * x.token_stride;
    if (i < rows) {
      for (int64_t c = 0; c < width; ++c) to[c * P] = element<T>(x, at + c) * scale;
    } else {
      for (int64_t c = 0; c < width; ++c) to[c * P] = 0;
    }
  }
}

// Asks for the rows of the next block while this one is worked on: rows of a head are far apart in memory.
[[gnu::always_inline]] inline void prefetch_rows(const Operand& x, int64_t first, int64_t end, int64_t width) {
  const int64_t bytes = width * x.element_bytes;
  for (int64_t i = first; i < smaller(first + kBlock, end); ++i) {
    const char* row = static_cast<const char*>(x.data) + i * x.token_stride * x.element_bytes;
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 0, 2);
  }
}

// Hands out pieces of the thread's scratch; every piece starts on a cache line. Without a base it only counts.
class Carver {
 public:
  explicit Carver(std::byte* base) : base_(base) {}
  template <class T>
  T* take(int64_t count) {
    auto* p = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof(T)), 64));
    return p;
  }
  size_t used() const { return used_; }

 private:
  std::byte* base_;
  size_t used_ = 0;
};

}  // namespace
}  // namespace weft::ops::core
