// Backward in plain arithmetic, from known statistic and delta:
//   S = Q K^T, dP = dO V^T, W = weight(S), dS = dscore(W, dP, delta);   dV += W^T dO, dK += scale dS^T Q, dQ += scale dS K
// Two kernels, so that every sum has one owner: a block has a tile of keys of one key/value head and walks the queries of all
// heads of its group, or it has a tile of queries of one head and walks the keys.
#pragma once

#include "ops/cuda/attention/tile_f32.cuh"

namespace weft::cuda::attention::plain {

// What backward reads of a query.
template <class T, class Score, class Normaliser>
struct QueryRow {
  bool is_there;
  PairToken<T, Score> token;
  T shift, delta = 0;

  __device__ __forceinline__ QueryRow(const Work& w, int64_t b, int head, int64_t at)
      : is_there(at < w.p.queries), token(pair_token<T, Score>(w.queries, w.p.query_bias, b, at, head)) {
    T statistic = 0;
    if (is_there) {
      int64_t row = (b * w.p.queries + at) * w.p.heads + head;
      if constexpr (Normaliser::kHasStatistic) {
        statistic = static_cast<const T*>(w.p.statistic)[row];
        delta = static_cast<const T*>(w.p.delta)[row];
      }
    }
    shift = Normaliser::backward_shift(statistic);
  }
};
template <class T, class Score>
struct KeyRow {
  bool is_there;
  PairToken<T, Score> token;

  __device__ __forceinline__ KeyRow(const Work& w, int64_t b, int head, int64_t at)
      : is_there(at < w.p.keys), token(pair_token<T, Score>(w.keys, w.p.key_bias, b, at, head)) {}
};

template <class T>
__device__ __forceinline__ void clear(T (&acc)[kOf<T>][kMostColumns]) {
#pragma unroll
  for (int i = 0; i < kOf<T>; ++i)
#pragma unroll
    for (int j = 0; j < kMostColumns; ++j) acc[i][j] = 0;
}

// Adds factor * acc to the rows of tokens first + y + 16 i, `stride` elements apart, and clears it.
template <class T>
__device__ __forceinline__ void add_rows(T* to, int64_t stride, T (&acc)[kOf<T>][kMostColumns], int64_t first,
                                         int64_t count, int64_t width, T factor) {
#pragma unroll
  for (int i = 0; i < kOf<T>; ++i) {
    int64_t at = first + thread_y() + kSide * i;
    if (at < count) for_columns(acc[i], width, [&](T x, int c) { to[at * stride + c] += factor * x; });
  }
  clear(acc);
}

// Block (row, key/value head, tile of keys).
template <class T, class Mask, class Score, class Normaliser>
__global__ void __launch_bounds__(kThreads) backward_keys(Work w, Mask mask, Score score, Dropout dropout) {
  constexpr int R = kOf<T>;
  auto& s = *reinterpret_cast<BackwardShared<T>*>(dynamic_shared());
  const Problem& p = w.p;
  int block = static_cast<int>(blockIdx.x), tiles = w.keys.tiles, groups = static_cast<int>(p.kv_heads);
  int tile = block % tiles, kv_head = block / tiles % groups, b = block / tiles / groups;
  int each = static_cast<int>(p.heads_per_group());
  int64_t k0 = int64_t{tile} * kTile<T>;
  Pairs<T, Mask, Score, Normaliser> pairs(w, mask, score, dropout, b);
  Operand k = p.k.at(b, kv_head), v = p.v.at(b, kv_head);
  T dk[R][kMostColumns], dv[R][kMostColumns];
  clear(dk), clear(dv);
  const int64_t row = b * p.keys * p.kv_heads + kv_head;
  T* to_dk = static_cast<T*>(p.dk) + row * p.key_width;
  T* to_dv = static_cast<T*>(p.dv) + row * p.value_width;
  Walk<Mask, false> walk(w, mask, b, tile, kv_head * each, kv_head * each + each);
  Tile at;
  bool is_more = walk.next(at);
  for (int turn = 1; is_more; ++turn) {
    int64_t q0 = int64_t{at.index} * kTile<T>;
    Operand q = p.q.at(b, at.head), dout = p.dout.at(b, at.head);
    T x[R][R];
    product(x, s, k, k0, p.keys, q, q0, p.queries, p.key_width);
    put(s.weights, x);
    product(x, s, v, k0, p.keys, dout, q0, p.queries, p.value_width);
    put(s.dscores, x);
    [[maybe_unused]] T bias_sums[R] = {};
#pragma unroll 1
    for (int j = thread_x(); j < kTile<T>; j += kSide) {
      QueryRow<T, Score, Normaliser> query(w, b, at.head, q0 + j);
#pragma unroll 1
      for (int i = thread_y(); i < kTile<T>; i += kSide) {
        KeyRow<T, Score> key(w, b, at.head, k0 + i);
        bool is_kept = at.is_full || (query.is_there && pairs.keep(at.head, query.token, key.token));
        auto g = pairs.gradient(s.weights[i][j], s.dscores[i][j], query.shift, query.delta, is_kept, at.head,
                                query.token, key.token);
        s.weights[i][j] = g.weight;
        s.dscores[i][j] = g.dscore;
        if constexpr (pairs.kBiased) bias_sums[i / kSide] += query.is_there ? g.dbias : T(0);
      }
    }
    if constexpr (pairs.kBiased)
      for (int i = 0; i < R; ++i)
        add_bias_gradient<kSide>(p.key_bias, b, k0 + thread_y() + kSide * i, at.head, bias_sums[i]);
    accumulate(dv, s.weights, s, dout, q0, p.queries, p.value_width);
    accumulate(dk, s.dscores, s, q, q0, p.queries, p.key_width);
    is_more = walk.next(at);
    if (is_more && turn % kTilesOfSum != 0) continue;
    add_rows(to_dk, p.kv_heads * p.key_width, dk, k0, p.keys, p.key_width, static_cast<T>(p.scale));
    add_rows(to_dv, p.kv_heads * p.value_width, dv, k0, p.keys, p.value_width, T(1));
  }
}

// Block (row, head, tile of queries), later tiles first.
template <class T, class Mask, class Score, class Normaliser>
__global__ void __launch_bounds__(kThreads) backward_queries(Work w, Mask mask, Score score, Dropout dropout) {
  constexpr int R = kOf<T>;
  auto& s = *reinterpret_cast<BackwardShared<T>*>(dynamic_shared());
  const Problem& p = w.p;
  int block = static_cast<int>(blockIdx.x), tiles = w.queries.tiles, heads = static_cast<int>(p.heads);
  int tile = tiles - 1 - block % tiles, head = block / tiles % heads, b = block / tiles / heads;
  int64_t q0 = int64_t{tile} * kTile<T>, kv_head = head / p.heads_per_group();
  Pairs<T, Mask, Score, Normaliser> pairs(w, mask, score, dropout, b);
  Operand q = p.q.at(b, head), dout = p.dout.at(b, head), k = p.k.at(b, kv_head), v = p.v.at(b, kv_head);
  T dq[R][kMostColumns];
  clear(dq);
  T* to_dq = static_cast<T*>(p.dq) + (b * p.queries * p.heads + head) * p.key_width;
  Walk<Mask, true> walk(w, mask, b, tile, head, head + 1);
  Tile at;
  bool is_more = walk.next(at);
  for (int turn = 1; is_more; ++turn) {
    int64_t k0 = int64_t{at.index} * kTile<T>;
    T x[R][R];
    product(x, s, q, q0, p.queries, k, k0, p.keys, p.key_width);
    put(s.weights, x);
    product(x, s, dout, q0, p.queries, v, k0, p.keys, p.value_width);
    put(s.dscores, x);
#pragma unroll 1
    for (int i = thread_y(); i < kTile<T>; i += kSide) {
      QueryRow<T, Score, Normaliser> query(w, b, head, q0 + i);
      [[maybe_unused]] T bias_sum = 0;
#pragma unroll 1
      for (int j = thread_x(); j < kTile<T>; j += kSide) {
        KeyRow<T, Score> key(w, b, head, k0 + j);
        bool is_kept = at.is_full || (key.is_there && pairs.keep(head, query.token, key.token));
        auto g = pairs.gradient(s.weights[i][j], s.dscores[i][j], query.shift, query.delta, is_kept, head, query.token,
                                key.token);
        s.dscores[i][j] = g.dscore;
        if constexpr (pairs.kBiased) bias_sum += key.is_there ? g.dbias : T(0);
      }
      if constexpr (pairs.kBiased) add_bias_gradient<kSide>(p.query_bias, b, q0 + i, head, bias_sum);
    }
    accumulate(dq, s.dscores, s, k, k0, p.keys, p.key_width);
    is_more = walk.next(at);
    if (is_more && turn % kTilesOfSum != 0) continue;
    add_rows(to_dq, p.heads * p.key_width, dq, q0, p.queries, p.key_width, static_cast<T>(p.scale));
  }
}

}  // namespace weft::cuda::attention::plain

namespace weft::cuda::attention {

template <class T>
void backward_plain(const Problem& p, const ops::AttentionOptions& options) {
  Prepared prepared(p, plain::kTile<T>, plain::kTile<T>);
  const Work& w = prepared.work;
  dim3 key_grid(static_cast<unsigned>(p.batch * p.kv_heads * w.keys.tiles)),
      query_grid(static_cast<unsigned>(p.batch * p.heads * w.queries.tiles));
  with_functors<kScoresOf<T>>(options, [&](auto mask, auto score, auto normaliser) {
    using Mask = decltype(mask);
    using Score = decltype(score);
    using Normaliser = decltype(normaliser);
    launch("attention_backward", plain::backward_keys<T, Mask, Score, Normaliser>, key_grid, dim3(kThreads),
           sizeof(plain::BackwardShared<T>), stream_of(p), w, mask, score, Dropout(p));
    launch("attention_backward", plain::backward_queries<T, Mask, Score, Normaliser>, query_grid, dim3(kThreads),
           sizeof(plain::BackwardShared<T>), stream_of(p), w, mask, score, Dropout(p));
  });
}

}  // namespace weft::cuda::attention
