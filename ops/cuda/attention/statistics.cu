// What the weights look like, from a known statistic, without values or a T x T matrix, in two kernels. One has a tile of keys of a query
// head, walks the queries, and adds each row of the shares of K Q^T; the other a tile of queries, walks the keys, and takes entropy and
// largest score of each row of Q K^T.
#include "ops/cuda/attention/tile_f32.cuh"

namespace weft::cuda {

namespace attention::plain {
namespace {

template <class T>
struct Share {
  T share, log2;  // of a pair; 0 and anything where there is none
};

// Sizes of weights over their sum: 2^(size - shift), or size / 2^shift where scores are weights.
template <class Normaliser, class T>
__device__ __forceinline__ Share<T> share_of(T size, T shift) {
  T log2 = size - shift;
  if constexpr (!Normaliser::kHasStatistic)
    log2 = size > T(0) ? T(log2f(static_cast<float>(size))) - shift : -T(HUGE_VAL);
  if constexpr (!Normaliser::kHasStatistic && sizeof(T) == 8)
    log2 = size > T(0) ? T(::log2(double(size))) - shift : -T(HUGE_VAL);
  T share = ops::core::lane_exp2(log2);
  return {share > T(0) ? share : T(0), log2};
}

// What the shares are made of: scores as they are, or their sizes.
template <class T>
__device__ __forceinline__ T size_of(T x, bool is_signed) {
  return is_signed && x < T(0) ? -x : x;
}

template <class T>
__device__ __forceinline__ T shift_of(const Problem& p, int64_t row) {
  return ops::SoftmaxNormaliser::backward_shift(static_cast<const T*>(p.statistic)[row]);
}

template <class T, class Mask, class Score, class Normaliser>
__global__ void __launch_bounds__(kThreads)
    column_mass(Work w, Mask mask, Score score, Dropout dropout, bool is_signed) {
  constexpr int R = kOf<T>;
  auto& s = *reinterpret_cast<Shared<T>*>(dynamic_shared());
  const Problem& p = w.p;
  int block = static_cast<int>(blockIdx.x), tiles = w.keys.tiles, heads = static_cast<int>(p.heads);
  int tile = block % tiles, head = block / tiles % heads, b = block / tiles / heads;
  int64_t k0 = int64_t{tile} * kTile<T>;
  Pairs<T, Mask, Score, Normaliser> pairs(w, mask, score, dropout, b);
  Operand k = p.k.at(b, head / p.heads_per_group()), q = p.q.at(b, head);
  T mass[R] = {};
  PairToken<T, Score> keys[R];
#pragma unroll
  for (int i = 0; i < R; ++i) keys[i] = pairs.key(w, b, k0 + thread_y() + kSide * i, head);
  Walk<Mask, false> walk(w, mask, b, tile, head, head + 1);
  Tile at;
  while (walk.next(at)) {
    int64_t q0 = int64_t{at.index} * kTile<T>;
    T x[R][R];
    product(x, s, k, k0, p.keys, q, q0, p.queries, p.key_width);
    put(s.weights, x);
#pragma unroll 1
    for (int j = thread_x(); j < kTile<T>; j += kSide) {
      int64_t i_query = q0 + j;
      if (i_query >= p.queries) continue;
      const auto query = pairs.query(w, b, i_query, head);
      T shift = shift_of<T>(p, (b * p.queries + i_query) * p.heads + head);
#pragma unroll
      for (int i = 0; i < R; ++i) {
        if (!at.is_full && !pairs.keep(head, query, keys[i])) continue;
        mass[i] +=
            share_of<Normaliser>(
                size_of(pairs.value(s.weights[thread_y() + kSide * i][j], head, query, keys[i]), is_signed), shift)
                .share;
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

template <class T, class Mask, class Score, class Normaliser>
__global__ void __launch_bounds__(kThreads)
    row_statistics(Work w, Mask mask, Score score, Dropout dropout, bool is_signed) {
  constexpr int R = kOf<T>;
  auto& s = *reinterpret_cast<Shared<T>*>(dynamic_shared());
  const Problem& p = w.p;
  int block = static_cast<int>(blockIdx.x), tiles = w.queries.tiles, heads = static_cast<int>(p.heads);
  int tile = block % tiles, head = block / tiles % heads, b = block / tiles / heads;
  int64_t q0 = int64_t{tile} * kTile<T>;
  Pairs<T, Mask, Score, Normaliser> pairs(w, mask, score, dropout, b);
  Operand k = p.k.at(b, head / p.heads_per_group()), q = p.q.at(b, head);
  T entropy[R] = {}, top[R], shift[R];
  PairToken<T, Score> queries[R];
#pragma unroll
  for (int i = 0; i < R; ++i) {
    int64_t at = q0 + thread_y() + kSide * i;
    bool is_there = at < p.queries;
    queries[i] = pairs.query(w, b, at, head);
    shift[i] = is_there ? shift_of<T>(p, (b * p.queries + at) * p.heads + head) : T(0);
    top[i] = -T(HUGE_VAL);
  }
  Walk<Mask, true> walk(w, mask, b, tile, head, head + 1);
  Tile at;
  while (walk.next(at)) {
    int64_t k0 = int64_t{at.index} * kTile<T>;
    T x[R][R];
    product(x, s, q, q0, p.queries, k, k0, p.keys, p.key_width);
    put(s.weights, x);
#pragma unroll 1
    for (int j = thread_x(); j < kTile<T>; j += kSide) {
      int64_t i_key = k0 + j;
      if (i_key >= p.keys) continue;
      const auto key = pairs.key(w, b, i_key, head);
#pragma unroll
      for (int i = 0; i < R; ++i) {
        if (!at.is_full && !pairs.keep(head, queries[i], key)) continue;
        T size = size_of(pairs.value(s.weights[thread_y() + kSide * i][j], head, queries[i], key), is_signed);
        Share<T> share = share_of<Normaliser>(size, shift[i]);
        if (share.share > T(0)) entropy[i] -= share.share * share.log2;
        top[i] = top[i] < size ? size : top[i];
      }
    }
  }
  constexpr T kLn2 = T(ops::SoftmaxNormaliser::kLn2);
#pragma unroll
  for (int i = 0; i < R; ++i) {
    T sum = lanes_sum<kSide>(entropy[i]), largest = lanes_largest<kSide>(top[i]);
    int64_t query = q0 + thread_y() + kSide * i;
    if (thread_x() != 0 || query >= p.queries) continue;
    int64_t row = (b * p.queries + query) * p.heads + head;
    p.entropy[row] = static_cast<float>(sum * kLn2);
    p.top[row] = static_cast<float>(Normaliser::kIsBase2 ? largest * kLn2 : largest);
  }
}

template <class T>
void run_statistics(const Problem& p, const ops::AttentionOptions& options) {
  Prepared prepared(p, kTile<T>, kTile<T>);
  auto grid = [&](int tiles) { return dim3(static_cast<unsigned>(p.batch * p.heads * tiles)); };
  const ops::StandardMask mask(options.mask);
  auto run = [&](auto score, auto normaliser) {
    using Mask = ops::StandardMask;
    using Score = decltype(score);
    using Normaliser = decltype(normaliser);
    const bool is_signed = options.normaliser != ops::Normaliser::softmax;
    launch("attention_column_mass", column_mass<T, Mask, Score, Normaliser>, grid(prepared.work.keys.tiles),
           dim3(kThreads), sizeof(Shared<T>), stream_of(p), prepared.work, mask, score, Dropout(p), is_signed);
    launch("attention_row_statistics", row_statistics<T, Mask, Score, Normaliser>, grid(prepared.work.queries.tiles),
           dim3(kThreads), sizeof(Shared<T>), stream_of(p), prepared.work, mask, score, Dropout(p), is_signed);
  };
  // Two instances, because each takes long to compile: shares of 2^(score - shift), and of bare scores. No bias is one of 0.
  if (options.normaliser == ops::Normaliser::sum) run(ops::BiasedScore<true>(options.score), ops::SumNormaliser{});
  else run(ops::BiasedScore<false>(options.score), ops::SoftmaxNormaliser{});
}

}  // namespace
}  // namespace attention::plain

void attention_statistics(const ops::core::Problem& problem, const ops::AttentionOptions& options) {
  if (problem.compute == kF64) attention::plain::run_statistics<double>(problem, options);
  else attention::plain::run_statistics<float>(problem, options);
}

}  // namespace weft::cuda
