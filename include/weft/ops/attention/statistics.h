// Statistics of the weights of a call, from its known normaliser statistic, without values and without a T x T matrix. The share of a key
// is the size of its weight over the sum of the sizes in the row. Per key: the sum of its shares over queries. Per query: the entropy of
// its shares, and its largest score.
// An item is (row, head): S = Q K^T with keys in the lanes, a vertical sum over queries and a horizontal one over keys.
#pragma once

#include <cmath>

#include "weft/ops/attention/backward.h"

namespace weft::ops::core {
namespace {

template <class T, class Mask, class Score, class Normaliser>
class Statistics {
 public:
  static constexpr int L = kLanes<T>, P = kPanel<T>;
  static constexpr bool kBiased = takes_bias<Score>();
  using V = Lanes<T>;

  Statistics(const Problem& problem, const Mask& mask, const Score& score)
      : p_(problem),
        mask_(mask),
        score_(score),
        key_blocks_(problem.key_tokens, problem.batch, problem.keys, kBlock),
        query_blocks_(problem.query_tokens, problem.batch, problem.queries, kBlock) {}

  void run() {
    run_items(p_, p_.batch * p_.heads, [&](int64_t i) { item(i / p_.heads, i % p_.heads); });
  }

 private:
  struct Scratch {
    T *key_lanes, *queries, *shift, *mass, *entropy, *top, *is_key;
    BlockTokens *query_tokens, *key_tokens;
    BlockBias<T>*query_bias, *key_bias;
    size_t bytes;

    Scratch(const Problem& p, std::byte* base) {
      Carver carve(base);
      key_lanes = carve.take<T>(kBlock * p.key_width), queries = carve.take<T>(kBlock * p.key_width);
      shift = carve.take<T>(kBlock), mass = carve.take<T>(kBlock), is_key = carve.take<T>(kBlock);
      entropy = carve.take<T>(p.queries), top = carve.take<T>(p.queries);
      query_tokens = carve.take<BlockTokens>(1), key_tokens = carve.take<BlockTokens>(1);
      query_bias = carve.take<BlockBias<T>>(kBiased), key_bias = carve.take<BlockBias<T>>(kBiased);
      bytes = carve.used();
    }
  };

  [[gnu::noinline]] void item(int64_t b, int64_t head) {
    Scratch s(p_, scratch(Scratch(p_, nullptr).bytes));
    const int64_t row = p_.first_row + b;
    std::fill_n(s.entropy, p_.queries, T(0));
    std::fill_n(s.top, p_.queries, -T(HUGE_VAL));
    for (int64_t key_block = 0; key_block < key_blocks_.count(); ++key_block) {
      int64_t k0 = key_block * kBlock, keys = smaller(kBlock, p_.keys - k0);
      pack_lanes<T>(p_.k.at(b, head / p_.heads_per_group()), k0, keys, p_.key_width, T(1), s.key_lanes);
      s.key_tokens->gather(p_.key_tokens, b, k0, keys);
      if constexpr (kBiased) s.key_bias->gather(p_.key_bias, b, head, k0, keys);
      std::fill_n(s.mass, kBlock, T(0));
      for (int64_t j = 0; j < kBlock; ++j) s.is_key[j] = j < keys ? T(1) : T(0);
      for (int64_t block = 0; block < query_blocks_.count(); ++block) {
        Cover cover = mask_.cover(row, head, query_blocks_.row(b)[block], key_blocks_.row(b)[key_block]);
        if (cover == Cover::empty) continue;
        int64_t q0 = block * kBlock, queries = smaller(kBlock, p_.queries - q0);
        load_queries(s, b, head, q0, queries);
        for (int64_t panel = 0; panel < (keys + P - 1) / P; ++panel)
          add(s, panel, q0, queries, row, head, cover == Cover::full);
      }
      for (int64_t j = 0; j < keys; ++j)
        p_.mass[(b * p_.keys + k0 + j) * p_.heads + head] = static_cast<float>(s.mass[j]);
    }
    for (int64_t i = 0; i < p_.queries; ++i) {
      int64_t at = (b * p_.queries + i) * p_.heads + head;
      p_.entropy[at] = static_cast<float>(s.entropy[i]);
      p_.top[at] = static_cast<float>(s.top[i]);
    }
  }

  void load_queries(Scratch& s, int64_t b, int64_t head, int64_t q0, int64_t queries) {
    pack_rows<T>(p_.q.at(b, head), q0, queries, p_.key_width,
                 static_cast<T>(p_.scale * score_unit<Score, Normaliser>()), s.queries, p_.key_width,
                 round_up(queries, kGroup));
    s.query_tokens->gather(p_.query_tokens, b, q0, queries);
    if constexpr (kBiased) s.query_bias->gather(p_.query_bias, b, head, q0, queries);
    for (int64_t i = 0; i < queries; ++i) {
      T statistic = static_cast<const T*>(p_.statistic)[(b * p_.queries + q0 + i) * p_.heads + head];
      s.shift[i] = SoftmaxNormaliser::backward_shift(statistic);
    }
  }

  void add(Scratch& s, int64_t panel, int64_t q0, int64_t queries, int64_t row, int64_t head, bool is_full) {
    V mass[2] = {load(s.mass + panel * P), load(s.mass + panel * P + L)};
    const V is_key[2] = {load(s.is_key + panel * P), load(s.is_key + panel * P + L)};
    const auto& score = score_of_head<Normaliser>(score_, head);
    for (int64_t r0 = 0; r0 < queries; r0 += kRowStep) {
      V acc[kRowStep][2] = {};
      multiply<2, false>(s.queries + r0 * p_.key_width, p_.key_width, s.key_lanes + panel * P * p_.key_width, P,
                         p_.key_width, acc);
      for (int64_t r = 0; r < smaller(kRowStep, queries - r0); ++r) {
        Token<LaneInts<T>> q = broadcast_at<T>(*s.query_tokens, r0 + r);
        V entropy{}, top = broadcast<V>(-T(HUGE_VAL)), shift = broadcast<V>(s.shift[r0 + r]);
        for (int n = 0; n < 2; ++n) {
          Token<LaneInts<T>> k = lanes_at<T>(*s.key_tokens, panel * P + n * L);
          V x = acc[r][n], none = broadcast<V>(-T(HUGE_VAL));
          V bias{};
          if constexpr (kBiased)
            bias = pair_bias(s.query_bias->broadcast_of(r0 + r), s.key_bias->lanes(panel * P + n * L));
          x = modified<Score, Normaliser, T>(score, x, bias, row, head, q, k);
          V size = x < V{} ? -x : x;
          if constexpr (std::is_same_v<Normaliser, SoftmaxNormaliser>) size = x;
          if (!is_full) size = select(keep_lanes<T>(mask_, row, head, q, k), size, none);
          size = is_key[n] > V{} ? size : none;
          V share, log2_share{};
          if constexpr (Normaliser::kHasStatistic) {
            log2_share = size - shift;
            share = lane_exp2(log2_share);
          } else {  // shift is log2 of the row's sum of sizes
            for (int c = 0; c < L; ++c) log2_share[c] = size[c] > 0 ? std::log2(size[c]) - shift[c] : -T(HUGE_VAL);
            share = lane_exp2(log2_share);
          }
          share = share > V{} ? share : V{};
          mass[n] += share;
          entropy -= share > V{} ? share * log2_share : V{};
          top = lane_max(top, size);
        }
        T sum = 0, largest = -T(HUGE_VAL);
        for (int c = 0; c < L; ++c) sum += entropy[c], largest = largest < top[c] ? top[c] : largest;
        s.entropy[q0 + r0 + r] += sum * T(SoftmaxNormaliser::kLn2);
        if constexpr (Normaliser::kIsBase2) largest *= T(SoftmaxNormaliser::kLn2);
        s.top[q0 + r0 + r] = s.top[q0 + r0 + r] < largest ? largest : s.top[q0 + r0 + r];
      }
    }
    store(s.mass + panel * P, mass[0]), store(s.mass + panel * P + L, mass[1]);
  }

  const Problem& p_;
  const Mask& mask_;
  const Score& score_;
  Ranges key_blocks_, query_blocks_;
};

}  // namespace
}  // namespace weft::ops::core
