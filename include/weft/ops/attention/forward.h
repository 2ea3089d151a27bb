// Forward of the blockwise softmax core. A strip is (row, head, block of queries). An item is a few strips of one key/value head: it walks
// the key blocks, and its strips share the packed keys and values:
//   S^T = K Q^T (lanes are queries: maximum, 2^x and sum are vertical)
//   O = O * rescale + P V (lanes are value columns; P is read transposed, so nothing is ever transposed but Q, once)
// Memory: per thread O(block); the running state is read and written once per strip. With many key blocks O has a second sum: after every
// kTilesOfSum blocks their sum is added to it. Until then the factors of those blocks are collected for it (`owed`).
#pragma once

#include <algorithm>

#include "weft/ops/attention/normaliser.h"
#include "weft/ops/attention/plan.h"
#include "weft/ops/attention/score.h"

namespace weft::ops::core {
namespace {

inline constexpr double kLog2e = 1.44269504088896340736;

// Scores leave the product in the unit the normaliser wants, if no modifier needs natural ones first.
template <class Score, class Normaliser>
constexpr double score_unit() {
  return is_identity_score<Score>() && Normaliser::kIsBase2 ? kLog2e : 1.0;
}

template <class T, class Mask, class Score, class Normaliser>
class Forward {
 public:
  static constexpr int L = kLanes<T>, P = kPanel<T>;
  static constexpr bool kBiased = takes_bias<Score>();
  using V = Lanes<T>;

  Forward(const Problem& problem, const Mask& mask, const Score& score)
      : p_(problem),
        mask_(mask),
        score_(score),
        dropout_(problem),
        query_panels_(problem.query_tokens, problem.batch, problem.queries, P),
        key_groups_(problem.key_tokens, problem.batch, problem.keys, kGroup),
        query_blocks_(problem.query_tokens, problem.batch, problem.queries, kBlock),
        key_blocks_(problem.key_tokens, problem.batch, problem.keys, kBlock),
        value_ld_(round_up(problem.value_width, L)),
        is_long_(key_blocks_.count() > kTilesOfSum) {}

  void run() {
    int64_t strips = query_blocks_.count() * p_.heads_per_group(), groups = p_.batch * p_.kv_heads;
    int64_t strip_bytes = kBlock * (p_.key_width + value_ld_) * static_cast<int64_t>(sizeof(T));
    int64_t span = choose_span(strip_bytes, groups * strips, kMaxSpan);
    int64_t items = (strips + span - 1) / span;
    // Longest first: later positions see more keys under the masks that matter.
    run_items(p_, groups * items, [&](int64_t i) {
      int64_t group = i % groups, last = strips - i / groups * span;
      item(group / p_.kv_heads, group % p_.kv_heads, larger(0, last - span), last);
    });
  }

 private:
  static constexpr int kMaxSpan = 4;

  struct Strip {
    T *queries, *out, *state, *factor;
    T *total, *owed;  // if there are many key blocks: the second sum, and its factors
    BlockTokens* tokens;
    BlockBias<T>* bias;
    int64_t head, block, q0;
    int count, tiles;
  };
  struct Scratch {
    T *keys, *values, *scores;
    BlockTokens* key_tokens;
    BlockBias<T>* key_bias;  // for the head of the strip at work
    Strip strips[kMaxSpan];
    size_t bytes;

    Scratch(const Problem& p, int64_t value_ld, int64_t span, bool is_long, std::byte* base) {
      Carver carve(base);
      keys = carve.take<T>(kBlock * p.key_width), values = carve.take<T>(kBlock * value_ld);
      scores = carve.take<T>(kBlock * kBlock);
      key_tokens = carve.take<BlockTokens>(1), key_bias = carve.take<BlockBias<T>>(kBiased);
      for (int64_t i = 0; i < span; ++i) {
        Strip& s = strips[i];
        s.queries = carve.take<T>(kBlock * p.key_width), s.out = carve.take<T>(kBlock * value_ld);
        s.state = carve.take<T>(kBlock * Normaliser::kStateRows), s.factor = carve.take<T>(kBlock);
        s.total = carve.take<T>(is_long ? kBlock * value_ld : 0), s.owed = carve.take<T>(is_long ? kBlock : 0);
        s.tokens = carve.take<BlockTokens>(1), s.bias = carve.take<BlockBias<T>>(kBiased);
      }
      bytes = carve.used();
    }
  };
  // One key block as the strips of an item see it.
  struct Keys {
    int64_t b, row, first, count, block;
    bool is_packed;
  };

  [[gnu::noinline]] void item(int64_t b, int64_t kv_head, int64_t first, int64_t last) {
    int64_t span = last - first, row = p_.first_row + b;
    Scratch s(p_, value_ld_, span, is_long_, scratch(Scratch(p_, value_ld_, span, is_long_, nullptr).bytes));
    for (int64_t i = 0; i < span; ++i) start_strip(s.strips[i], b, kv_head, first + i);
    for (int64_t t = 0; t < key_blocks_.count(); ++t) {
      Keys keys{b, row, t * kBlock, smaller(kBlock, p_.keys - t * kBlock), t, false};
      for (int64_t i = 0; i < span; ++i) tile(s, s.strips[i], keys, kv_head);
    }
    for (int64_t i = 0; i < span; ++i) {
      if (is_long_) add_to_total(s.strips[i]);
      store_state(s.strips[i], b);
    }
  }

  void start_strip(Strip& strip, int64_t b, int64_t kv_head, int64_t index) {
    strip.head = kv_head * p_.heads_per_group() + index % p_.heads_per_group();
    strip.block = index / p_.heads_per_group(), strip.q0 = strip.block * kBlock;
    strip.count = static_cast<int>(smaller(kBlock, p_.queries - strip.q0));
    pack_lanes<T>(p_.q.at(b, strip.head), strip.q0, strip.count, p_.key_width,
                  static_cast<T>(p_.scale * score_unit<Score, Normaliser>()), strip.queries);
    strip.tokens->gather(p_.query_tokens, b, strip.q0, strip.count);
    if constexpr (kBiased) strip.bias->gather(p_.query_bias, b, strip.head, strip.q0, strip.count);
    load_state(strip, b);
  }

  [[gnu::always_inline]] void tile(Scratch& s, Strip& strip, Keys& keys, int64_t kv_head) {
    const TokenRange& query_range = query_blocks_.row(keys.b)[strip.block];
    Cover cover = mask_.cover(keys.row, strip.head, query_range, key_blocks_.row(keys.b)[keys.block]);
    if (cover == Cover::empty) return;
    const TokenRange* panels = query_panels_.row(keys.b) + strip.block * kPanels<T>;
    const TokenRange* groups = key_groups_.row(keys.b) + keys.block * kGroups;
    TilePlan<T> plan;
    make_plan(plan, strip.count, keys.count, cover == Cover::full,
              [&](int panel, int group) { return mask_.cover(keys.row, strip.head, panels[panel], groups[group]); });
    if (plan.begin >= plan.end) return;
    if (!keys.is_packed) {
      pack_rows<T>(p_.k.at(keys.b, kv_head), keys.first, keys.count, p_.key_width, T(1), s.keys, p_.key_width,
                   round_up(keys.count, kGroup));
      pack_rows<T>(p_.v.at(keys.b, kv_head), keys.first, keys.count, p_.value_width, T(1), s.values, value_ld_,
                   keys.count);
      s.key_tokens->gather(p_.key_tokens, keys.b, keys.first, keys.count);
      keys.is_packed = true;
    }
    if constexpr (kBiased) s.key_bias->gather(p_.key_bias, keys.b, strip.head, keys.first, keys.count);
    weights(s, strip, plan, keys.row, keys.count);
    values(s, strip, plan, keys.count);
    if (!is_long_) return;
    for (int64_t i = 0; i < strip.count; ++i) strip.owed[i] *= strip.factor[i];
    if (++strip.tiles == kTilesOfSum) add_to_total(strip);
  }

  [[gnu::noinline]] void add_to_total(Strip& strip) {
    for (int64_t i = 0; i < strip.count; ++i) {
      T *total = strip.total + i * value_ld_, *out = strip.out + i * value_ld_;
      V owed = broadcast<V>(strip.owed[i]);
      for (int64_t c = 0; c < value_ld_; c += L) {
        store(total + c, load(total + c) * owed + load(out + c));
        store(out + c, V{});
      }
      strip.owed[i] = T(1);
    }
    strip.tiles = 0;
  }

  // Scores of the tile, then weights in their place, per panel of queries.
  [[gnu::noinline]] void weights(Scratch& s, Strip& strip, const TilePlan<T>& plan, int64_t row, int64_t keys) {
    for (int panel = 0; panel < plan.panels; ++panel) {
      int first = plan.panel_begin[panel], last = plan.panel_end[panel];
      T* scores = s.scores + panel * P;
      int64_t row_begin = first * kGroup, row_end = smaller(last * kGroup, keys);
      V lowest = Normaliser::key(broadcast<V>(T(Normaliser::kMasked))), max[2] = {lowest, lowest};
      score_product(s, strip, panel, first, last, max);
      if (first < last && (!is_identity_score<Score>() || !plan.is_full || last * kGroup > keys))
        modify(s, strip, plan, panel, row, row_begin, row_end, max);
      for (int n = 0; n < 2; ++n) {
        int64_t lane = panel * P + n * L;
        auto state = read_state<Normaliser, V>(strip.state, kBlock, lane);
        V factor = first < last ? Normaliser::rescale(state, max[n]) : broadcast<V>(T(1));
        V shift = Normaliser::shift(state), total{};
        T* column = scores + n * L;
        for (int64_t j = row_begin; j < row_end; ++j) {
          V w = Normaliser::weight(load(column + j * kBlock), shift);
          total += Normaliser::counted(w);
          store(column + j * kBlock, w);
        }
        Normaliser::add(state, total);
        write_state<Normaliser, V>(state, strip.state, kBlock, lane);
        store(strip.factor + lane, factor);
        for (int64_t j = plan.begin * kGroup; j < row_begin; ++j) store(column + j * kBlock, V{});
        for (int64_t j = larger(row_end, plan.begin * kGroup); j < smaller(plan.end * kGroup, keys); ++j)
          store(column + j * kBlock, V{});
      }
      if (p_.dropout > 0) drop(s, strip, panel, row, row_begin, row_end);
    }
  }

  [[gnu::always_inline]] void score_product(Scratch& s, const Strip& strip, int panel, int first, int last,
                                            V (&max)[2]) {
    T* scores = s.scores + panel * P;
    const T* queries = strip.queries + panel * P * p_.key_width;
    for (int r0 = first * kGroup; r0 < last * kGroup; r0 += kRowStep) {
      V acc[kRowStep][2] = {};
      multiply<2, false>(s.keys + r0 * p_.key_width, p_.key_width, queries, P, p_.key_width, acc);
#pragma GCC unroll 16
      for (int r = 0; r < kRowStep; ++r) {
#pragma GCC unroll 2
        for (int n = 0; n < 2; ++n) {
          max[n] = lane_max(Normaliser::key(acc[r][n]), max[n]);
          store(scores + (r0 + r) * kBlock + n * L, acc[r][n]);
        }
      }
    }
  }

  // Score modifier and mask; the maximum is taken again over what remains.
  [[gnu::noinline]] void modify(Scratch& s, const Strip& strip, const TilePlan<T>& plan, int panel, int64_t row,
                                int64_t row_begin, int64_t row_end, V (&max)[2]) {
    V masked = broadcast<V>(T(Normaliser::kMasked));
    for (int n = 0; n < 2; ++n) {
      max[n] = Normaliser::key(masked);
      Token<LaneInts<T>> q = lanes_at<T>(*strip.tokens, panel * P + n * L);
      [[maybe_unused]] Bias<V> q_bias;
      if constexpr (kBiased) q_bias = strip.bias->lanes(panel * P + n * L);
      T* column = s.scores + panel * P + n * L;
      for (int64_t j = row_begin; j < row_end; ++j) {
        Token<LaneInts<T>> k = broadcast_at<T>(*s.key_tokens, j);
        V x = load(column + j * kBlock);
        if constexpr (!is_identity_score<Score>()) {
          if constexpr (kBiased)
            x = score_.value(x, pair_bias(q_bias, s.key_bias->broadcast_of(j)), row, strip.head, q, k);
          else x = score_value<T>(score_, x, row, strip.head, q, k);
          if constexpr (Normaliser::kIsBase2) x *= T(kLog2e);
        }
        if (!plan.is_full && plan.cover[panel][j / kGroup] != Cover::full)
          x = select(keep_lanes<T>(mask_, row, strip.head, q, k), x, masked);
        max[n] = lane_max(Normaliser::key(x), max[n]);
        store(column + j * kBlock, x);
      }
    }
  }

  [[gnu::noinline]] void drop(Scratch& s, const Strip& strip, int panel, int64_t row, int64_t row_begin,
                              int64_t row_end) {
    for (int n = 0; n < 2; ++n) {
      Token<LaneInts<T>> q = lanes_at<T>(*strip.tokens, panel * P + n * L);
      for (int64_t j = row_begin; j < row_end; ++j) {
        T* at = s.scores + j * kBlock + panel * P + n * L;
        store(at, load(at) * dropout_.template factors<T>(q.position, broadcast_at<T>(*s.key_tokens, j).position,
                                                          strip.head, row));
      }
    }
  }

  // O = O * factor + P V, by rows of queries.
  [[gnu::noinline]] void values(Scratch& s, Strip& strip, const TilePlan<T>& plan, int64_t keys) {
    for (int r0 = 0; r0 < strip.count; r0 += kRowStep) {
      int first, last;
      plan.groups_of(r0, kRowStep, first, last);
      if (first >= last) continue;
      int64_t j0 = first * kGroup, depth = smaller(last * kGroup, keys) - j0;
      row_product<true, false, true>(s.scores + j0 * kBlock + r0, kBlock, s.values + j0 * value_ld_, value_ld_, depth,
                                     strip.out + r0 * value_ld_, value_ld_, value_ld_, strip.factor + r0);
    }
  }

  void load_state(Strip& s, int64_t b) {
    for (int64_t i = 0; i < kBlock; ++i) {
      bool has = p_.has_state && i < s.count;
      int64_t at = (b * p_.queries + s.q0 + i) * p_.heads + s.head;
      T statistic = has && Normaliser::kHasStatistic ? static_cast<const T*>(p_.statistic)[at] : T(0);
      write_state<Normaliser, T>(Normaliser::init(statistic, has), s.state, kBlock, i);
      T* row = s.out + i * value_ld_;
      const T* old = static_cast<const T*>(p_.out) + at * p_.value_width;
      for (int64_t c = 0; c < value_ld_; ++c) row[c] = has && c < p_.value_width ? old[c] : T(0);
    }
    s.tiles = 0;
    if (!is_long_) return;
    std::fill_n(s.total, kBlock * value_ld_, T(0));
    std::fill_n(s.owed, kBlock, T(1));
  }

  void store_state(const Strip& s, int64_t b) {
    for (int64_t i = 0; i < s.count; ++i) {
      Final<T> end = Normaliser::finish(read_state<Normaliser, T>(s.state, kBlock, i));
      int64_t at = (b * p_.queries + s.q0 + i) * p_.heads + s.head;
      const T* row = (is_long_ ? s.total : s.out) + i * value_ld_;
      if (p_.out_is_bf16) {
        auto* out = static_cast<BFloat16*>(p_.out) + at * p_.value_width;
        for (int64_t c = 0; c < p_.value_width; ++c) out[c] = BFloat16(static_cast<float>(row[c] * end.factor));
      } else {
        T* out = static_cast<T*>(p_.out) + at * p_.value_width;
        for (int64_t c = 0; c < p_.value_width; ++c) out[c] = row[c] * end.factor;
      }
      if (Normaliser::kHasStatistic) static_cast<T*>(p_.statistic)[at] = end.statistic;
    }
  }

  const Problem& p_;
  const Mask& mask_;
  const Score& score_;
  Dropout dropout_;
  Ranges query_panels_, key_groups_, query_blocks_, key_blocks_;
  int64_t value_ld_;
  bool is_long_;  // many key blocks
};

}  // namespace
}  // namespace weft::ops::core
