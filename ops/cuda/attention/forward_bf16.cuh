// Forward on tensor cores: a block has 64 M queries of one head and walks tiles of 64 keys.
//   S = Q K^T, W = weight(score(S)) by the normaliser's running state, O = O * rescale + W V; W is rounded to bf16, sums are f32.
// Keys of the next tile are copied while the weights are made, values while the scores are.
#pragma once

#include "ops/cuda/attention/tile_bf16.cuh"

namespace weft::cuda::attention::tensor {

template <int M, int kWidth>
struct ForwardShape {
  static constexpr int kOwn = 64 * M;  // queries of a block
  static constexpr size_t kSharedBytes =
      (kOwn + 2 * kWalked) * kWidth * sizeof(uint16_t) + 2 * sizeof(Tokens) + kOwn * sizeof(Token<int32_t>);
};

// kWidth: the wider of keys and values, rounded up.
template <int M, int kWidth, class Mask, class Score, class Normaliser>
struct Forward {
  static constexpr int C = kWidth / 8, N = kWalked / 8;
  using State = typename Normaliser::template State<float>;

  const Work& w;
  Pairs<float, Mask, Score, Normaliser> pairs;
  int64_t b, q0;
  int head;
  const Token<int32_t>* queries;  // of the block, in shared memory
  State state[M][2];
  float out[M][C][4];

  __device__ __forceinline__ Forward(const Work& w, const Mask& mask, const Score& score, const Dropout& dropout,
                                     int64_t b, int head, int64_t q0, Token<int32_t>* queries)
      : w(w), pairs(w, mask, score, dropout, b), b(b), q0(q0), head(head), queries(queries) {
    for (int i = static_cast<int>(threadIdx.x); i < 64 * M; i += kBlock)
      queries[i] = q0 + i < w.p.queries ? w.queries.tokens.at(b, q0 + i) : Token<int32_t>{0, 0};
  }

  __device__ __forceinline__ bool is_there(int m, int h) const { return q0 + own_row<M>(m, h) < w.p.queries; }
  __device__ __forceinline__ Token<int32_t> query(int m, int h) const { return queries[own_row<M>(m, h)]; }
  __device__ __forceinline__ int64_t row_of(int m, int h) const {
    return (b * w.p.queries + q0 + own_row<M>(m, h)) * w.p.heads + head;
  }

  __device__ __forceinline__ void load() {
    clear(out);
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        bool has = w.p.has_state && is_there(m, h);
        float statistic = 0;
        if (has && Normaliser::kHasStatistic) statistic = static_cast<const float*>(w.p.statistic)[row_of(m, h)];
        state[m][h] = Normaliser::init(statistic, has);
        if (!has) continue;
        const float* old = static_cast<const float*>(w.p.out) + row_of(m, h) * w.p.value_width;
        for_columns(out[m], h, 0, w.p.value_width, [&](float& x, int c) { x = old[c]; });
      }
  }

  // Scores as the normaliser wants them, in place. IsFull: as with_fullness() has it.
  template <class IsFull>
  __device__ __forceinline__ void score(float (&x)[M][N][4], const Tokens& keys, int64_t k0, IsFull is_full) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const Token<int32_t> q = query(m, h);
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int j = 8 * n + 2 * lane_t() + e;
            float& at = x[m][n][2 * h + e];
            at = pairs.value(at, head, q, keys.at(j));
            bool is_kept = is_full || (k0 + j < w.p.keys && pairs.keep(head, q, keys.at(j)));
            if (!is_kept) at = static_cast<float>(Normaliser::kMasked);
          }
      }
  }

  // Weights in place of scores; what was summed before is rescaled.
  __device__ __forceinline__ void weigh(float (&x)[M][N][4]) {
    float factor[M][2];
    bool is_one = true;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float top = Normaliser::key(static_cast<float>(Normaliser::kMasked));
#pragma unroll
        for (int n = 0; n < N; ++n)
          top = larger(top, larger(Normaliser::key(x[m][n][2 * h]), Normaliser::key(x[m][n][2 * h + 1])));
        factor[m][h] = Normaliser::rescale(state[m][h], lanes_largest<4>(top));
        is_one = is_one && factor[m][h] == 1;
        float shift = Normaliser::shift(state[m][h]), total = 0;
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& at = x[m][n][2 * h + e];
            at = Normaliser::weight(at, shift);
            total += Normaliser::counted(at);
          }
        Normaliser::add(state[m][h], lanes_sum<4>(total));
      }
    if (__all_sync(0xffffffffu, is_one)) return;  // the rule after the first tiles
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int c = 0; c < C; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) out[m][c][i] *= factor[m][i / 2];
  }

  __device__ __forceinline__ void drop(float (&x)[M][N][4], const Tokens& keys) {
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int m = 0; m < M; ++m)
          x[m][n][i] *= pairs.drop(head, query(m, i / 2), keys.at(8 * n + 2 * lane_t() + i % 2));
  }

  __device__ __forceinline__ void store() {
    __syncwarp();  // a row's lanes have all read its statistic, which one of them now replaces
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (!is_there(m, h)) continue;
        ops::Final<float> end = Normaliser::finish(state[m][h]);
        int64_t row = row_of(m, h) * w.p.value_width;
        if (w.p.out_is_bf16) {
          auto* to = static_cast<BFloat16*>(w.p.out) + row;
          for_columns(out[m], h, 0, w.p.value_width, [&](float x, int c) { to[c] = BFloat16(x * end.factor); });
        } else {
          auto* to = static_cast<float*>(w.p.out) + row;
          for_columns(out[m], h, 0, w.p.value_width, [&](float x, int c) { to[c] = x * end.factor; });
        }
        if (Normaliser::kHasStatistic && lane_t() == 0)
          static_cast<float*>(w.p.statistic)[row_of(m, h)] = end.statistic;
      }
  }
};

// Block (row, head, tile of queries), later tiles first: under the masks that matter they see more keys.
template <int M, int kWidth, class Mask, class Score, class Normaliser>
__global__ void __launch_bounds__(kBlock) forward_block(Work w, Mask mask, Score score, Dropout dropout) {
  constexpr int kOwn = ForwardShape<M, kWidth>::kOwn;
  const Problem& p = w.p;
  const int block = static_cast<int>(blockIdx.x), tiles = w.queries.tiles, heads = static_cast<int>(p.heads);
  const int tile = tiles - 1 - block % tiles, head = block / tiles % heads, b = block / tiles / heads;
  const int key_width = static_cast<int>(p.key_width), steps = (key_width + 15) / 16;
  auto* memory = reinterpret_cast<uint16_t*>(dynamic_shared());
  const Rows<kWidth> queries{memory}, keys{memory + kOwn * kWidth}, values{keys.at + kWalked * kWidth};
  auto* tokens = reinterpret_cast<Tokens*>(values.at + kWalked * kWidth);  // of this tile and of the next one
  auto* query_tokens = reinterpret_cast<Token<int32_t>*>(tokens + 2);
  const Operand k = p.k.at(b, head / p.heads_per_group()), v = p.v.at(b, head / p.heads_per_group());
  const int64_t q0 = int64_t{tile} * kOwn;

  Forward<M, kWidth, Mask, Score, Normaliser> forward(w, mask, score, dropout, b, head, q0, query_tokens);
  forward.load();
  Walk<Mask, true> walk(w, mask, b, tile, head, head + 1);
  Tile at, next;
  bool is_more = walk.next(at);
  load_rows<kOwn>(queries, p.q.at(b, head), q0, p.queries, key_width, w.is_wide);
  if (is_more) {
    load_rows<kWalked>(keys, k, int64_t{at.index} * kWalked, p.keys, key_width, w.is_wide);
    tokens[0].load(w.keys, b, int64_t{at.index} * kWalked);
  }
  copy_commit();
  for (int turn = 0; is_more; turn ^= 1) {
    const int64_t k0 = int64_t{at.index} * kWalked;
    copy_wait<0>();
    __syncthreads();  // the keys are there; nobody reads the last tile's values
    load_rows<kWalked>(values, v, k0, p.keys, static_cast<int>(p.value_width), w.is_wide);
    copy_commit();
    float x[M][kWalked / 8][4];
    product(x, queries, warp_index() * 16 * M, keys, 0, steps);
    is_more = walk.next(next);
    __syncthreads();  // nobody reads the keys
    if (is_more) {
      load_rows<kWalked>(keys, k, int64_t{next.index} * kWalked, p.keys, key_width, w.is_wide);
      tokens[turn ^ 1].load(w.keys, b, int64_t{next.index} * kWalked);
    }
    copy_commit();
    with_fullness<decltype(forward.pairs)::kIsPlain>(
        at.is_full, [&](auto is_full) { forward.score(x, tokens[turn], k0, is_full); });
    forward.weigh(x);
    if constexpr (decltype(forward.pairs)::kMayDrop) {
      if (forward.pairs.has_dropout) forward.drop(x, tokens[turn]);
    }
    copy_wait<1>();
    __syncthreads();  // the values are there
    accumulate(forward.out, x, values, 0, 0);
    at = next;
  }
  forward.store();
}

}  // namespace weft::cuda::attention::tensor

namespace weft::cuda::attention {

template <int kWidth>
void forward_bf16(const Problem& p, const ops::AttentionOptions& options) {
  constexpr int M = kWidth <= 128 ? 2 : 1;  // twice the queries share what is read of a key, while registers last
  using Shape = tensor::ForwardShape<M, kWidth>;
  Prepared prepared(p, Shape::kOwn, tensor::kWalked);
  dim3 grid(static_cast<unsigned>(p.batch * p.heads * prepared.work.queries.tiles));
  with_functors(options, [&](auto mask, auto score, auto normaliser) {
    using Mask = decltype(mask);
    using Score = decltype(score);
    using Normaliser = decltype(normaliser);
    launch("attention", tensor::forward_block<M, kWidth, Mask, Score, Normaliser>, grid, dim3(tensor::kBlock),
           Shape::kSharedBytes, stream_of(p), prepared.work, mask, score, Dropout(p));
  });
}

}  // namespace weft::cuda::attention
