// Forward on Hopper's warpgroups: a block has 128 queries of one head and walks tiles of 128 keys.
//   S = Q K^T, W = weight(score(S)) by the normaliser's running state, O = O * rescale + W V; W is rounded to bf16, sums are f32.
// A warpgroup's product W V runs while it makes the weights of the next tile, and beside the other warpgroup.
#pragma once

#include "ops/cuda/attention/forward_rows.cuh"
#include "ops/cuda/attention/tile_wgmma.cuh"

namespace weft::cuda::attention::hopper {

inline constexpr int kForwardKeys = 128, kForwardStages = 2;

// What stands behind the panels in shared memory.
struct ForwardNumbers {
  SharedBarrier queries_there, keys_there[kForwardStages], keys_free[kForwardStages], values_there[kForwardStages],
      values_free[kForwardStages];
  TileTokens<kForwardKeys> keys[kForwardStages];
  Token<int32_t> queries[kOwn];
};

template <int kWidth>
struct ForwardMemory {
  using Own = Panel<kOwn, kWidth>;
  using Walked = Panel<kForwardKeys, kWidth>;
  static constexpr size_t kBytes =
      kAlignmentBytes + Own::kBytes + 2 * kForwardStages * Walked::kBytes + sizeof(ForwardNumbers);
  Own queries;
  Walked keys, values;  // of stage 0
  ForwardNumbers& numbers;

  __device__ __forceinline__ explicit ForwardMemory(SharedMemory memory)
      : queries(memory.panels<Own>(1)),
        keys(memory.panels<Walked>(kForwardStages)),
        values(memory.panels<Walked>(kForwardStages)),
        numbers(memory.rest<ForwardNumbers>()) {}
};

// The producer's warp: queries once, then keys and values of every tile as stages become free.
template <int kWidth, class Mask>
__device__ __forceinline__ void produce(const ForwardMemory<kWidth>& memory, const Maps& maps, const Work& w,
                                        const Mask& mask, int b, int tile, int head) {
  using Memory = ForwardMemory<kWidth>;
  ForwardNumbers& numbers = memory.numbers;
  const int kv_head = head / static_cast<int>(w.p.heads_per_group());
  if (is_first_lane()) {
    numbers.queries_there.arrive_expecting(Memory::Own::kBytes);
    memory.queries.copy(maps.q, b, head, int64_t{tile} * kOwn, numbers.queries_there);
  }
  Walk<Mask, true> walk(w, mask, b, tile, head, head + 1);
  Tile at;
  for (Turn<kForwardStages> turn; walk.next(at); turn.advance()) {
    const int64_t k0 = int64_t{at.index} * kForwardKeys;
    const int i = turn.stage;
    numbers.keys_free[i].wait(turn.parity ^ 1);
    numbers.keys[i].load(w.keys, b, k0);
    __syncwarp();
    if (is_first_lane()) {
      numbers.keys_there[i].arrive_expecting(Memory::Walked::kBytes);
      memory.keys[i].copy(maps.k, b, kv_head, k0, numbers.keys_there[i]);
    }
    numbers.values_free[i].wait(turn.parity ^ 1);
    if (is_first_lane()) {
      numbers.values_there[i].arrive_expecting(Memory::Walked::kBytes);
      memory.values[i].copy(maps.v, b, kv_head, k0, numbers.values_there[i]);
    }
  }
}

template <int kWidth, class Mask, class Score, class Normaliser>
__device__ __forceinline__ void consume(const ForwardMemory<kWidth>& memory, const Work& w, const Mask& mask,
                                        const Score& score, const Dropout& dropout, int b, int tile, int head) {
  constexpr int N = kForwardKeys / 8;
  ForwardNumbers& numbers = memory.numbers;
  const int row = warp_of_block() / 4 * 64;
  tensor::ForwardRows<1, N, kWidth, Mask, Score, Normaliser> forward(w, mask, score, dropout, b, head,
                                                                     int64_t{tile} * kOwn, numbers.queries);
  forward.load();
  float x[1][N][4], factor[1][2];
  uint32_t weights[N / 2][4];

  auto multiply_keys = [&](const Turn<kForwardStages>& turn) {
    numbers.keys_there[turn.stage].wait(turn.parity);
    wgmma_fence();
    product(x[0], memory.queries, row, memory.keys[turn.stage]);
    wgmma_commit();
  };
  auto multiply_values = [&](const Turn<kForwardStages>& turn) {
    numbers.values_there[turn.stage].wait(turn.parity);
    wgmma_fence();
    accumulate(forward.out[0], weights, memory.values[turn.stage]);
    wgmma_commit();
  };
  // Weights of a tile in x; what `factor` is for, as ForwardRows::weigh().
  auto weigh = [&](const Tile& at, const Turn<kForwardStages>& turn) {
    const auto& keys = numbers.keys[turn.stage];
    with_fullness<decltype(forward.pairs)::kIsPlain>(
        at.is_full, [&](auto is_full) { forward.score(x, keys, int64_t{at.index} * kForwardKeys, is_full); });
    bool must_rescale = forward.weigh(x, factor);
    if constexpr (decltype(forward.pairs)::kMayDrop) {
      if (forward.pairs.has_dropout) forward.drop(x, keys);
    }
    __syncwarp();
    if (is_first_lane()) numbers.keys_free[turn.stage].arrive();
    return must_rescale;
  };
  auto free_values = [&](const Turn<kForwardStages>& turn) {
    __syncwarp();
    if (is_first_lane()) numbers.values_free[turn.stage].arrive();
  };

  numbers.queries_there.wait(0);
  Walk<Mask, true> walk(w, mask, b, tile, head, head + 1);
  Tile at;
  if (walk.next(at)) {
    Turn<kForwardStages> turn;
    multiply_keys(turn);
    wgmma_wait<0>(), wgmma_settle(x[0]);
    if (weigh(at, turn)) forward.rescale(factor);
    while (walk.next(at)) {
      Turn<kForwardStages> next = turn;
      next.advance();
      pack(weights, x[0]);
      multiply_keys(next);
      multiply_values(turn);
      wgmma_wait<1>(), wgmma_settle(x[0]);  // the scores are there
      const bool must_rescale = weigh(at, next);
      wgmma_wait<0>(), wgmma_settle(forward.out[0]), wgmma_settle(weights);
      free_values(turn);
      if (must_rescale) forward.rescale(factor);
      turn = next;
    }
    pack(weights, x[0]);
    multiply_values(turn);
    wgmma_wait<0>(), wgmma_settle(forward.out[0]);
  }
  forward.store();
}

// Block (row, head, tile of queries), later tiles first: under the masks that matter they see more keys.
template <int kWidth, class Mask, class Score, class Normaliser>
__global__ void __launch_bounds__(kBlock, 1)
    forward_groups(const __grid_constant__ Maps maps, Work w, Mask mask, Score score, Dropout dropout) {
  const int block = static_cast<int>(blockIdx.x), tiles = w.queries.tiles, heads = static_cast<int>(w.p.heads);
  const int tile = tiles - 1 - block % tiles, head = block / tiles % heads, b = block / tiles / heads;
  const ForwardMemory<kWidth> memory{SharedMemory()};
  tensor::load_queries<Score>(memory.numbers.queries, w, b, int64_t{tile} * kOwn, kOwn, head);
  if (threadIdx.x == 0) {
    memory.numbers.queries_there.init(1);
    for (int i = 0; i < kForwardStages; ++i) {
      memory.numbers.keys_there[i].init(1), memory.numbers.keys_free[i].init(kConsumingWarps);
      memory.numbers.values_there[i].init(1), memory.numbers.values_free[i].init(kConsumingWarps);
    }
    fence_barriers();
  }
  __syncthreads();
  if (warp_of_block() >= kConsumingWarps) {
    give_registers<kProducerRegisters>();
    if (warp_of_block() == kConsumingWarps) produce(memory, maps, w, mask, b, tile, head);
  } else {
    take_registers<kConsumerRegisters>();
    consume<kWidth, Mask, Score, Normaliser>(memory, w, mask, score, dropout, b, tile, head);
  }
}

}  // namespace weft::cuda::attention::hopper

namespace weft::cuda::attention {

template <int kWidth>
void forward_wgmma(const Problem& p, const ops::AttentionOptions& options) {
  using namespace hopper;
  const Prepared prepared(p, kOwn, kForwardKeys);
  const Maps maps{make_tile_map(p.q, p.batch, p.queries, p.heads, p.key_width, kOwn),
                  make_tile_map(p.k, p.batch, p.keys, p.kv_heads, p.key_width, kForwardKeys),
                  make_tile_map(p.v, p.batch, p.keys, p.kv_heads, p.value_width, kForwardKeys),
                  {}};
  const dim3 grid(static_cast<unsigned>(p.batch * p.heads * prepared.work.queries.tiles));
  with_functors<Scores::plain>(options, [&](auto mask, auto score, auto normaliser) {
    launch("attention_wgmma", forward_groups<kWidth, decltype(mask), decltype(score), decltype(normaliser)>, grid,
           dim3(kBlock), ForwardMemory<kWidth>::kBytes, stream_of(p), maps, prepared.work, mask, score, Dropout(p));
  });
}

}  // namespace weft::cuda::attention
