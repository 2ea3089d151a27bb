// Backward of the blockwise softmax core. An item is (row, key/value head, one or two blocks of keys); it walks the queries of
// the group, packed once for all its key blocks:
//   S = Q K^T, dP = dO V^T (lanes are keys), W = weight(S), dS = dscore(W, dP, delta) * slope
//   dV += W^T dO, dK += dS^T Q, dQ += dS K (lanes are channels; W and dS are read in either direction, never transposed)
// dK, dV stay in scratch for kTilesOfSum tiles. dQ is shared by the items of a head: block after block is added in the order
// of the key blocks, each waiting for its predecessor, so every thread count gives the same bits.
#pragma once

#include "weft/ops/attention/backward_scratch.h"
#include "weft/ops/attention/forward.h"
#include "weft/ops/attention/query_sums.h"
#include "weft/ops/attention/turns.h"

namespace weft::ops::core {
namespace {

// A as in Forward; with pairs weights and score gradients are rounded to bf16 just before their products.
template <class A, class Mask, class Score, class Normaliser>
class Backward {
 public:
  using T = typename Arithmetic<A>::Number;
  using Packed = typename Arithmetic<A>::Packed;
  static constexpr bool kIsPaired = Arithmetic<A>::kDepth == 2;
  static constexpr int L = kLanes<T>, P = kPanel<T>;
  static constexpr bool kBiased = takes_bias<Score>();
  using V = Lanes<T>;

  Backward(const Problem& problem, const Mask& mask, const Score& score)
      : p_(problem),
        mask_(mask),
        score_(score),
        dropout_(problem),
        key_panels_(ranges_of(problem, problem.key_tokens, problem.keys, P)),
        query_groups_(ranges_of(problem, problem.query_tokens, problem.queries, kGroup)),
        key_groups_(ranges_of_keys(problem, query_groups_)),
        key_blocks_(key_groups_),
        query_blocks_(query_groups_),
        tiles_(problem, mask, {key_panels_, key_groups_, key_blocks_, problem.keys},
               {query_groups_, query_groups_, query_blocks_, problem.queries}),
        sums_(problem, query_blocks_.count(), key_blocks_.count()),
        key_ld_(round_up(problem.key_width, L)),
        value_ld_(round_up(problem.value_width, L)),
        product_scale_(static_cast<T>(problem.scale * score_unit<Score, Normaliser>())) {}

  void run() {
    Turns turns(p_.batch, p_.heads, query_blocks_.count());
    int64_t groups = p_.batch * p_.kv_heads, blocks = key_blocks_.count();
    int64_t packed_bytes = kBlockSteps * (2 * key_ld_ + value_ld_) * static_cast<int64_t>(sizeof(Packed));
    int64_t strip_bytes = packed_bytes + kBlock * (key_ld_ + value_ld_) * static_cast<int64_t>(sizeof(T));
    int64_t span = choose_span(strip_bytes, groups * blocks, kMaxSpan);
    const int64_t items = groups * ((blocks + span - 1) / span), threads = num_threads();
    auto item_at = [&](int64_t i) {
      const int64_t group = i % groups, first = i / groups * span;
      return i < items ? Item{group / p_.kv_heads, group % p_.kv_heads, first, smaller(blocks, first + span)} : Item{};
    };
    run_items(p_, items, [&](int64_t i) {
      try {
        item(item_at(i), item_at(i + threads), turns);
      } catch (...) {
        turns.abandon();
        throw;
      }
    });
    const int64_t each = query_blocks_.count();
    constexpr int64_t kGrain = 32;
    parallel_for(p_.batch * p_.heads * each, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) sums_.finish(i / (p_.heads * each), i / each % p_.heads, i % each);
    });
  }

 private:
  static constexpr int kMaxSpan = 2;
  static constexpr int kBlockSteps = kBlock / Arithmetic<A>::kDepth, kScoreLd = kIsPaired ? P : kBlock;

  using Strip = BackwardStrip<A, kBiased>;
  using Scratch = BackwardScratch<A, kBiased, kMaxSpan>;
  // With pairs a panel's numbers are gone when their pairs are there, so all panels have one place.
  [[gnu::always_inline]] static int64_t place_of(int panel) { return kIsPaired ? 0 : panel * P; }

  // `next`: the item that this thread is likely to take after this one.
  [[gnu::noinline]] void item(const Item& of, const Item& next, Turns& turns) {
    const int64_t b = of.b, row = p_.first_row + b, span = of.last - of.first;
    Scratch s(p_, key_ld_, value_ld_, span, scratch(Scratch(p_, key_ld_, value_ld_, span, nullptr).bytes));
    for (int64_t i = 0; i < span; ++i) start_strip(s.strips[i], b, of.kv_head, of.first + i);
    fetch_ahead(s, of, next);
    for (int64_t h = 0; h < p_.heads_per_group(); ++h) {
      const int64_t head = of.kv_head * p_.heads_per_group() + h;
      if constexpr (kBiased)
        for (int64_t i = 0; i < span; ++i) start_bias(s.strips[i], b, head);
      auto is_empty = [&](const TokenRange& queries) __attribute__((always_inline)) {
        for (int64_t i = 0; i < span; ++i)
          if (mask_.cover(row, head, queries, key_blocks_.row(b)[s.strips[i].block]) != Cover::empty) return false;
        return true;
      };
      int64_t next_block = query_blocks_.first_seen(b, 0, is_empty);
      while (next_block < query_blocks_.count()) {
        const int64_t block = next_block, q0 = block * kBlock;
        next_block = query_blocks_.first_seen(b, block + 1, is_empty);
        Place at{b, row, head, block, q0, next_block, static_cast<int>(smaller(kBlock, p_.queries - q0)), false};
        for (int64_t i = 0; i < span; ++i) tile(s, s.strips[i], at, turns);
      }
      if constexpr (kBiased)
        for (int64_t i = 0; i < span; ++i) give_bias(s.strips[i], b, head);
    }
    for (int64_t i = 0; i < span; ++i) give_sums(s.strips[i], b, of.kv_head);
  }

  void fetch_ahead(Scratch& s, const Item& of, const Item& next) {
    const int64_t bytes = sizeof(T), dk_bytes = p_.key_width * bytes, dv_bytes = p_.value_width * bytes;
    for (int i = 0; i < of.last - of.first; ++i) {
      const Strip& strip = s.strips[i];
      const int64_t row = (of.b * p_.keys + strip.k0) * p_.kv_heads + of.kv_head;
      s.fetcher.want(Scratch::kKeyGradients + i, static_cast<const char*>(p_.dk) + row * dk_bytes,
                     p_.kv_heads * dk_bytes, dk_bytes, strip.count, true);
      s.fetcher.want(Scratch::kValueGradients + i, static_cast<const char*>(p_.dv) + row * dv_bytes,
                     p_.kv_heads * dv_bytes, dv_bytes, strip.count, true);
    }
    const int64_t first = next.first * kBlock, end = smaller(next.last * kBlock, p_.keys);
    s.fetcher.want(Scratch::kNextKeys, p_.k.at(next.b, next.kv_head), first, end, p_.key_width);
    s.fetcher.want(Scratch::kNextValues, p_.v.at(next.b, next.kv_head), first, end, p_.value_width);
  }

  void start_strip(Strip& strip, int64_t b, int64_t kv_head, int64_t block) {
    strip.block = block, strip.k0 = block * kBlock;
    strip.count = static_cast<int>(smaller(kBlock, p_.keys - strip.k0));
    Operand k = p_.k.at(b, kv_head);
    pack_lane_operand<A>(k, strip.k0, strip.count, p_.key_width, T(1), strip.key_lanes);
    pack_lane_operand<A>(p_.v.at(b, kv_head), strip.k0, strip.count, p_.value_width, T(1), strip.value_lanes);
    pack_depth_operand<A>(k, strip.k0, strip.count, p_.key_width, strip.keys, key_ld_);
    strip.tokens->gather(p_.key_tokens, b, strip.k0, strip.count);
    strip.has_given = false;
    clear_sums(strip);
  }

  void start_bias(Strip& strip, int64_t b, int64_t head) {
    strip.bias->gather(p_.key_bias, b, head, strip.k0, strip.count);
    std::fill_n(strip.bias_sums, kBlock, 0.0);
    for (int i = 0; i < kBlock; ++i) strip.is_key[i] = i < strip.count ? T(1) : T(0);
  }
  void give_bias(const Strip& strip, int64_t b, int64_t head) {
    if (!p_.key_bias.gradient) return;
    for (int i = 0; i < strip.count; ++i)
      p_.key_bias.gradient[p_.key_bias.index(b, strip.k0 + i, head)] += strip.bias_sums[i];
  }

  void clear_sums(Strip& strip) {
    std::fill_n(strip.dk, kBlock * key_ld_, T(0));
    std::fill_n(strip.dv, kBlock * value_ld_, T(0));
    strip.tiles = 0;
  }

  [[gnu::noinline]] void give_sums(Strip& strip, int64_t b, int64_t kv_head) {
    int64_t row = (b * p_.keys + strip.k0) * p_.kv_heads + kv_head;
    const bool are_new = !p_.has_state && !strip.has_given;
    strip.has_given = true;
    put_rows(static_cast<T*>(p_.dk) + row * p_.key_width, p_.kv_heads * p_.key_width, strip.dk, key_ld_, p_.key_width,
             strip.count,
             T(kIsPaired ? p_.scale : 1 / score_unit<Score, Normaliser>()),  // packed queries carry scale * unit
             are_new);
    put_rows(static_cast<T*>(p_.dv) + row * p_.value_width, p_.kv_heads * p_.value_width, strip.dv, value_ld_,
             p_.value_width, strip.count, T(1), are_new);
    clear_sums(strip);
  }

  [[gnu::noinline]] void tile(Scratch& s, Strip& strip, Place& at, Turns& turns) {
    auto cover_of = [&](const TokenRange& keys) __attribute__((always_inline)) {
      return mask_.cover(at.row, at.head, query_blocks_.row(at.b)[at.block], keys);
    };
    Cover cover = cover_of(key_blocks_.row(at.b)[strip.block]);
    if (cover == Cover::empty) return;
    TilePlan<T> made;
    const TilePlan<T>& plan = tiles_.plan(made, cover, {at.b, at.row, at.head, strip.block, at.block});
    bool has_pairs = plan.begin < plan.end;
    if (has_pairs) {
      if (!at.is_packed) load_queries(s, at);
      at.is_packed = true;
      if constexpr (kBiased) std::fill_n(s.bias_sums, kBlock, 0.0);
      const int64_t dq_bytes = p_.key_width * static_cast<int64_t>(sizeof(T));
      s.fetcher.want(Scratch::kQueryGradients, sums_.likely(at.b, at.head, at.block), p_.heads * dq_bytes, dq_bytes,
                     at.queries, true);
      for (int panel = 0; panel < plan.panels; ++panel) panel_scores(s, strip, plan, panel, at);
      key_gradients(s, strip, plan, at);
      if (++strip.tiles == kTilesOfSum) give_sums(strip, at.b, at.head / p_.heads_per_group());
    }
    const int64_t before = key_blocks_.last_seen(
        at.b, strip.block, [&](const TokenRange& keys) __attribute__((always_inline)) {
          return cover_of(keys) == Cover::empty;
        });
    turns.wait(at.b, at.head, at.block, before + 1);
    if (has_pairs) query_gradients(s, strip, plan, at);
    if constexpr (kBiased) {
      if (has_pairs && p_.query_bias.gradient)
        for (int i = 0; i < at.queries; ++i)
          p_.query_bias.gradient[p_.query_bias.index(at.b, at.q0 + i, at.head)] += s.bias_sums[i];
    }
    turns.done(at.b, at.head, at.block, strip.block);
  }

  void load_queries(Scratch& s, const Place& at) {
    int64_t padded = round_up(at.queries, kGroup);
    const Operand q = p_.q.at(at.b, at.head), dout = p_.dout.at(at.b, at.head);
    pack_row_operand<A>(q, at.q0, at.queries, p_.key_width, product_scale_, s.queries, Scratch::row_ld(key_ld_),
                        padded);
    pack_row_operand<A>(dout, at.q0, at.queries, p_.value_width, T(1), s.douts, Scratch::row_ld(value_ld_), padded);
    if constexpr (kIsPaired) {
      pack_depth_operand<A>(q, at.q0, at.queries, p_.key_width, s.query_depth, key_ld_);
      pack_depth_operand<A>(dout, at.q0, at.queries, p_.value_width, s.dout_depth, value_ld_);
    }
    const int64_t next = at.next * kBlock, end = smaller(next + kBlock, p_.queries);
    s.fetcher.want(Scratch::kNextQueries, q, next, end, p_.key_width);
    s.fetcher.want(Scratch::kNextDouts, dout, next, end, p_.value_width);
    s.query_tokens->gather(p_.query_tokens, at.b, at.q0, at.queries);
    if constexpr (kBiased) s.query_bias->gather(p_.query_bias, at.b, at.head, at.q0, at.queries);
    for (int64_t i = 0; i < padded; ++i) {
      T statistic = 0, delta = 0;  // no product reads what padded rows give
      if (i < at.queries && Normaliser::kHasStatistic) {
        int64_t from = (at.b * p_.queries + at.q0 + i) * p_.heads + at.head;
        statistic = static_cast<const T*>(p_.statistic)[from];
        delta = static_cast<const T*>(p_.delta)[from];
      }
      s.statistic[i] = Normaliser::backward_shift(statistic);
      s.delta[i] = delta;
    }
  }

  // Weights (with dropout) and d scores of one panel of keys; rows of the tile that it does not need become 0.
  [[gnu::noinline]] void panel_scores(Scratch& s, Strip& strip, const TilePlan<T>& plan, int panel, const Place& at) {
    int first = plan.panel_begin[panel], last = plan.panel_end[panel];
    bool is_plain = is_identity_score<Score>() && p_.dropout == 0;
    for (int g = first; g < last; ++g) {
      bool is_full = plan.is_full || plan.cover[panel][g] == Cover::full;
      s.fetcher.step();
      product(s.queries, Scratch::row_ld(key_ld_), strip.key_lanes, steps_of<A>(p_.key_width), panel, g, product_scale_,
              s.weights);
      product(s.douts, Scratch::row_ld(value_ld_), strip.value_lanes, steps_of<A>(p_.value_width), panel, g, T(1),
              s.dscores);
      if (is_plain && is_full) plain_group(s, panel, g * kGroup);
      else masked_group(s, strip, panel, g * kGroup, at, is_full);
      if constexpr (kIsPaired)
        pair_group<Packed>({s.weights, s.dscores, s.weight_depth, s.dscore_depth, s.dscore_rows}, panel, g * kGroup,
                           at.queries, strip.count);
    }
    for (int64_t i = plan.begin * kGroup; i < first * kGroup; ++i) clear_row(s, panel, i);
    for (int64_t i = larger(last, plan.begin) * kGroup; i < plan.end * kGroup; ++i) clear_row(s, panel, i);
  }

  [[gnu::always_inline]] void clear_row(Scratch& s, int panel, int64_t i) {
    for (int n = 0; n < 2; ++n) {
      const int64_t at = i / Arithmetic<A>::kDepth * kBlock + panel * P + n * L;
      store(s.weight_depth + at, Lanes<Packed>{}), store(s.dscore_depth + at, Lanes<Packed>{});
    }
    if constexpr (kIsPaired) store(s.dscore_rows + i * kBlockSteps + panel * L, Lanes<Packed>{});
  }

  // `scale` is for pairs alone: other operands carry it.
  [[gnu::always_inline]] void product(const Packed* rows, int64_t ld, const Packed* lanes, int64_t depth, int panel,
                                      int group, T scale, T* out) {
    out += place_of(panel);
    [[maybe_unused]] const V factor = broadcast<V>(scale);
    for (int r0 = group * kGroup; r0 < (group + 1) * kGroup; r0 += kRowStep) {
      V acc[kRowStep][2] = {};
      expect_depth(depth);
      multiply<2, false>(rows + r0 * ld, ld, lanes + panel * P * depth, P, depth, acc);
#pragma GCC unroll 16
      for (int r = 0; r < kRowStep; ++r) {
#pragma GCC unroll 2
        for (int n = 0; n < 2; ++n)
          store(out + (r0 + r) * kScoreLd + n * L, kIsPaired ? acc[r][n] * factor : acc[r][n]);
      }
    }
  }

  [[gnu::always_inline]] void plain_group(Scratch& s, int panel, int64_t row0) {
    for (int64_t i = row0; i < row0 + kGroup; ++i) {
      V shift = broadcast<V>(s.statistic[i]), delta = broadcast<V>(s.delta[i]);
      for (int n = 0; n < 2; ++n) {
        const int64_t place = i * kScoreLd + place_of(panel) + n * L;
        T *w_at = s.weights + place, *ds_at = s.dscores + place;
        V x = load(w_at), w = Normaliser::weight(x, shift);
        store(ds_at, Normaliser::dscore(x, w, load(ds_at), delta));
        store(w_at, w);
      }
    }
  }

  [[gnu::noinline]] void masked_group(Scratch& s, Strip& strip, int panel, int64_t row0, const Place& at,
                                      bool is_full) {
    const auto& score = score_of_head<Normaliser>(score_, at.head);
    Held<Mask> mask = mask_;
    const V masked = broadcast<V>(T(Normaliser::kMasked));
    const Token<LaneInts<T>> k[2] = {lanes_at<T>(*strip.tokens, panel * P), lanes_at<T>(*strip.tokens, panel * P + L)};
    [[maybe_unused]] V bias_sums[2] = {};
    for (int64_t i = row0; i < row0 + kGroup; ++i) {
      V shift = broadcast<V>(s.statistic[i]), delta = broadcast<V>(s.delta[i]);
      V bias{};
      [[maybe_unused]] V bias_sum{};
      const Token<LaneInts<T>> q = broadcast_at<T>(*s.query_tokens, i);
      for (int n = 0; n < 2; ++n) {
        const int64_t place = i * kScoreLd + place_of(panel) + n * L;
        T *w_at = s.weights + place, *ds_at = s.dscores + place;
        if constexpr (kBiased) bias = pair_bias(s.query_bias->broadcast_of(i), strip.bias->lanes(panel * P + n * L));
        const V raw = load(w_at);
        V x = modified<Score, Normaliser, T>(score, raw, bias, at.row, at.head, q, k[n]), dw = load(ds_at);
        LaneInts<T> keep = LaneInts<T>{} - 1;
        if (!is_full) keep = keep_lanes<T>(mask, at.row, at.head, q, k[n]), x = select(keep, x, masked);
        V w = Normaliser::weight(x, shift);
        V drop = broadcast<V>(T(1));
        if (p_.dropout > 0) drop = dropout_.template factors<T>(q.position, k[n].position, at.head, at.row);
        V ds = Normaliser::dscore(x, w, dw * drop, delta);
        if constexpr (kBiased) {
          ds = select(keep, ds * score.bias_slope(raw, bias, at.row, at.head, q, k[n]), V{});
          ds = load(strip.is_key + panel * P + n * L) > V{} ? ds : V{};
          if (i < at.queries) bias_sums[n] += ds, bias_sum += ds;
        }
        if constexpr (!is_identity_score<Score>()) ds *= score_slope<T>(score, raw, at.row, at.head, q, k[n]);
        store(ds_at, is_full ? ds : select(keep, ds, V{}));
        store(w_at, w * drop);
      }
      if constexpr (kBiased) s.bias_sums[i] += static_cast<double>(sum_of(bias_sum));
    }
    if constexpr (kBiased)
      for (int n = 0; n < 2; ++n)
        for (int c = 0; c < L; ++c) strip.bias_sums[panel * P + n * L + c] += static_cast<double>(bias_sums[n][c]);
  }

  // dV += W^T dO and dK += dS^T Q, by rows of keys.
  [[gnu::noinline]] void key_gradients(Scratch& s, Strip& strip, const TilePlan<T>& plan, const Place& at) {
    for (int r0 = 0; r0 < strip.count; r0 += kRowStep) {
      const int first = plan.lane_begin[r0 / kGroup], last = plan.lane_end[r0 / kGroup];
      if (first >= last) continue;
      int64_t i0 = first * kGroup, depth = steps_of<A>(smaller(last * kGroup, at.queries) - i0);
      i0 = steps_of<A>(i0);
      row_product<true, false, false>(s.weight_depth + i0 * kBlock + r0, kBlock, s.dout_depth + i0 * value_ld_,
                                      value_ld_, depth, strip.dv + r0 * value_ld_, value_ld_, value_ld_, nullptr);
      row_product<true, false, false>(s.dscore_depth + i0 * kBlock + r0, kBlock, s.query_depth + i0 * key_ld_, key_ld_,
                                      depth, strip.dk + r0 * key_ld_, key_ld_, key_ld_, nullptr);
    }
  }

  // dQ += scale * dS K.
  [[gnu::noinline]] void query_gradients(Scratch& s, const Strip& strip, const TilePlan<T>& plan, const Place& at) {
    const auto dq = sums_.take(at.b, at.head, at.block);
    int64_t stride = p_.heads * p_.key_width;
    for (int g = 0; g < plan.groups; ++g) {
      const int first = plan.row_begin[g], last = plan.row_end[g];
      const int64_t count = smaller(kGroup, at.queries - g * kGroup);
      T* to = dq.to + g * kGroup * stride;
      if (first >= last) {
        for (int64_t i = 0; dq.are_new && i < count; ++i) std::fill_n(to + i * stride, p_.key_width, T(0));
        continue;
      }
      int64_t j0 = first * kGroup, depth = steps_of<A>(smaller(last * kGroup, strip.count) - j0);
      j0 = steps_of<A>(j0);
      for (int r0 = 0; r0 < kGroup; r0 += kRowStep)
        row_product<false, true, false>(s.dscore_rows + (g * kGroup + r0) * kBlockSteps + j0, kBlockSteps,
                                        strip.keys + j0 * key_ld_, key_ld_, depth, s.product + r0 * key_ld_, key_ld_,
                                        key_ld_, nullptr);
      put_rows(to, stride, s.product, key_ld_, p_.key_width, count, T(p_.scale), dq.are_new);
    }
  }

  const Problem& p_;
  const Mask& mask_;
  const Score& score_;
  Dropout dropout_;
  Ranges key_panels_, query_groups_, key_groups_;
  Blocks key_blocks_, query_blocks_;
  Tiles<T, Mask, AttentionPlans::Kind::key_tiles> tiles_;
  QuerySums<T> sums_;
  int64_t key_ld_, value_ld_;
  T product_scale_;  // in the packed queries, or with pairs applied to scores
};

}  // namespace
}  // namespace weft::ops::core
