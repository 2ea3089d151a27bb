// Forward in plain arithmetic: a block has a tile of queries of one head and walks tiles of keys.
//   S = Q K^T, x = score(S), w = weight(x) by the normaliser's running state, O = O * rescale + W V; at the end O * factor.
#pragma once

#include "ops/cuda/attention/tile_f32.cuh"

namespace weft::cuda::attention::plain {

// The state of the 16 threads of a row is the same in each of them.
template <class T, class Mask, class Score, class Normaliser>
struct Forward {
  static constexpr int R = kOf<T>;
  using State = typename Normaliser::template State<T>;

  const Work& w;
  Pairs<T, Mask, Score, Normaliser> pairs;
  Shared<T>& s;
  int64_t b, q0;
  int head;
  PairToken<T, Score> tokens[R];
  State state[R];
  T out[R][kMostColumns];

  __device__ __forceinline__ Forward(const Work& w, const Mask& mask, const Score& score, const Dropout& dropout,
                                     Shared<T>& s, int64_t b, int head, int tile)
      : w(w), pairs(w, mask, score, dropout, b), s(s), b(b), q0(int64_t{tile} * kTile<T>), head(head) {}

  __device__ __forceinline__ bool is_there(int i) const { return q0 + thread_y() + kSide * i < w.p.queries; }
  __device__ __forceinline__ int64_t row_of(int i) const {
    return (b * w.p.queries + q0 + thread_y() + kSide * i) * w.p.heads + head;
  }

  __device__ __forceinline__ void load() {
#pragma unroll
    for (int i = 0; i < R; ++i) {
      bool has = w.p.has_state && is_there(i);
      T statistic = 0;
      if (has && Normaliser::kHasStatistic) statistic = static_cast<const T*>(w.p.statistic)[row_of(i)];
      state[i] = Normaliser::init(statistic, has);
      tokens[i] = pairs.query(w, b, q0 + thread_y() + kSide * i, head);
#pragma unroll
      for (int j = 0; j < kMostColumns; ++j) out[i][j] = 0;
      if (has)
        for_columns(out[i], w.p.value_width,
                    [&](T& x, int c) { x = static_cast<const T*>(w.p.out)[row_of(i) * w.p.value_width + c]; });
    }
  }

  __device__ __forceinline__ void add(const Tile& tile) {
    int64_t k0 = int64_t{tile.index} * kTile<T>, kv_head = head / w.p.heads_per_group();
    T x[R][R];
    product(x, s, w.p.q.at(b, head), q0, w.p.queries, w.p.k.at(b, kv_head), k0, w.p.keys, w.p.key_width);
    PairToken<T, Score> keys[R];
    bool is_key[R];
#pragma unroll
    for (int j = 0; j < R; ++j) {
      int64_t at = k0 + thread_x() + kSide * j;
      is_key[j] = at < w.p.keys;
      keys[j] = pairs.key(w, b, at, head);
    }
#pragma unroll
    for (int i = 0; i < R; ++i) {
      T top = Normaliser::key(T(Normaliser::kMasked));
#pragma unroll
      for (int j = 0; j < R; ++j) {
        bool is_kept = tile.is_full || (is_key[j] && pairs.keep(head, tokens[i], keys[j]));
        x[i][j] = is_kept ? pairs.value(x[i][j], head, tokens[i], keys[j]) : T(Normaliser::kMasked);
        top = larger(top, Normaliser::key(x[i][j]));
      }
      T factor = Normaliser::rescale(state[i], lanes_largest<kSide>(top)), shift = Normaliser::shift(state[i]);
      T total = 0;
#pragma unroll
      for (int j = 0; j < R; ++j) {
        T weight = Normaliser::weight(x[i][j], shift);
        total += Normaliser::counted(weight);
        if constexpr (pairs.kMayDrop) {
          if (pairs.has_dropout) weight *= pairs.drop(head, tokens[i], keys[j]);
        }
        s.weights[thread_y() + kSide * i][thread_x() + kSide * j] = weight;
      }
      Normaliser::add(state[i], lanes_sum<kSide>(total));
#pragma unroll
      for (int j = 0; j < kMostColumns; ++j) out[i][j] *= factor;
    }
    accumulate(out, s.weights, s, w.p.v.at(b, kv_head), k0, w.p.keys, w.p.value_width);
  }

  __device__ __forceinline__ void store() {
    __syncwarp();  // a row's lanes have all read its statistic, which one of them now replaces
#pragma unroll
    for (int i = 0; i < R; ++i) {
      if (!is_there(i)) continue;
      ops::Final<T> end = Normaliser::finish(state[i]);
      for_columns(out[i], w.p.value_width, [&](T x, int c) {
        int64_t at = row_of(i) * w.p.value_width + c;
        if (w.p.out_is_bf16) static_cast<BFloat16*>(w.p.out)[at] = BFloat16(static_cast<float>(x * end.factor));
        else static_cast<T*>(w.p.out)[at] = x * end.factor;
      });
      if (Normaliser::kHasStatistic && thread_x() == 0)
        static_cast<T*>(w.p.statistic)[row_of(i)] = static_cast<T>(end.statistic);
    }
  }
};

// Block (row, head, tile of queries), later tiles first: under the masks that matter they see more keys.
template <class T, class Mask, class Score, class Normaliser>
__global__ void __launch_bounds__(kThreads) forward_block(Work w, Mask mask, Score score, Dropout dropout) {
  int block = static_cast<int>(blockIdx.x), tiles = w.queries.tiles, heads = static_cast<int>(w.p.heads);
  int tile = tiles - 1 - block % tiles, head = block / tiles % heads, b = block / tiles / heads;
  Forward<T, Mask, Score, Normaliser> forward(w, mask, score, dropout, *reinterpret_cast<Shared<T>*>(dynamic_shared()),
                                              b, head, tile);
  forward.load();
  Walk<Mask, true> walk(w, mask, b, tile, head, head + 1);
  Tile keys;
  while (walk.next(keys)) forward.add(keys);
  forward.store();
}

}  // namespace weft::cuda::attention::plain

namespace weft::cuda::attention {

template <class T>
void forward_plain(const Problem& p, const ops::AttentionOptions& options) {
  Prepared prepared(p, plain::kTile<T>, plain::kTile<T>);
  dim3 grid(static_cast<unsigned>(p.batch * p.heads * prepared.work.queries.tiles));
  with_functors<kScoresOf<T>>(options, [&](auto mask, auto score, auto normaliser) {
    using Mask = decltype(mask);
    using Score = decltype(score);
    using Normaliser = decltype(normaliser);
    launch("attention", plain::forward_block<T, Mask, Score, Normaliser>, grid, dim3(kThreads),
           sizeof(plain::Shared<T>), stream_of(p), prepared.work, mask, score, Dropout(p));
  });
}

}  // namespace weft::cuda::attention
