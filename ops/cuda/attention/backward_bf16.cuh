// Backward on tensor cores, from known statistic and delta:
//   S = Q K^T, dP = dO V^T, W = weight(S), dS = dscore(W, dP, delta);   dV += W^T dO, dK += scale dS^T Q, dQ += scale dS K
// W and dS are rounded to bf16, sums are f32. Two kernels, so that every sum has one owner: a block has keys of one key/value
// head and walks the queries of all heads of its group (S and dP transposed: rows are keys), or it has queries of one head and
// walks the keys. Both copy the next tile while they work on this one, if shared memory has room for two.
#pragma once

#include "ops/cuda/attention/backward_rows.cuh"

namespace weft::cuda::attention::tensor {

// What backward reads of the queries of a walked tile.
template <class Score>
struct QueryNumbers {
  TileTokensOf<Score> tokens;
  float statistic[kWalked], delta[kWalked];

  template <bool kHasStatistic>
  __device__ __forceinline__ void load(const Work& w, int64_t b, int head, int64_t q0) {
    const Problem& p = w.p;
    tokens.load(w.queries, p.query_bias, b, q0, head);
    int64_t at = b * p.queries * p.heads + head;
    if constexpr (kHasStatistic) {
      load_numbers(statistic, static_cast<const float*>(p.statistic) + at, p.heads, q0, p.queries, 0);
      load_numbers(delta, static_cast<const float*>(p.delta) + at, p.heads, q0, p.queries, kWalked);
    } else {
      load_numbers<float>(statistic, nullptr, 0, q0, p.queries, 0);
      load_numbers<float>(delta, nullptr, 0, q0, p.queries, kWalked);
    }
  }
};

// A walked tile in shared memory: its two operands, and their number in the walk says which copy of each.
template <int kWidth>
struct Walked {
  uint16_t* memory;
  int stages;

  __device__ __forceinline__ Rows<kWidth> rows(int which, int turn) const {
    return {memory + ((turn & (stages - 1)) * 2 + which) * kWalked * kWidth};
  }
};
template <int kWidth, class Numbers>
constexpr size_t backward_shared_bytes(int own, int stages) {
  return static_cast<size_t>(2 * own + 2 * stages * kWalked) * kWidth * sizeof(uint16_t) + 2 * sizeof(Numbers);
}

// Block (row, key/value head, tile of 64 M keys), and of the channels of dK and dV those from blockIdx.y * 8 C on: registers
// hold so many. N: tokens / 8 of the walked tile at a time.
template <int M, int N, int C, int kWidth, class Mask, class Score, class Normaliser>
__global__ void __launch_bounds__(kBlock) backward_keys(Work w, Mask mask, Score score, Dropout dropout, int stages) {
  constexpr int kOwn = 64 * M;
  const Problem& p = w.p;
  const int block = static_cast<int>(blockIdx.x), tiles = w.keys.tiles, groups = static_cast<int>(p.kv_heads);
  const int tile = block % tiles, kv_head = block / tiles % groups, b = block / tiles / groups;
  const int each = static_cast<int>(p.heads_per_group()), first_column = static_cast<int>(blockIdx.y) * 8 * C;
  const int key_width = static_cast<int>(p.key_width), value_width = static_cast<int>(p.value_width);
  const int64_t k0 = int64_t{tile} * kOwn;
  auto* memory = reinterpret_cast<uint16_t*>(dynamic_shared());
  const Rows<kWidth> keys{memory}, values{memory + kOwn * kWidth};
  const Walked<kWidth> walked{memory + 2 * kOwn * kWidth, stages};
  auto* numbers = reinterpret_cast<QueryNumbers<Score>*>(walked.memory + 2 * stages * kWalked * kWidth);
  const Pairs<float, Mask, Score, Normaliser> pairs(w, mask, score, dropout, b);

  auto copy = [&](const Tile& at, int turn) {
    const int64_t q0 = int64_t{at.index} * kWalked;
    load_rows<kWalked>(walked.rows(0, turn), p.q.at(b, at.head), q0, p.queries, key_width, w.is_wide);
    load_rows<kWalked>(walked.rows(1, turn), p.dout.at(b, at.head), q0, p.queries, value_width, w.is_wide);
  };
  auto copy_numbers = [&](const Tile& at, int turn) {
    numbers[turn & 1].template load<Normaliser::kHasStatistic>(w, b, at.head, int64_t{at.index} * kWalked);
  };

  float dk[M][C][4], dv[M][C][4];
  clear(dk), clear(dv);
  PairToken<float, Score> own[M][2];
  auto load_own = [&](int head) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) own[m][h] = pairs.key(w, b, k0 + own_row<M>(m, h), head);
  };
  load_own(kv_head * each);
  Walk<Mask, false> walk(w, mask, b, tile, kv_head * each, kv_head * each + each);
  Tile at, next;
  bool is_more = walk.next(at);
  if (is_more) {
    load_rows<kOwn>(keys, p.k.at(b, kv_head), k0, p.keys, key_width, w.is_wide);
    load_rows<kOwn>(values, p.v.at(b, kv_head), k0, p.keys, value_width, w.is_wide);
    copy(at, 0), copy_numbers(at, 0);
  }
  copy_commit();
  for (int turn = 0; is_more; ++turn) {
    is_more = walk.next(next);
    if (is_more) {
      copy_numbers(next, turn + 1);
      if (stages == 2) copy(next, turn + 1);
    }
    copy_commit();
    if (stages == 2) copy_wait<1>();
    else copy_wait<0>();
    __syncthreads();
    const QueryNumbers<Score>& q = numbers[turn & 1];
    const int64_t q0 = int64_t{at.index} * kWalked;
    if constexpr (pairs.kBiased) load_own(at.head);
#pragma unroll 1
    for (int first = 0; first < kWalked; first += 8 * N) {
      float x[M][N][4], dweight[M][N][4];
      product(x, keys, warp_index() * 16 * M, walked.rows(0, turn), first, (key_width + 15) / 16);
      product(dweight, values, warp_index() * 16 * M, walked.rows(1, turn), first, (value_width + 15) / 16);
      auto gradient_of = [&](float dot, float dw, int m, int h, int j, auto is_full) {
        const auto query = q.tokens.at(first + j);
        bool is_kept = is_full || (q0 + first + j < p.queries && pairs.keep(at.head, query, own[m][h]));
        return pairs.gradient(dot, dw, Normaliser::backward_shift(q.statistic[first + j]), q.delta[first + j], is_kept,
                              at.head, query, own[m][h]);
      };
      [[maybe_unused]] float bias_sums[M][2] = {};
      with_fullness<decltype(pairs)::kIsPlain>(at.is_full, [&](auto is_full) {
        differentiate<decltype(pairs)::kBiased>(
            x, dweight, [&](float s, float dw, int m, int h, int j) { return gradient_of(s, dw, m, h, j, is_full); },
            bias_sums);
      });
      if constexpr (decltype(pairs)::kBiased) {
        if (blockIdx.y == 0)
          give_bias(p.key_bias, b, k0, at.head, bias_sums);  // other blocks of it have the same pairs
      }
      if (first_column < value_width) accumulate(dv, x, walked.rows(1, turn), first, first_column);
      if (first_column < key_width) accumulate(dk, dweight, walked.rows(0, turn), first, first_column);
    }
    __syncthreads();  // nobody reads this tile
    if (is_more && stages == 1) copy(next, turn + 1);
    at = next;
  }
  const int64_t row = b * p.keys * p.kv_heads + kv_head;
  give_rows(p, p.dk, row * p.key_width, p.kv_heads * p.key_width, dk, k0, p.keys, first_column, p.key_width,
            static_cast<float>(p.scale));
  give_rows(p, p.dv, row * p.value_width, p.kv_heads * p.value_width, dv, k0, p.keys, first_column, p.value_width,
            1.0f);
}

// Block (row, head, tile of 64 M queries), later tiles first. N as above.
template <int M, int N, int kWidth, class Mask, class Score, class Normaliser>
__global__ void __launch_bounds__(kBlock)
    backward_queries(Work w, Mask mask, Score score, Dropout dropout, int stages) {
  constexpr int kOwn = 64 * M, C = kWidth / 8;
  const Problem& p = w.p;
  const int block = static_cast<int>(blockIdx.x), tiles = w.queries.tiles, heads = static_cast<int>(p.heads);
  const int tile = tiles - 1 - block % tiles, head = block / tiles % heads, b = block / tiles / heads;
  const int kv_head = head / static_cast<int>(p.heads_per_group());
  const int key_width = static_cast<int>(p.key_width), value_width = static_cast<int>(p.value_width);
  const int64_t q0 = int64_t{tile} * kOwn;
  auto* memory = reinterpret_cast<uint16_t*>(dynamic_shared());
  const Rows<kWidth> queries{memory}, douts{memory + kOwn * kWidth};
  const Walked<kWidth> walked{memory + 2 * kOwn * kWidth, stages};
  auto* tokens = reinterpret_cast<TileTokensOf<Score>*>(walked.memory + 2 * stages * kWalked * kWidth);
  const Pairs<float, Mask, Score, Normaliser> pairs(w, mask, score, dropout, b);

  auto copy = [&](const Tile& at, int turn) {
    const int64_t k0 = int64_t{at.index} * kWalked;
    load_rows<kWalked>(walked.rows(0, turn), p.k.at(b, kv_head), k0, p.keys, key_width, w.is_wide);
    load_rows<kWalked>(walked.rows(1, turn), p.v.at(b, kv_head), k0, p.keys, value_width, w.is_wide);
  };

  float dq[M][C][4], shift[M][2], delta[M][2];
  PairToken<float, Score> own[M][2];
  clear(dq);
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      int64_t at = q0 + own_row<M>(m, h), row = (b * p.queries + at) * p.heads + head;
      bool is_there = at < p.queries;
      own[m][h] = pairs.query(w, b, at, head);
      bool has = is_there && Normaliser::kHasStatistic;
      shift[m][h] = Normaliser::backward_shift(has ? static_cast<const float*>(p.statistic)[row] : 0.0f);
      delta[m][h] = has ? static_cast<const float*>(p.delta)[row] : 0.0f;
    }
  Walk<Mask, true> walk(w, mask, b, tile, head, head + 1);
  Tile at, next;
  bool is_more = walk.next(at);
  if (is_more) {
    load_rows<kOwn>(queries, p.q.at(b, head), q0, p.queries, key_width, w.is_wide);
    load_rows<kOwn>(douts, p.dout.at(b, head), q0, p.queries, value_width, w.is_wide);
    copy(at, 0), tokens[0].load(w.keys, p.key_bias, b, int64_t{at.index} * kWalked, head);
  }
  copy_commit();
  for (int turn = 0; is_more; ++turn) {
    is_more = walk.next(next);
    if (is_more) {
      tokens[(turn + 1) & 1].load(w.keys, p.key_bias, b, int64_t{next.index} * kWalked, head);
      if (stages == 2) copy(next, turn + 1);
    }
    copy_commit();
    if (stages == 2) copy_wait<1>();
    else copy_wait<0>();
    __syncthreads();
    const TileTokensOf<Score>& keys = tokens[turn & 1];
    const int64_t k0 = int64_t{at.index} * kWalked;
#pragma unroll 1
    for (int first = 0; first < kWalked; first += 8 * N) {
      float x[M][N][4], dweight[M][N][4];
      product(x, queries, warp_index() * 16 * M, walked.rows(0, turn), first, (key_width + 15) / 16);
      product(dweight, douts, warp_index() * 16 * M, walked.rows(1, turn), first, (value_width + 15) / 16);
      auto gradient_of = [&](float dot, float dw, int m, int h, int j, auto is_full) {
        const auto key = keys.at(first + j);
        bool is_kept = is_full || (k0 + first + j < p.keys && pairs.keep(head, own[m][h], key));
        return pairs.gradient(dot, dw, shift[m][h], delta[m][h], is_kept, head, own[m][h], key);
      };
      [[maybe_unused]] float bias_sums[M][2] = {};
      with_fullness<decltype(pairs)::kIsPlain>(at.is_full, [&](auto is_full) {
        differentiate<decltype(pairs)::kBiased>(
            x, dweight, [&](float s, float dw, int m, int h, int j) { return gradient_of(s, dw, m, h, j, is_full); },
            bias_sums);
      });
      if constexpr (decltype(pairs)::kBiased) give_bias(p.query_bias, b, q0, head, bias_sums);
      accumulate(dq, dweight, walked.rows(0, turn), first, 0);
    }
    __syncthreads();  // nobody reads this tile
    if (is_more && stages == 1) copy(next, turn + 1);
    at = next;
  }
  give_rows(p, p.dq, (b * p.queries * p.heads + head) * p.key_width, p.heads * p.key_width, dq, q0, p.queries, 0,
            p.key_width, static_cast<float>(p.scale));
}

// How many rows a warp has and how many walked tokens it takes at a time: what registers hold without spilling much.
template <int kWidth>
struct BackwardShape {
  static constexpr int kKeyM = kWidth <= 64 ? 2 : 1, kKeyN = kWidth <= 64 ? 4 : 8;
  static constexpr int kKeyColumns = kWidth <= 64 ? 64 : 128;  // of dK and dV in one block
  static constexpr int kQueryM = kWidth <= 64 ? 2 : 1, kQueryN = kWidth <= 64 ? 4 : 8;
};

}  // namespace weft::cuda::attention::tensor

namespace weft::cuda::attention {

template <int kWidth>
void backward_bf16(const Problem& p, const ops::AttentionOptions& options) {
  using namespace tensor;
  using Shape = BackwardShape<kWidth>;
  constexpr int M = Shape::kKeyM, N = Shape::kKeyN, C = Shape::kKeyColumns / 8;
  const auto most = static_cast<size_t>(max_shared_bytes(p.device.index));
  const Prepared for_keys(p, kWalked, 64 * M), for_queries(p, 64 * Shape::kQueryM, kWalked);
  const int64_t columns = p.key_width > p.value_width ? p.key_width : p.value_width;
  const dim3 key_grid(static_cast<unsigned>(p.batch * p.kv_heads * for_keys.work.keys.tiles),
                      static_cast<unsigned>((columns + 8 * C - 1) / (8 * C)));
  const dim3 query_grid(static_cast<unsigned>(p.batch * p.heads * for_queries.work.queries.tiles));
  with_functors<Scores::both>(options, [&](auto mask, auto score, auto normaliser) {
    using Mask = decltype(mask);
    using Score = decltype(score);
    using Normaliser = decltype(normaliser);
    auto key_bytes = [&](int stages) { return backward_shared_bytes<kWidth, QueryNumbers<Score>>(64 * M, stages); };
    auto query_bytes = [&](int stages) {
      return backward_shared_bytes<kWidth, TileTokensOf<Score>>(64 * Shape::kQueryM, stages);
    };
    const int key_stages = key_bytes(2) <= most ? 2 : 1, query_stages = query_bytes(2) <= most ? 2 : 1;
    launch("attention_backward", backward_keys<M, N, C, kWidth, Mask, Score, Normaliser>, key_grid, dim3(kBlock),
           key_bytes(key_stages), stream_of(p), for_keys.work, mask, score, Dropout(p), key_stages);
    launch("attention_backward", backward_queries<Shape::kQueryM, Shape::kQueryN, kWidth, Mask, Score, Normaliser>,
           query_grid, dim3(kBlock), query_bytes(query_stages), stream_of(p), for_queries.work, mask, score, Dropout(p),
           query_stages);
  });
}

}  // namespace weft::cuda::attention
