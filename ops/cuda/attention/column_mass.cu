// Column mass: for each key the sum over queries of its weight, from known lse, without values or a T x T matrix. A block has a
// tile of keys of one query head, walks the queries, and adds each row of the tile W^T = weight(K Q^T).
#include "ops/cuda/attention/tile_f32.cuh"

namespace weft::cuda {

namespace attention::plain {
namespace {

template <class T, class Mask, class Score>
__global__ void __launch_bounds__(kThreads) column_mass(Work w, Mask mask, Score score, Dropout dropout) {
  using Normaliser = ops::SoftmaxNormaliser;
  constexpr int R = kOf<T>;
  auto& s = *reinterpret_cast<Shared<T>*>(dynamic_shared());
  const Problem& p = w.p;
  int block = static_cast<int>(blockIdx.x), tiles = w.keys.tiles, heads = static_cast<int>(p.heads);
  int tile = block % tiles, head = block / tiles % heads, b = block / tiles / heads;
  int64_t k0 = int64_t{tile} * kTile<T>;
  Pairs<T, Mask, Score, Normaliser> pairs(w, mask, score, dropout, b);
  Operand k = p.k.at(b, head / p.heads_per_group()), q = p.q.at(b, head);
  T mass[R] = {};
  Token<int32_t> keys[R];
#pragma unroll
  for (int i = 0; i < R; ++i) {
    int64_t at = k0 + thread_y() + kSide * i;
    keys[i] = at < p.keys ? w.keys.tokens.at(b, at) : Token<int32_t>{0, 0};
  }
  Walk<Mask, false> walk(w, mask, b, tile, head, head + 1);
  Tile at;
  while (walk.next(at)) {
    int64_t q0 = int64_t{at.index} * kTile<T>;
    T x[R][R];
    product(x, s, k, k0, p.keys, q, q0, p.queries, p.key_width);
#pragma unroll
    for (int j = 0; j < R; ++j) {
      int64_t i_query = q0 + thread_x() + kSide * j;
      if (i_query >= p.queries) continue;
      Token<int32_t> query = w.queries.tokens.at(b, i_query);
      T lse = static_cast<const T*>(p.statistic)[(b * p.queries + i_query) * p.heads + head];
      T shift = Normaliser::backward_shift(lse);
#pragma unroll
      for (int i = 0; i < R; ++i) {
        bool is_kept = at.is_full || pairs.keep(head, query, keys[i]);
        mass[i] +=
            Normaliser::weight(is_kept ? pairs.value(x[i][j], head, query, keys[i]) : T(Normaliser::kMasked), shift);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < R; ++i) {
    T total = lanes_sum<kSide>(mass[i]);
    int64_t key = k0 + thread_y() + kSide * i;
    if (thread_x() == 0 && key < p.keys) p.mass[(b * p.keys + key) * p.heads + head] = static_cast<float>(total);
  }
}

template <class T>
void run_column_mass(const Problem& p, const ops::AttentionOptions& options) {
  Prepared prepared(p, kTile<T>, kTile<T>);
  dim3 grid(static_cast<unsigned>(p.batch * p.heads * prepared.work.keys.tiles));
  ops::StandardMask mask(options.mask);
  with_softmax_score(options.score, false, [&](auto score) {
    launch("attention_column_mass", column_mass<T, ops::StandardMask, decltype(score)>, grid, dim3(kThreads),
           sizeof(Shared<T>), stream_of(p), prepared.work, mask, score, Dropout(p));
  });
}

}  // namespace
}  // namespace attention::plain

void attention_column_mass(const ops::core::Problem& problem, const ops::AttentionOptions& options) {
  if (problem.compute == kF64) attention::plain::run_column_mass<double>(problem, options);
  else attention::plain::run_column_mass<float>(problem, options);
}

}  // namespace weft::cuda
