// What masks and scores see: the global position and document of a token, and the ranges of a tile of tokens.
// A mask functor has two members, evaluated on global positions (row: global batch row; head: query head):
//   template <class I> auto keep(int64_t row, int64_t head, Token<I> query, Token<I> key) const;   // & and |, not && and ||
//   Cover cover(int64_t row, int64_t head, TokenRange queries, TokenRange keys) const;              // may say partial, never wrong
// `I` is int32_t or lanes of it; a functor that only takes Token<int32_t> and returns bool works too, slower.
#pragma once

#include <algorithm>
#include <cstdint>

#include "weft/ops/attention/lanes.h"

namespace weft::ops {

template <class I>
struct Token {
  I position, document;
};

struct TokenRange {
  int32_t position_min, position_max, document_min, document_max;
};

enum class Cover : uint8_t { empty, partial, full };

namespace core {

inline constexpr TokenRange kNoTokens = {INT32_MAX, INT32_MIN, INT32_MAX, INT32_MIN};

[[gnu::always_inline]] WEFT_HD TokenRange join(const TokenRange& a, const TokenRange& b) {
  auto low = [](int32_t x, int32_t y) { return x < y ? x : y; };
  auto high = [](int32_t x, int32_t y) { return x > y ? x : y; };
  return {low(a.position_min, b.position_min), high(a.position_max, b.position_max),
          low(a.document_min, b.document_min), high(a.document_max, b.document_max)};
}

// Positions and documents of one side, [B, n]; documents may be absent (all 0).
struct TokenView {
  const int32_t* position = nullptr;
  const int32_t* document = nullptr;
  int64_t batch_stride = 0, stride = 1;
  int64_t document_batch_stride = 0, document_stride = 1;

  WEFT_HD Token<int32_t> at(int64_t b, int64_t i) const {
    return {position[b * batch_stride + i * stride],
            document ? document[b * document_batch_stride + i * document_stride] : 0};
  }
};

#ifndef __CUDACC__
namespace {

// The mask for lanes of pairs. Functors that take plain tokens are called lane by lane.
template <class T, class Mask>
[[gnu::always_inline]] inline LaneInts<T> keep_lanes(const Mask& mask, int64_t row, int64_t head, Token<LaneInts<T>> q,
                                                     Token<LaneInts<T>> k) {
  if constexpr (requires {
                  { mask.keep(row, head, q, k) } -> std::same_as<LaneInts<T>>;
                }) {
    return mask.keep(row, head, q, k);
  } else {
    LaneInts<T> keep{};
    for (int i = 0; i < kLanes<T>; ++i)
      keep[i] = mask.keep(row, head, Token<int32_t>{q.position[i], q.document[i]},
                          Token<int32_t>{k.position[i], k.document[i]})
                    ? -1
                    : 0;
    return keep;
  }
}

template <class T, class Score>
[[gnu::always_inline]] inline Lanes<T> score_value(const Score& score, Lanes<T> s, int64_t row, int64_t head,
                                                   Token<LaneInts<T>> q, Token<LaneInts<T>> k) {
  if constexpr (requires {
                  { score.value(s, row, head, q, k) } -> std::same_as<Lanes<T>>;
                }) {
    return score.value(s, row, head, q, k);
  } else {
    for (int i = 0; i < kLanes<T>; ++i)
      s[i] = score.value(T(s[i]), row, head, Token<int32_t>{q.position[i], q.document[i]},
                         Token<int32_t>{k.position[i], k.document[i]});
    return s;
  }
}

template <class T, class Score>
[[gnu::always_inline]] inline Lanes<T> score_slope(const Score& score, Lanes<T> s, int64_t row, int64_t head,
                                                   Token<LaneInts<T>> q, Token<LaneInts<T>> k) {
  if constexpr (requires {
                  { score.slope(s, row, head, q, k) } -> std::same_as<Lanes<T>>;
                }) {
    return score.slope(s, row, head, q, k);
  } else {
    for (int i = 0; i < kLanes<T>; ++i)
      s[i] = score.slope(T(s[i]), row, head, Token<int32_t>{q.position[i], q.document[i]},
                         Token<int32_t>{k.position[i], k.document[i]});
    return s;
  }
}

}  // namespace
#endif
}  // namespace core
}  // namespace weft::ops
