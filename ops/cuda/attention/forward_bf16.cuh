// Forward on tensor cores: a block has 64 M queries of one head and walks tiles of 64 keys.
//   S = Q K^T, W = weight(score(S)) by the normaliser's running state, O = O * rescale + W V; W is rounded to bf16, sums are f32.
// Keys of the next tile are copied while the weights are made, values while the scores are.
#pragma once

#include "ops/cuda/attention/forward_rows.cuh"

namespace weft::cuda::attention::tensor {

template <int M, int kWidth>
struct ForwardShape {
  static constexpr int kOwn = 64 * M;  // queries of a block
  template <class Score>
  static constexpr size_t kSharedBytes = (kOwn + 2 * kWalked) * kWidth * sizeof(uint16_t) +
                                         2 * sizeof(TileTokensOf<Score>) + kOwn * sizeof(PairToken<float, Score>);
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
  using KeyTokens = TileTokensOf<Score>;
  auto* tokens = reinterpret_cast<KeyTokens*>(values.at + kWalked * kWidth);  // of this tile and of the next one
  auto* query_tokens = reinterpret_cast<PairToken<float, Score>*>(tokens + 2);
  const Operand k = p.k.at(b, head / p.heads_per_group()), v = p.v.at(b, head / p.heads_per_group());
  const int64_t q0 = int64_t{tile} * kOwn;

  load_queries<Score>(query_tokens, w, b, q0, kOwn, head);
  ForwardRows<M, kWalked / 8, kWidth, Mask, Score, Normaliser> forward(w, mask, score, dropout, b, head, q0,
                                                                       query_tokens);
  forward.load();
  Walk<Mask, true> walk(w, mask, b, tile, head, head + 1);
  Tile at, next;
  bool is_more = walk.next(at);
  load_rows<kOwn>(queries, p.q.at(b, head), q0, p.queries, key_width, w.is_wide);
  if (is_more) {
    load_rows<kWalked>(keys, k, int64_t{at.index} * kWalked, p.keys, key_width, w.is_wide);
    tokens[0].load(w.keys, p.key_bias, b, int64_t{at.index} * kWalked, head);
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
      tokens[turn ^ 1].load(w.keys, p.key_bias, b, int64_t{next.index} * kWalked, head);
    }
    copy_commit();
    with_fullness<decltype(forward.pairs)::kIsPlain>(
        at.is_full, [&](auto is_full) { forward.score(x, tokens[turn], k0, is_full); });
    float factor[M][2];
    if (forward.weigh(x, factor)) forward.rescale(factor);
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
  with_functors<Scores::both>(options, [&](auto mask, auto score, auto normaliser) {
    using Mask = decltype(mask);
    using Score = decltype(score);
    using Normaliser = decltype(normaliser);
    launch("attention", tensor::forward_block<M, kWidth, Mask, Score, Normaliser>, grid, dim3(tensor::kBlock),
           Shape::template kSharedBytes<Score>, stream_of(p), prepared.work, mask, score, Dropout(p));
  });
}

}  // namespace weft::cuda::attention
