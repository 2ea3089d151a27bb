// Forward of the blockwise softmax core. A strip is (row, head, block of queries). An item is a few strips of one key/value head: it walks
// the key blocks, and its strips share the packed keys and values:
//   S^T = K Q^T (lanes are queries: maximum, 2^x and sum are vertical)
//   O = O * rescale + P V (lanes are value columns; P is read transposed, so nothing is ever transposed but Q, once)
// Memory: per thread O(block); the running state is read and written once per strip. With many key blocks O has a second sum: after every
// kTilesOfSum blocks their sum is added to it. Until then the factors of those blocks are collected for it (`owed`).
#pragma once

#include <algorithm>

#include "weft/ops/attention/cells.h"
#include "weft/ops/attention/fetch.h"
#include "weft/ops/attention/normaliser.h"
#include "weft/ops/attention/pairs.h"
#include "weft/ops/attention/tiles.h"

namespace weft::ops::core {
namespace {

// A is the arithmetic: the type to compute in, or Bf16Pairs. Then weights are rounded to bf16 just before they multiply values.
template <class A, class Mask, class Score, class Normaliser>
class Forward {
 public:
  using T = typename Arithmetic<A>::Number;
  using Packed = typename Arithmetic<A>::Packed;
  static constexpr bool kIsPaired = Arithmetic<A>::kDepth == 2;
  static constexpr int L = kLanes<T>, P = kPanel<T>;
  static constexpr bool kBiased = takes_bias<Score>();
  using V = Lanes<T>;

  Forward(const Problem& problem, const Mask& mask, const Score& score)
      : p_(problem),
        mask_(mask),
        score_(score),
        dropout_(problem),
        query_panels_(ranges_of(problem, problem.query_tokens, problem.queries, P)),
        query_groups_(ranges_of(problem, problem.query_tokens, problem.queries, kGroup)),
        key_groups_(ranges_of_keys(problem, query_groups_)),
        query_blocks_(query_groups_),
        key_blocks_(key_groups_),
        tiles_(problem, mask, {query_panels_, query_groups_, query_blocks_, problem.queries},
               {key_groups_, key_groups_, key_blocks_, problem.keys}),
        key_steps_(steps_of<A>(problem.key_width)),
        value_ld_(round_up(problem.value_width, L)),
        product_scale_(static_cast<T>(problem.scale * score_unit<Score, Normaliser>())),
        is_long_(key_blocks_.count() > kTilesOfSum) {}

  void run() {
    int64_t strips = query_blocks_.count() * p_.heads_per_group(), groups = p_.batch * p_.kv_heads;
    int64_t strip_bytes = kBlock * (key_steps_ + value_ld_) * static_cast<int64_t>(sizeof(T));
    int64_t span = choose_span(strip_bytes, groups * strips, kMaxSpan);
    const int64_t items = groups * ((strips + span - 1) / span), threads = num_threads();
    // Longest first: later positions see more keys under the masks that matter. Threads take items in turn.
    auto item_at = [&](int64_t i) {
      const int64_t group = i % groups, last = strips - i / groups * span;
      return i < items ? Item{group / p_.kv_heads, group % p_.kv_heads, larger(0, last - span), last} : Item{};
    };
    run_items(p_, items, [&](int64_t i) { item(item_at(i), item_at(i + threads)); });
  }

 private:
  static constexpr int kMaxSpan = 4;
  static constexpr int kBlockSteps = kBlock / Arithmetic<A>::kDepth, kScoreLd = kIsPaired ? P : kBlock;

  struct Strip {
    Packed* queries;
    T *out, *state, *factor;
    T *total, *owed;  // if there are many key blocks: the second sum, and its factors
    BlockTokens* tokens;
    BlockBias<T>* bias;
    int64_t head, block, q0;
    int count, tiles;
    bool has_total;
  };
  // What is fetched ahead: the next block of keys and values, where results go, queries of the thread's next item.
  enum Fetched { kNextKeys, kNextValues, kOut, kNextQueries = kOut + kMaxSpan, kFetched = kNextQueries + kMaxSpan };
  struct Scratch {
    Packed *keys, *values, *weights;  // weights: the scores' own memory, or pairs of them
    T* scores;                        // of the tile; with pairs of one panel
    BlockTokens* key_tokens;
    BlockBias<T>* key_bias;  // for the head of the strip at work
    Strip strips[kMaxSpan];
    Fetcher<kFetched> fetcher;
    size_t bytes;

    Scratch(int64_t key_steps, int64_t value_ld, int64_t span, bool is_long, std::byte* base) {
      Carver carve(base);
      keys = carve.take<Packed>(kBlock * key_steps), values = carve.take<Packed>(kBlockSteps * value_ld);
      scores = carve.take<T>(kBlock * kScoreLd);
      if constexpr (kIsPaired) weights = carve.take<Packed>(kBlockSteps * kBlock);
      else weights = scores;
      key_tokens = carve.take<BlockTokens>(1), key_bias = carve.take<BlockBias<T>>(kBiased);
      for (int64_t i = 0; i < span; ++i) {
        Strip& s = strips[i];
        s.queries = carve.take<Packed>(kBlock * key_steps), s.out = carve.take<T>(kBlock * value_ld);
        s.state = carve.take<T>(kBlock * Normaliser::kStateRows), s.factor = carve.take<T>(kBlock);
        s.total = carve.take<T>(is_long ? kBlock * value_ld : 0), s.owed = carve.take<T>(is_long ? kBlock : 0);
        s.tokens = carve.take<BlockTokens>(1), s.bias = carve.take<BlockBias<T>>(kBiased);
      }
      bytes = carve.used();
    }
  };

  // `next`: the item that this thread is likely to take after this one.
  [[gnu::noinline]] void item(const Item& of, const Item& next) {
    const int64_t b = of.b, span = of.last - of.first, row = p_.first_row + b;
    Scratch s(key_steps_, value_ld_, span, is_long_,
              scratch(Scratch(key_steps_, value_ld_, span, is_long_, nullptr).bytes));
    for (int64_t i = 0; i < span; ++i) start_strip(s.strips[i], b, of.kv_head, of.first + i);
    fetch_ahead(s, of, next);
    auto is_empty = [&](const TokenRange& keys) __attribute__((always_inline)) {
      for (const Strip* x = s.strips; x < s.strips + span; ++x)
        if (mask_.cover(row, x->head, query_blocks_.row(b)[x->block], keys) != Cover::empty) return false;
      return true;
    };
    int64_t next_block = key_blocks_.first_seen(b, 0, is_empty);
    while (next_block < key_blocks_.count()) {
      const int64_t t = next_block;
      next_block = key_blocks_.first_seen(b, t + 1, is_empty);
      Keys keys{b, row, t * kBlock, smaller(kBlock, p_.keys - t * kBlock), t, next_block, false};
      for (int64_t i = 0; i < span; ++i) tile(s, s.strips[i], keys, of.kv_head);
    }
    for (int64_t i = 0; i < span; ++i) {
      if (s.strips[i].has_total) add_to_total(s.strips[i]);
      store_state(s.strips[i], b);
    }
  }

  void fetch_ahead(Scratch& s, const Item& of, const Item& next) {
    const int64_t bytes = p_.value_width * (p_.out_is_bf16 ? 2 : static_cast<int64_t>(sizeof(T)));
    for (int i = 0; i < of.last - of.first; ++i) {
      const Strip& strip = s.strips[i];
      const int64_t row = (of.b * p_.queries + strip.q0) * p_.heads + strip.head;
      const char* to = static_cast<const char*>(p_.out) + row * bytes;
      s.fetcher.want(kOut + i, to, p_.heads * bytes, bytes, strip.count, true);
    }
    for (int i = 0; i < next.last - next.first; ++i) {
      Strip strip;
      place_strip(strip, next.kv_head, next.first + i);
      s.fetcher.want(kNextQueries + i, p_.q.at(next.b, strip.head), strip.q0, strip.q0 + strip.count, p_.key_width);
    }
  }

  void place_strip(Strip& strip, int64_t kv_head, int64_t index) const {
    strip.head = kv_head * p_.heads_per_group() + index % p_.heads_per_group();
    strip.block = index / p_.heads_per_group(), strip.q0 = strip.block * kBlock;
    strip.count = static_cast<int>(smaller(kBlock, p_.queries - strip.q0));
  }

  void start_strip(Strip& strip, int64_t b, int64_t kv_head, int64_t index) {
    place_strip(strip, kv_head, index);
    pack_lane_operand<A>(p_.q.at(b, strip.head), strip.q0, strip.count, p_.key_width, product_scale_, strip.queries);
    strip.tokens->gather(p_.query_tokens, b, strip.q0, strip.count);
    if constexpr (kBiased) strip.bias->gather(p_.query_bias, b, strip.head, strip.q0, strip.count);
    load_state(strip, b);
  }

  [[gnu::always_inline]] void tile(Scratch& s, Strip& strip, Keys& keys, int64_t kv_head) {
    const TokenRange& query_range = query_blocks_.row(keys.b)[strip.block];
    Cover cover = mask_.cover(keys.row, strip.head, query_range, key_blocks_.row(keys.b)[keys.block]);
    if (cover == Cover::empty) return;
    TilePlan<T> made;
    const TilePlan<T>& plan = tiles_.plan(made, cover, {keys.b, keys.row, strip.head, strip.block, keys.block});
    if (plan.begin >= plan.end) return;
    if (!keys.is_packed) {
      const Operand k = p_.k.at(keys.b, kv_head), v = p_.v.at(keys.b, kv_head);
      pack_row_operand<A>(k, keys.first, keys.count, p_.key_width, T(1), s.keys, key_steps_,
                          round_up(keys.count, kGroup));
      pack_depth_operand<A>(v, keys.first, keys.count, p_.value_width, s.values, value_ld_);
      const int64_t next = keys.next * kBlock, end = smaller(next + kBlock, p_.keys);
      s.fetcher.want(kNextKeys, k, next, end, p_.key_width);
      s.fetcher.want(kNextValues, v, next, end, p_.value_width);
      s.key_tokens->gather(p_.key_tokens, keys.b, keys.first, keys.count);
      keys.is_packed = true;
    }
    if constexpr (kBiased) s.key_bias->gather(p_.key_bias, keys.b, strip.head, keys.first, keys.count);
    weights(s, strip, plan, keys.row, keys.count);
    values(s, strip, plan, keys.count);
    if (!is_long_) return;
    if (strip.has_total)
      for (int64_t i = 0; i < kBlock; i += L) store(strip.owed + i, load(strip.owed + i) * load(strip.factor + i));
    if (++strip.tiles == kTilesOfSum) add_to_total(strip);
  }

  [[gnu::noinline]] void add_to_total(Strip& strip) {
    if (!strip.has_total) {
      std::fill_n(strip.total, kBlock * value_ld_, T(0));
      std::fill_n(strip.owed, kBlock, T(1));
      strip.has_total = true;
    }
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

  // Scores of the tile, then weights in their place or as pairs, per panel of queries.
  [[gnu::noinline]] void weights(Scratch& s, Strip& strip, const TilePlan<T>& plan, int64_t row, int64_t keys) {
    for (int panel = 0; panel < plan.panels; ++panel) {
      int first = plan.panel_begin[panel], last = plan.panel_end[panel];
      int64_t row_begin = first * kGroup, row_end = smaller(last * kGroup, keys);
      V lowest = Normaliser::key(broadcast<V>(T(Normaliser::kMasked))), max[2] = {lowest, lowest};
      for (int group = first; group < last; ++group) {
        s.fetcher.step();
        score_cell(s, strip, plan, panel, group, row, keys, max);
      }
      for (int n = 0; n < 2; ++n) {
        int64_t lane = panel * P + n * L;
        auto state = read_state<Normaliser, V>(strip.state, kBlock, lane);
        V factor = first < last ? Normaliser::rescale(state, max[n]) : broadcast<V>(T(1));
        V shift = Normaliser::shift(state), total{};
        T* column = scores_of(s, panel) + n * L;
        auto weight_of = [&](int64_t j) __attribute__((always_inline)) {
          V w = Normaliser::weight(load(column + j * kScoreLd), shift);
          total += Normaliser::counted(w);
          return w;
        };
        Packed* to = s.weights + lane;
        if constexpr (kIsPaired) {
          auto dropped = [&](int64_t j, V w) __attribute__((always_inline)) {
            return p_.dropout > 0 ? w * dropout_factors(s, strip, lane, j, row) : w;
          };
          int64_t j = row_begin;
          for (; j + 2 <= row_end; j += 2) {
            V w = weight_of(j), next = weight_of(j + 1);
            store(to + j / 2 * kBlock, Products<Packed>::pair_of(dropped(j, w), dropped(j + 1, next)));
          }
          if (j < row_end) store(to + j / 2 * kBlock, Products<Packed>::pair_of(dropped(j, weight_of(j)), V{}));
        } else {
          for (int64_t j = row_begin; j < row_end; ++j) store(to + j * kBlock, weight_of(j));
        }
        Normaliser::add(state, total);
        write_state<Normaliser, V>(state, strip.state, kBlock, lane);
        store(strip.factor + lane, factor);
        auto clear = [&](int64_t begin, int64_t end) {
          for (int64_t j = steps_of<A>(begin); j < steps_of<A>(end); ++j) store(to + j * kBlock, Lanes<Packed>{});
        };
        clear(plan.begin * kGroup, row_begin);
        clear(larger(row_end, plan.begin * kGroup), smaller(plan.end * kGroup, keys));
      }
      if constexpr (!kIsPaired)
        if (p_.dropout > 0) drop(s, strip, panel, row, row_begin, row_end);
    }
  }

  // With pairs a panel's scores are gone when its weights are there, so all panels have one place.
  [[gnu::always_inline]] static T* scores_of(Scratch& s, int panel) { return s.scores + (kIsPaired ? 0 : panel * P); }

  // Scores of one panel and one group. A cell with a modifier, a mask or places behind the last key is done again in memory, with the
  // maximum over what remains.
  [[gnu::always_inline]] void score_cell(Scratch& s, const Strip& strip, const TilePlan<T>& plan, int panel, int group,
                                         int64_t row, int64_t keys, V (&max)[2]) {
    T* scores = scores_of(s, panel);
    const Packed* queries = strip.queries + panel * P * key_steps_;
    [[maybe_unused]] const V scale = broadcast<V>(product_scale_);
    const bool is_full = plan.is_full || plan.cover[panel][group] == Cover::full;
    const bool is_done = is_identity_score<Score>() && is_full && (group + 1) * kGroup <= keys;
    V before[2] = {max[0], max[1]};
    for (int r0 = group * kGroup; r0 < (group + 1) * kGroup; r0 += kRowStep) {
      V acc[kRowStep][2] = {};
      expect_depth(key_steps_);
      multiply<2, false>(s.keys + r0 * key_steps_, key_steps_, queries, P, key_steps_, acc);
#pragma GCC unroll 16
      for (int r = 0; r < kRowStep; ++r) {
#pragma GCC unroll 2
        for (int n = 0; n < 2; ++n) {
          if constexpr (kIsPaired) acc[r][n] *= scale;
          if constexpr (is_identity_score<Score>()) max[n] = lane_max(Normaliser::key(acc[r][n]), max[n]);
          store(scores + (r0 + r) * kScoreLd + n * L, acc[r][n]);
        }
      }
    }
    if (is_done) return;
    max[0] = before[0], max[1] = before[1];
    modify(s, strip, panel, row, group * kGroup, smaller((group + 1) * kGroup, keys), is_full, max);
  }

  // Score modifier and mask of rows [begin, end).
  [[gnu::noinline]] void modify(Scratch& s, const Strip& strip, int panel, int64_t row, int64_t begin, int64_t end,
                                bool is_full, V (&largest)[2]) {
    const auto& score = score_of_head<Normaliser>(score_, strip.head);
    Held<Mask> mask = mask_;
    const V masked = broadcast<V>(T(Normaliser::kMasked));
    T* scores = scores_of(s, panel);
    const Token<LaneInts<T>> q[2] = {lanes_at<T>(*strip.tokens, panel * P), lanes_at<T>(*strip.tokens, panel * P + L)};
    Bias<V> bias[2];
    if constexpr (kBiased) bias[0] = strip.bias->lanes(panel * P), bias[1] = strip.bias->lanes(panel * P + L);
    V max[2] = {largest[0], largest[1]};
    for (int64_t j = begin; j < end; ++j) {
      const Token<LaneInts<T>> k = broadcast_at<T>(*s.key_tokens, j);
      for (int n = 0; n < 2; ++n) {
        T* at = scores + j * kScoreLd + n * L;
        V of_pair{};
        if constexpr (kBiased) of_pair = pair_bias(bias[n], s.key_bias->broadcast_of(j));
        V x = modified<Score, Normaliser, T>(score, load(at), of_pair, row, strip.head, q[n], k);
        if (!is_full) x = select(keep_lanes<T>(mask, row, strip.head, q[n], k), x, masked);
        max[n] = lane_max(Normaliser::key(x), max[n]);
        store(at, x);
      }
    }
    largest[0] = max[0], largest[1] = max[1];
  }

  V dropout_factors(const Scratch& s, const Strip& strip, int64_t lane, int64_t j, int64_t row) const {
    return dropout_.template factors<T>(lanes_at<T>(*strip.tokens, lane).position,
                                        broadcast_at<T>(*s.key_tokens, j).position, strip.head, row);
  }

  [[gnu::noinline]] void drop(Scratch& s, const Strip& strip, int panel, int64_t row, int64_t row_begin,
                              int64_t row_end) {
    for (int64_t lane = panel * P; lane < (panel + 1) * P; lane += L)
      for (int64_t j = row_begin; j < row_end; ++j) {
        T* at = s.scores + j * kBlock + lane;
        store(at, load(at) * dropout_factors(s, strip, lane, j, row));
      }
  }

  // O = O * factor + P V, by rows of queries.
  [[gnu::noinline]] void values(Scratch& s, Strip& strip, const TilePlan<T>& plan, int64_t keys) {
    for (int r0 = 0; r0 < strip.count; r0 += kRowStep) {
      const int first = plan.lane_begin[r0 / kGroup], last = plan.lane_end[r0 / kGroup];
      if (first >= last) continue;
      int64_t j0 = first * kGroup, depth = smaller(last * kGroup, keys) - j0;
      const int64_t from = steps_of<A>(j0);
      row_product<true, false, true>(s.weights + from * kBlock + r0, kBlock, s.values + from * value_ld_, value_ld_,
                                     steps_of<A>(depth), strip.out + r0 * value_ld_, value_ld_, value_ld_,
                                     strip.factor + r0);
    }
  }

  Resumed<typename Normaliser::template State<T>, T> first_state(int64_t at, bool has) const {
    if constexpr (!Normaliser::kHasStatistic) return {Normaliser::init(T(0), has), T(1)};
    else {
      if (!has) return {Normaliser::init(T(0), false), T(1)};
      const double statistic =
          p_.is_statistic_f64 ? static_cast<const double*>(p_.statistic)[at] : static_cast<const T*>(p_.statistic)[at];
      if constexpr (requires { Normaliser::template resumed<T>(statistic); })
        if (p_.is_statistic_f64) return Normaliser::template resumed<T>(statistic);
      return {Normaliser::init(static_cast<T>(statistic), true), T(1)};
    }
  }

  void load_state(Strip& s, int64_t b) {
    for (int64_t i = 0; i < kBlock; ++i) {
      const bool has = p_.has_state && i < s.count;
      const int64_t at = (b * p_.queries + s.q0 + i) * p_.heads + s.head;
      const auto from = first_state(at, has);
      write_state<Normaliser, T>(from.state, s.state, kBlock, i);
      T* row = s.out + i * value_ld_;
      if (has) {
        const T* old = static_cast<const T*>(p_.out) + at * p_.value_width;
        std::transform(old, old + p_.value_width, row, [&](T x) { return x * from.factor; });
      }
      std::fill(row + (has ? p_.value_width : 0), row + value_ld_, T(0));
    }
    s.tiles = 0, s.has_total = false;
  }

  void store_state(const Strip& s, int64_t b) {
    for (int64_t i = 0; i < s.count; ++i) {
      Final<T> end = Normaliser::finish(read_state<Normaliser, T>(s.state, kBlock, i));
      int64_t at = (b * p_.queries + s.q0 + i) * p_.heads + s.head;
      const T* row = (s.has_total ? s.total : s.out) + i * value_ld_;
      if (p_.out_is_bf16) {
        auto* out = static_cast<BFloat16*>(p_.out) + at * p_.value_width;
        for (int64_t c = 0; c < p_.value_width; ++c) out[c] = BFloat16(static_cast<float>(row[c] * end.factor));
      } else {
        T* out = static_cast<T*>(p_.out) + at * p_.value_width;
        for (int64_t c = 0; c < p_.value_width; ++c) out[c] = row[c] * end.factor;
      }
      if (!Normaliser::kHasStatistic) continue;
      if (p_.is_statistic_f64) static_cast<double*>(p_.statistic)[at] = end.statistic;
      else static_cast<T*>(p_.statistic)[at] = static_cast<T>(end.statistic);
    }
  }

  const Problem& p_;
  const Mask& mask_;
  const Score& score_;
  Dropout dropout_;
  Ranges query_panels_, query_groups_, key_groups_;
  Blocks query_blocks_, key_blocks_;
  Tiles<T, Mask, AttentionPlans::Kind::query_tiles> tiles_;
  int64_t key_steps_, value_ld_;
  T product_scale_;  // in the packed queries, or with pairs applied to scores
  bool is_long_;     // many key blocks
};

}  // namespace
}  // namespace weft::ops::core
