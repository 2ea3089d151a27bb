// What an item of the backward works in: the sums of its blocks of keys, and one block of queries with its scores.
#pragma once

#include "weft/ops/attention/fetch.h"
#include "weft/ops/attention/pairs.h"
#include "weft/ops/attention/plan.h"

namespace weft::ops::core {
namespace {

// One block of keys.
template <class A, bool kBiased>
struct BackwardStrip {
  using T = typename Arithmetic<A>::Number;
  using Packed = typename Arithmetic<A>::Packed;
  Packed *key_lanes, *value_lanes, *keys;
  T *dk, *dv;
  T* is_key;          // with biases: 1, or 0 behind the last key
  double* bias_sums;  // gradients of the keys' biases of the head at work
  BlockTokens* tokens;
  BlockBias<T>* bias;
  int64_t block, k0;
  int count, tiles;  // tiles: summed in dk and dv
  bool has_given;    // sums of earlier tiles to the caller
};

// The block of queries at work, and the strips.
template <class A, bool kBiased, int kMaxSpan>
struct BackwardScratch {
  using T = typename Arithmetic<A>::Number;
  using Packed = typename Arithmetic<A>::Packed;
  static constexpr bool kIsPaired = Arithmetic<A>::kDepth == 2;
  static constexpr int kBlockSteps = kBlock / Arithmetic<A>::kDepth, kScoreLd = kIsPaired ? kPanel<T> : kBlock;
  Packed *queries, *douts;  // rows; with pairs these are along the channels, and there are those along the tokens too
  Packed *query_depth, *dout_depth;
  T *weights, *dscores;                               // of the tile; with pairs of one panel
  Packed *weight_depth, *dscore_depth, *dscore_rows;  // the same memory, or pairs along queries or along keys
  T *product, *statistic, *delta;
  double* bias_sums;  // gradients of the queries' biases of the tile
  BlockTokens* query_tokens;
  BlockBias<T>* query_bias;
  BackwardStrip<A, kBiased> strips[kMaxSpan];
  // What is fetched ahead: dQ of the tile, the next block of queries, where the sums go, keys of the thread's next item.
  enum Fetched {
    kQueryGradients,
    kNextQueries,
    kNextDouts,
    kKeyGradients,
    kValueGradients = kKeyGradients + kMaxSpan,
    kNextKeys = kValueGradients + kMaxSpan,
    kNextValues,
    kFetched
  };
  Fetcher<kFetched> fetcher;
  size_t bytes;

  BackwardScratch(const Problem& p, int64_t key_ld, int64_t value_ld, int64_t span, std::byte* base) {
    Carver carve(base);
    queries = carve.take<Packed>(kBlock * row_ld(key_ld)), douts = carve.take<Packed>(kBlock * row_ld(value_ld));
    weights = carve.take<T>(kBlock * kScoreLd), dscores = carve.take<T>(kBlock * kScoreLd);
    if constexpr (kIsPaired) {
      query_depth = carve.take<Packed>(kBlockSteps * key_ld), dout_depth = carve.take<Packed>(kBlockSteps * value_ld);
      weight_depth = carve.take<Packed>(kBlockSteps * kBlock);
      dscore_depth = carve.take<Packed>(kBlockSteps * kBlock);
      dscore_rows = carve.take<Packed>(kBlock * kBlockSteps);
    } else {
      query_depth = queries, dout_depth = douts;
      weight_depth = weights, dscore_depth = dscore_rows = dscores;
    }
    product = carve.take<T>(kGroup * key_ld);
    statistic = carve.take<T>(kBlock), delta = carve.take<T>(kBlock);
    query_tokens = carve.take<BlockTokens>(1), query_bias = carve.take<BlockBias<T>>(kBiased);
    bias_sums = carve.take<double>(kBiased * kBlock);
    for (int64_t i = 0; i < span; ++i) {
      BackwardStrip<A, kBiased>& s = strips[i];
      s.key_lanes = carve.take<Packed>(kBlock * steps_of<A>(p.key_width));
      s.value_lanes = carve.take<Packed>(kBlock * steps_of<A>(p.value_width));
      s.keys = carve.take<Packed>(kBlockSteps * key_ld);
      s.dk = carve.take<T>(kBlock * key_ld), s.dv = carve.take<T>(kBlock * value_ld);
      s.is_key = carve.take<T>(kBiased * kBlock), s.bias_sums = carve.take<double>(kBiased * kBlock);
      s.tokens = carve.take<BlockTokens>(1), s.bias = carve.take<BlockBias<T>>(kBiased);
    }
    bytes = carve.used();
  }
  static int64_t row_ld(int64_t ld) { return ld / Arithmetic<A>::kDepth; }  // packed elements of `ld` numbers
};

}  // namespace
}  // namespace weft::ops::core
