// Backward on Hopper's warpgroups, from known statistic and delta, as two kernels of which every sum has one owner:
//   S = Q K^T, dP = dO V^T, W = weight(S), dS = dscore(W, dP, delta);   dV += W^T dO, dK += scale dS^T Q, dQ += scale dS K
// A block has 128 keys of one key/value head and walks the queries of all heads of its group (S and dP transposed: rows are keys),
// or it has 128 queries of one head and walks the keys. W and dS are rounded to bf16 and stay in registers, sums are f32. One
// warpgroup's products run beside the other's arithmetic.
#pragma once

#include "ops/cuda/attention/backward_rows.cuh"
#include "ops/cuda/attention/tile_wgmma.cuh"

namespace weft::cuda::attention::hopper {

inline constexpr int kBackwardStages = 3;

// Tokens of a walked tile: what registers hold beside the sums.
template <int kWidth>
inline constexpr int kBackwardWalked = kWidth <= 64 ? 128 : 64;

// What backward reads of a walked tile's tokens; statistic and delta are there for queries.
template <int kRows>
struct QueryNumbers {
  TileTokens<kRows> tokens;
  float statistic[kRows], delta[kRows];

  template <bool kHasStatistic>
  __device__ __forceinline__ void load(const Work& w, int64_t b, int head, int64_t q0) {
    const Problem& p = w.p;
    tokens.load(w.queries, b, q0);
    const int64_t at = b * p.queries * p.heads + head;
    load_numbers(statistic, kHasStatistic ? static_cast<const float*>(p.statistic) + at : nullptr, p.heads, q0,
                 p.queries);
    load_numbers(delta, kHasStatistic ? static_cast<const float*>(p.delta) + at : nullptr, p.heads, q0, p.queries);
  }
};

// Two own panels, a ring of pairs of walked ones, and behind them the numbers of each stage.
template <int kWidth, class Numbers>
struct BackwardMemory {
  using Own = Panel<kOwn, kWidth>;
  using Walked = Panel<kBackwardWalked<kWidth>, kWidth>;
  struct Rest {
    SharedBarrier own_there, there[kBackwardStages], free[kBackwardStages];
    Numbers numbers[kBackwardStages];
  };
  static constexpr size_t kBytes =
      kAlignmentBytes + 2 * Own::kBytes + 2 * kBackwardStages * Walked::kBytes + sizeof(Rest);
  Own own;               // two
  Walked first, second;  // of stage 0
  Rest& rest;

  __device__ __forceinline__ explicit BackwardMemory(SharedMemory memory)
      : own(memory.panels<Own>(2)),
        first(memory.panels<Walked>(kBackwardStages)),
        second(memory.panels<Walked>(kBackwardStages)),
        rest(memory.rest<Rest>()) {}

  __device__ __forceinline__ void init() const {
    rest.own_there.init(1);
    for (int i = 0; i < kBackwardStages; ++i) rest.there[i].init(1), rest.free[i].init(kConsumingWarps);
    fence_barriers();
  }
  // The producer's lane: a block's own rows, or a tile of the walk.
  __device__ __forceinline__ void copy_own(const TileMap& a, const TileMap& b, int64_t batch, int head,
                                           int64_t token) const {
    rest.own_there.arrive_expecting(2 * Own::kBytes);
    own[0].copy(a, batch, head, token, rest.own_there), own[1].copy(b, batch, head, token, rest.own_there);
  }
  __device__ __forceinline__ void copy_walked(int stage, const TileMap& a, const TileMap& b, int64_t batch, int head,
                                              int64_t token) const {
    rest.there[stage].arrive_expecting(2 * Walked::kBytes);
    first[stage].copy(a, batch, head, token, rest.there[stage]);
    second[stage].copy(b, batch, head, token, rest.there[stage]);
  }
  // A consuming warp has read the stage.
  __device__ __forceinline__ void release(int stage) const {
    __syncwarp();
    if (is_first_lane()) rest.free[stage].arrive();
  }
};

// The producer's warp: a block's own rows by copy_own(), then for every tile of the walk, as its stage becomes free, numbers by
// load(tile, stage) of all lanes and rows by copy(tile, stage) of one.
template <class Memory, class Tiles, class CopyOwn, class Load, class Copy>
__device__ __forceinline__ void produce(const Memory& memory, Tiles& walk, CopyOwn&& copy_own, Load&& load,
                                        Copy&& copy) {
  if (is_first_lane()) copy_own();
  Tile at;
  for (Turn<kBackwardStages> turn; walk.next(at); turn.advance()) {
    memory.rest.free[turn.stage].wait(turn.parity ^ 1);
    load(at, turn.stage);
    __syncwarp();
    if (is_first_lane()) copy(at, turn.stage);
  }
}

// x = own[0] . first^T and dweight = own[1] . second^T of a stage.
template <int N, class Memory>
__device__ __forceinline__ void multiply_both(float (&x)[N][4], float (&dweight)[N][4], const Memory& memory, int row,
                                              int stage) {
  wgmma_fence();
  product(x, memory.own[0], row, memory.first[stage]);
  product(dweight, memory.own[1], row, memory.second[stage]);
  wgmma_commit();
  wgmma_wait<0>(), wgmma_settle(x), wgmma_settle(dweight);
}

// Block (row, key/value head, tile of 128 keys).
template <int kWidth, class Mask, class Score, class Normaliser>
__global__ void __launch_bounds__(kBlock, 1)
    backward_keys(const __grid_constant__ Maps maps, Work w, Mask mask, Score score, Dropout dropout) {
  constexpr int kWalked = kBackwardWalked<kWidth>, N = kWalked / 8, C = kWidth / 8;
  using Memory = BackwardMemory<kWidth, QueryNumbers<kWalked>>;
  const Problem& p = w.p;
  const int block = static_cast<int>(blockIdx.x), tiles = w.keys.tiles, groups = static_cast<int>(p.kv_heads);
  const int tile = block % tiles, kv_head = block / tiles % groups, b = block / tiles / groups;
  const int each = static_cast<int>(p.heads_per_group()), first_head = kv_head * each;
  const int64_t k0 = int64_t{tile} * kOwn;
  const Memory memory{SharedMemory()};
  if (threadIdx.x == 0) memory.init();
  __syncthreads();

  Walk<Mask, false> walk(w, mask, b, tile, first_head, first_head + each);
  if (warp_of_block() >= kConsumingWarps) {
    give_registers<kProducerRegisters>();
    if (warp_of_block() > kConsumingWarps) return;
    auto load = [&](const Tile& t, int stage) {
      memory.rest.numbers[stage].template load<Normaliser::kHasStatistic>(w, b, t.head, int64_t{t.index} * kWalked);
    };
    return produce(
        memory, walk, [&] { memory.copy_own(maps.k, maps.v, b, kv_head, k0); }, load,
        [&](const Tile& t, int stage) {
          memory.copy_walked(stage, maps.q, maps.dout, b, t.head, int64_t{t.index} * kWalked);
        });
  }
  take_registers<kConsumerRegisters>();
  const Pairs<float, Mask, Score, Normaliser> pairs(w, mask, score, dropout, b);
  const int row = warp_of_block() / 4 * 64;
  float dk[1][C][4], dv[1][C][4];
  tensor::clear(dk), tensor::clear(dv);
  Token<int32_t> own[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int64_t key = k0 + tensor::own_row<1>(0, h);
    own[h] = key < p.keys ? w.keys.tokens.at(b, key) : Token<int32_t>{0, 0};
  }
  memory.rest.own_there.wait(0);
  Tile at;
  for (Turn<kBackwardStages> turn; walk.next(at); turn.advance()) {
    float x[1][N][4], dweight[1][N][4];
    memory.rest.there[turn.stage].wait(turn.parity);
    multiply_both(x[0], dweight[0], memory, row, turn.stage);
    const auto& q = memory.rest.numbers[turn.stage];
    const int64_t q0 = int64_t{at.index} * kWalked;
    with_fullness<decltype(pairs)::kIsPlain>(at.is_full, [&](auto is_full) {
      tensor::differentiate(x, dweight, [&](float dot, float dw, int, int h, int j) {
        const Token<int32_t> query = q.tokens.at(j);
        const bool is_kept = is_full || (q0 + j < p.queries && pairs.keep(at.head, query, own[h]));
        return pairs.gradient(dot, dw, Normaliser::backward_shift(q.statistic[j]), q.delta[j], is_kept, at.head, query,
                              own[h]);
      });
    });
    uint32_t weights[N / 2][4], slopes[N / 2][4];
    pack(weights, x[0]), pack(slopes, dweight[0]);
    wgmma_fence();
    accumulate(dv[0], weights, memory.second[turn.stage]);
    accumulate(dk[0], slopes, memory.first[turn.stage]);
    wgmma_commit();
    wgmma_wait<0>(), wgmma_settle(dv[0]), wgmma_settle(dk[0]), wgmma_settle(weights), wgmma_settle(slopes);
    memory.release(turn.stage);
  }
  const int64_t first = b * p.keys * p.kv_heads + kv_head;
  tensor::give_rows(p, p.dk, first * p.key_width, p.kv_heads * p.key_width, dk, k0, p.keys, 0, p.key_width,
                    static_cast<float>(p.scale));
  tensor::give_rows(p, p.dv, first * p.value_width, p.kv_heads * p.value_width, dv, k0, p.keys, 0, p.value_width, 1.0f);
}

// Block (row, head, tile of 128 queries), later tiles first.
template <int kWidth, class Mask, class Score, class Normaliser>
__global__ void __launch_bounds__(kBlock, 1)
    backward_queries(const __grid_constant__ Maps maps, Work w, Mask mask, Score score, Dropout dropout) {
  constexpr int kWalked = kBackwardWalked<kWidth>, N = kWalked / 8, C = kWidth / 8;
  using Memory = BackwardMemory<kWidth, TileTokens<kWalked>>;
  const Problem& p = w.p;
  const int block = static_cast<int>(blockIdx.x), tiles = w.queries.tiles, heads = static_cast<int>(p.heads);
  const int tile = tiles - 1 - block % tiles, head = block / tiles % heads, b = block / tiles / heads;
  const int kv_head = head / static_cast<int>(p.heads_per_group());
  const int64_t q0 = int64_t{tile} * kOwn;
  const Memory memory{SharedMemory()};
  if (threadIdx.x == 0) memory.init();
  __syncthreads();

  Walk<Mask, true> walk(w, mask, b, tile, head, head + 1);
  if (warp_of_block() >= kConsumingWarps) {
    give_registers<kProducerRegisters>();
    if (warp_of_block() > kConsumingWarps) return;
    return produce(
        memory, walk, [&] { memory.copy_own(maps.q, maps.dout, b, head, q0); },
        [&](const Tile& t, int stage) { memory.rest.numbers[stage].load(w.keys, b, int64_t{t.index} * kWalked); },
        [&](const Tile& t, int stage) {
          memory.copy_walked(stage, maps.k, maps.v, b, kv_head, int64_t{t.index} * kWalked);
        });
  }
  take_registers<kConsumerRegisters>();
  const Pairs<float, Mask, Score, Normaliser> pairs(w, mask, score, dropout, b);
  const int row = warp_of_block() / 4 * 64;
  float dq[1][C][4], shift[2], delta[2];
  tensor::clear(dq);
  Token<int32_t> own[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int64_t query = q0 + tensor::own_row<1>(0, h), at_query = (b * p.queries + query) * p.heads + head;
    const bool is_there = query < p.queries, has = is_there && Normaliser::kHasStatistic;
    own[h] = is_there ? w.queries.tokens.at(b, query) : Token<int32_t>{0, 0};
    shift[h] = Normaliser::backward_shift(has ? static_cast<const float*>(p.statistic)[at_query] : 0.0f);
    delta[h] = has ? static_cast<const float*>(p.delta)[at_query] : 0.0f;
  }
  memory.rest.own_there.wait(0);
  Tile at;
  for (Turn<kBackwardStages> turn; walk.next(at); turn.advance()) {
    float x[1][N][4], dweight[1][N][4];
    memory.rest.there[turn.stage].wait(turn.parity);
    multiply_both(x[0], dweight[0], memory, row, turn.stage);
    const auto& keys = memory.rest.numbers[turn.stage];
    const int64_t k0 = int64_t{at.index} * kWalked;
    with_fullness<decltype(pairs)::kIsPlain>(at.is_full, [&](auto is_full) {
      tensor::differentiate(x, dweight, [&](float dot, float dw, int, int h, int j) {
        const Token<int32_t> key = keys.at(j);
        const bool is_kept = is_full || (k0 + j < p.keys && pairs.keep(head, own[h], key));
        return pairs.gradient(dot, dw, shift[h], delta[h], is_kept, head, own[h], key);
      });
    });
    uint32_t slopes[N / 2][4];
    pack(slopes, dweight[0]);
    wgmma_fence();
    accumulate(dq[0], slopes, memory.first[turn.stage]);
    wgmma_commit();
    wgmma_wait<0>(), wgmma_settle(dq[0]), wgmma_settle(slopes);
    memory.release(turn.stage);
  }
  tensor::give_rows(p, p.dq, (b * p.queries * p.heads + head) * p.key_width, p.heads * p.key_width, dq, q0, p.queries,
                    0, p.key_width, static_cast<float>(p.scale));
}

}  // namespace weft::cuda::attention::hopper

namespace weft::cuda::attention {

template <int kWidth>
void backward_wgmma(const Problem& p, const ops::AttentionOptions& options) {
  using namespace hopper;
  constexpr int kWalked = kBackwardWalked<kWidth>;
  using KeyMemory = BackwardMemory<kWidth, QueryNumbers<kWalked>>;
  using QueryMemory = BackwardMemory<kWidth, TileTokens<kWalked>>;
  const Prepared for_keys(p, kWalked, kOwn), for_queries(p, kOwn, kWalked);
  auto maps = [&](int query_rows, int key_rows) {
    return Maps{make_tile_map(p.q, p.batch, p.queries, p.heads, p.key_width, query_rows),
                make_tile_map(p.k, p.batch, p.keys, p.kv_heads, p.key_width, key_rows),
                make_tile_map(p.v, p.batch, p.keys, p.kv_heads, p.value_width, key_rows),
                make_tile_map(p.dout, p.batch, p.queries, p.heads, p.value_width, query_rows)};
  };
  const dim3 key_grid(static_cast<unsigned>(p.batch * p.kv_heads * for_keys.work.keys.tiles));
  const dim3 query_grid(static_cast<unsigned>(p.batch * p.heads * for_queries.work.queries.tiles));
  with_functors<Scores::plain>(options, [&](auto mask, auto score, auto normaliser) {
    using Mask = decltype(mask);
    using Score = decltype(score);
    using Normaliser = decltype(normaliser);
    launch("attention_backward_wgmma", backward_keys<kWidth, Mask, Score, Normaliser>, key_grid, dim3(kBlock),
           KeyMemory::kBytes, stream_of(p), maps(kWalked, kOwn), for_keys.work, mask, score, Dropout(p));
    launch("attention_backward_wgmma", backward_queries<kWidth, Mask, Score, Normaliser>, query_grid, dim3(kBlock),
           QueryMemory::kBytes, stream_of(p), maps(kOwn, kWalked), for_queries.work, mask, score, Dropout(p));
  });
}

}  // namespace weft::cuda::attention
