// What a warp does with its rows of a forward tile in registers, whoever multiplies: scores, weights by the normaliser's running
// state, rescaling, dropout, and the rows' first and last values. With g = lane / 4 and t = lane % 4 a lane has, of every 16 x 8
// product, elements (g + 8 half, 2 t + e) in [2 half + e].
#pragma once

#include "ops/cuda/attention/tile_bf16.cuh"

namespace weft::cuda::attention::tensor {

// Positions and documents of the block's own queries, and their biases, by all its threads; complete after a barrier.
template <class Score>
__device__ __forceinline__ void load_queries(PairToken<float, Score>* to, const Work& w, int64_t b, int64_t q0,
                                             int count, int head) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x))
    to[i] = pair_token<float, Score>(w.queries, w.p.query_bias, b, q0 + i, head);
}

// M: fragments of 16 rows of a warp; 8 N: keys of a tile; kWidth: the wider of keys and values, rounded up.
template <int M, int N, int kWidth, class Mask, class Score, class Normaliser>
struct ForwardRows {
  static constexpr int C = kWidth / 8;
  using State = typename Normaliser::template State<float>;

  const Work& w;
  Pairs<float, Mask, Score, Normaliser> pairs;
  int64_t b, q0;
  int head;
  const PairToken<float, Score>* queries;  // of the block, in shared memory
  State state[M][2];
  float out[M][C][4];

  __device__ __forceinline__ ForwardRows(const Work& w, const Mask& mask, const Score& score, const Dropout& dropout,
                                         int64_t b, int head, int64_t q0, const PairToken<float, Score>* queries)
      : w(w), pairs(w, mask, score, dropout, b), b(b), q0(q0), head(head), queries(queries) {}

  __device__ __forceinline__ bool is_there(int m, int h) const { return q0 + own_row<M>(m, h) < w.p.queries; }
  __device__ __forceinline__ PairToken<float, Score> query(int m, int h) const { return queries[own_row<M>(m, h)]; }
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

  // Scores as the normaliser wants them, in place. Keys: at(i) is token i of the tile. IsFull: as with_fullness() has it.
  template <class Keys, class IsFull>
  __device__ __forceinline__ void score(float (&x)[M][N][4], const Keys& keys, int64_t k0, IsFull is_full) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const PairToken<float, Score> q = query(m, h);
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

  // Weights in place of scores. What was summed before must be rescaled by `factor`; false if that changes nothing, which is the
  // rule after the first tiles.
  __device__ __forceinline__ bool weigh(float (&x)[M][N][4], float (&factor)[M][2]) {
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
    return !__all_sync(0xffffffffu, is_one);
  }

  __device__ __forceinline__ void rescale(const float (&factor)[M][2]) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int c = 0; c < C; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) out[m][c][i] *= factor[m][i / 2];
  }

  template <class Keys>
  __device__ __forceinline__ void drop(float (&x)[M][N][4], const Keys& keys) {
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
          store_bf16(static_cast<BFloat16*>(w.p.out) + row, out[m], h, 0, w.p.value_width, end.factor);
        } else {
          auto* to = static_cast<float*>(w.p.out) + row;
          for_columns(out[m], h, 0, w.p.value_width, [&](float x, int c) { to[c] = x * end.factor; });
        }
        if (Normaliser::kHasStatistic && lane_t() == 0)
          static_cast<float*>(w.p.statistic)[row_of(m, h)] = static_cast<float>(end.statistic);
      }
  }
};

}  // namespace weft::cuda::attention::tensor
