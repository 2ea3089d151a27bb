// What happens to the product q.k of one pair, written once for all kernels: scale, score modifier, mask, dropout. Functors are
// those of the CPU (weft/ops/attention/score.h, mask.h, normaliser.h) with plain numbers.
#pragma once

#include <cmath>
#include <type_traits>

#include "ops/cuda/attention/problem.cuh"
#include "weft/core/rng.h"
#include "weft/ops/attention/mask.h"
#include "weft/ops/attention/normaliser.h"
#include "weft/ops/attention/score.h"

namespace weft::cuda::attention {

inline constexpr double kLog2e = 1.44269504088896340736;

// The factor of each weight under dropout, 0 or 1 / (1 - p), as core::Dropout of the CPU has it.
struct Dropout {
  uint32_t threshold;
  uint32_t first_head;
  uint64_t key;
  double keep_factor;

  explicit Dropout(const Problem& p)
      : threshold(static_cast<uint32_t>(std::ceil(p.dropout * 0x1p24))),
        first_head(static_cast<uint32_t>(p.first_head)),
        key(p.dropout_key),
        keep_factor(1 / (1 - p.dropout)) {}
};

// A token as kernels carry it where scores have biases: with the one for the head at work.
template <class T>
struct BiasedToken : Token<int32_t> {
  ops::core::Bias<T> bias;
};
template <class T, class Score>
using PairToken = std::conditional_t<ops::core::takes_bias<Score>(), BiasedToken<T>, Token<int32_t>>;

// Token i of one side, or nothing if it is not there.
template <class T, class Score>
__device__ __forceinline__ PairToken<T, Score> pair_token(const Side& side, const ops::core::BiasView& biases,
                                                          int64_t b, int64_t i, int head) {
  PairToken<T, Score> token{};
  if (i >= side.count) return token;
  static_cast<Token<int32_t>&>(token) = side.tokens.at(b, i);
  if constexpr (ops::core::takes_bias<Score>()) token.bias = ops::core::split_bias<T>(biases.at(b, i, head));
  return token;
}

// A tile's arithmetic with its functors. T: the computing type.
template <class T, class Mask, class Score, class Normaliser>
struct Pairs {
  static constexpr bool kIsPlain = ops::is_identity_score<Score>();
  static constexpr bool kBiased = ops::core::takes_bias<Score>();
  using PairToken = attention::PairToken<T, Score>;
  // Bare softmax has no registers to spare for random numbers: with dropout it runs as a modified score that modifies nothing.
  static constexpr bool kMayDrop = !kIsPlain;

  Mask mask;
  Score score;
  Dropout dropout;
  int64_t row;
  T unit;
  bool has_dropout;

  __device__ __forceinline__ Pairs(const Work& work, const Mask& mask, const Score& score, const Dropout& dropout,
                                   int64_t b)
      : mask(mask),
        score(score),
        dropout(dropout),
        row(work.p.first_row + b),
        unit(static_cast<T>(kIsPlain && Normaliser::kIsBase2 ? work.p.scale * kLog2e : work.p.scale)),
        has_dropout(kMayDrop && dropout.threshold > 0) {}

  __device__ __forceinline__ PairToken query(const Work& w, int64_t b, int64_t i, int head) const {
    return pair_token<T, Score>(w.queries, w.p.query_bias, b, i, head);
  }
  __device__ __forceinline__ PairToken key(const Work& w, int64_t b, int64_t i, int head) const {
    return pair_token<T, Score>(w.keys, w.p.key_bias, b, i, head);
  }

  // What the normaliser reads, from the bare product.
  __device__ __forceinline__ T value(T dot, int head, const PairToken& q, const PairToken& k) const {
    T s = dot * unit;
    if constexpr (!kIsPlain) {
      if constexpr (kBiased)
        s = score.value(s, pair_bias(q.bias, k.bias), row, int64_t{head}, token_of(q), token_of(k));
      else s = score.value(s, row, int64_t{head}, q, k);
      if constexpr (Normaliser::kIsBase2) s *= T(kLog2e);
    }
    return s;
  }
  __device__ __forceinline__ T slope(T dot, int head, Token<int32_t> q, Token<int32_t> k) const {
    if constexpr (kIsPlain) return T(1);
    else return score.slope(dot * unit, row, int64_t{head}, q, k);
  }
  static __device__ __forceinline__ Token<int32_t> token_of(const Token<int32_t>& token) { return token; }
  __device__ __forceinline__ bool keep(int head, Token<int32_t> q, Token<int32_t> k) const {
    return static_cast<bool>(mask.keep(row, int64_t{head}, q, k));
  }
  __device__ __forceinline__ T drop(int head, Token<int32_t> q, Token<int32_t> k) const {
    auto bits = philox({static_cast<uint32_t>(q.position), static_cast<uint32_t>(k.position),
                        dropout.first_head + static_cast<uint32_t>(head), static_cast<uint32_t>(row)},
                       dropout.key);
    return bits[0] >> 8 < dropout.threshold ? T(0) : static_cast<T>(dropout.keep_factor);
  }

  // Backward of one pair. In: its product and the gradient of its (dropped) weight. Out: the weight that multiplied the value,
  // and the gradients of scale * q.k and of the biases.
  struct Gradient {
    T weight, dscore, dbias;
  };
  __device__ __forceinline__ Gradient gradient(T dot, T dweight, T shift, T delta, bool is_kept, int head,
                                               const PairToken& q, const PairToken& k) const {
    T x = is_kept ? value(dot, head, q, k) : T(Normaliser::kMasked);
    T w = Normaliser::weight(x, shift), factor = T(1);
    if constexpr (kMayDrop) {
      if (has_dropout) factor = drop(head, q, k);
    }
    T ds = Normaliser::dscore(x, w, dweight * factor, delta), dbias = T(0);
    if constexpr (kBiased) {
      ds *= score.bias_slope(dot * unit, pair_bias(q.bias, k.bias), row, int64_t{head}, token_of(q), token_of(k));
      dbias = is_kept ? ds : T(0);
    }
    if constexpr (!kIsPlain) ds *= slope(dot, head, q, k);
    return {w * factor, is_kept ? ds : T(0), dbias};
  }
};

// Calls run(is_full): as a constant for bare scores, where a mask test per pair would show; otherwise as a number, so that the code is
// there once.
template <bool kIsPlain, class F>
__device__ __forceinline__ void with_fullness(bool is_full, F&& run) {
  if constexpr (!kIsPlain) run(is_full);
  else if (is_full) run(std::true_type{});
  else run(std::false_type{});
}

// The larger one; NaN loses, and comes back through weight().
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return fmax(a, b); }

// Over aligned groups of `kLanes` lanes, in the same order in each of them.
template <int kLanes, class T>
__device__ __forceinline__ T lanes_largest(T x) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) x = larger(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}
template <int kLanes, class T>
__device__ __forceinline__ T lanes_sum(T x) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

// Adds the sum of `x` over an aligned group of lanes to the gradient of the bias of token i, by the group's first lane.
template <int kLanes, class T>
__device__ __forceinline__ void add_bias_gradient(const ops::core::BiasView& biases, int64_t b, int64_t i, int head,
                                                  T x) {
  const T sum = lanes_sum<kLanes>(x);
  if (biases.gradient && threadIdx.x % kLanes == 0 && i < biases.tokens)
    biases.gradient[biases.index(b, i, head)] += static_cast<double>(sum);
}

// Every instance takes minutes to compile: bare softmax has its own, everything else chooses its score at run time.
template <class F>
void with_softmax_score(const ops::AttentionScore& score, bool has_dropout, F&& run) {
  if (score.softcap == 0 && !score.alibi_slopes.defined() && !has_dropout) run(ops::PlainScore{});
  else run(ops::ModifiedScore<false>(score));
}

// Which scores have an instance of their own: those without biases, both kinds, or only those with biases, which take no bias for one of 0.
// The last is for what need not be fast, because each instance takes long to compile.
enum class Scores { plain, both, biased };
template <class T>
inline constexpr Scores kScoresOf = sizeof(T) == 8 ? Scores::biased : Scores::both;  // f64 is for gradient checks

// Calls run(mask, score, normaliser) with the functors of the options: the list of what is compiled.
template <Scores kScores, class F>
void with_functors(const ops::AttentionOptions& options, F&& run) {
  ops::StandardMask mask(options.mask);
  if constexpr (kScores != Scores::plain) {
    if (kScores == Scores::biased || options.score.query_bias.defined() || options.score.key_bias.defined())
      switch (options.normaliser) {
        case ops::Normaliser::softmax:
          return run(mask, ops::BiasedScore<false>(options.score), ops::SoftmaxNormaliser{});
        case ops::Normaliser::sum: return run(mask, ops::BiasedScore<true>(options.score), ops::SumNormaliser{});
        case ops::Normaliser::signed_softmax:
          return run(mask, ops::BiasedScore<false>(options.score), ops::SignedSoftmaxNormaliser{});
      }
  }
  if constexpr (kScores != Scores::biased) switch (options.normaliser) {
      case ops::Normaliser::softmax:
        return with_softmax_score(options.score, options.dropout > 0,
                                  [&](auto score) { run(mask, score, ops::SoftmaxNormaliser{}); });
      case ops::Normaliser::sum: return run(mask, ops::ModifiedScore<true>(options.score), ops::SumNormaliser{});
      case ops::Normaliser::signed_softmax:
        return run(mask, ops::ModifiedScore<false>(options.score), ops::SignedSoftmaxNormaliser{});
    }
}

}  // namespace weft::cuda::attention
