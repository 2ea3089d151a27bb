// Which parts of a tile of pairs are worked on: the rows that each panel needs, and the lanes that each group of rows does.
// Lanes are tokens of one side (forward: queries, backward: keys), rows tokens of the other.
#pragma once

#include "weft/core/parallel.h"
#include "weft/ops/attention/bias.h"
#include "weft/ops/attention/ranges.h"

namespace weft::ops::core {
namespace {

// Blocks [first, last) of a key/value head: what a thread takes at a time.
struct Item {
  int64_t b, kv_head, first, last;
};

// One key block as the strips of an item of the forward see it; `next` is the block after it that they see.
struct Keys {
  int64_t b, row, first, count, block, next;
  bool is_packed;
};

// Calls f(i) for i in [0, n); on the calling thread if the whole problem is too small to be worth waking others.
template <class F>
void run_items(const Problem& p, int64_t n, F&& f) {
  constexpr int64_t kSmall = 1 << 18;  // multiplications: some tens of microseconds
  if (p.batch * p.heads * p.queries * p.keys * (p.key_width + p.value_width) > kSmall) return parallel_items(n, f);
  for (int64_t i = 0; i < n; ++i) f(i);
}

// How many blocks an item takes together, so that what they read is packed once. As many as possible, while every thread has work and they
// fit into the second-level cache. Results do not depend on it.
inline int64_t choose_span(int64_t block_bytes, int64_t blocks, int64_t most) {
  constexpr int64_t kCacheBytes = 224 << 10;
  int64_t span = smaller(smaller(most, kCacheBytes / block_bytes), blocks / (8 * int64_t{num_threads()}));
  return larger(span, 1);
}

// Scores are computed by cells of a panel of lanes and a group of rows. What is summed over the tile is read by groups on both sides: at an
// edge of the mask those need less.
template <class T>
struct TilePlan {
  bool is_full;                                        // no mask test anywhere
  int begin, end;                                      // groups of rows that any panel needs
  int panels, groups;                                  // that hold tokens
  int panel_begin[kPanels<T>], panel_end[kPanels<T>];  // groups of rows per panel; begin == end: none
  Cover cover[kPanels<T>][kGroups];                    // inside those: full, or test each pair
  int lane_begin[kGroups], lane_end[kGroups];          // groups of rows per group of lanes
  int row_begin[kGroups], row_end[kGroups];            // groups of lanes per group of rows
};

// cover(lanes, group) is asked only if the tile as a whole is partial, of panels and of groups of lanes.
template <class T, class F>
[[gnu::always_inline]] inline void make_plan(TilePlan<T>& plan, int64_t lane_tokens, int64_t row_tokens, bool is_full,
                                             const TokenRange* panels, const TokenRange* lane_groups, F&& cover) {
  plan.is_full = is_full;
  plan.panels = static_cast<int>((lane_tokens + kPanel<T> - 1) / kPanel<T>);
  plan.groups = static_cast<int>((row_tokens + kGroup - 1) / kGroup);
  const int num_lane_groups = static_cast<int>((lane_tokens + kGroup - 1) / kGroup);
  plan.begin = is_full ? 0 : plan.groups;
  plan.end = is_full ? plan.groups : 0;
  for (int p = 0; p < plan.panels; ++p) {
    int first = is_full ? 0 : plan.groups, last = is_full ? plan.groups : 0;
    if (!is_full)
      for (int g = 0; g < plan.groups; ++g) {
        plan.cover[p][g] = cover(panels[p], g);
        if (plan.cover[p][g] == Cover::empty) continue;
        if (first > g) first = g;
        last = g + 1;
      }
    if (first > last) first = last;
    plan.panel_begin[p] = first, plan.panel_end[p] = last;
    if (first < last) {
      if (first < plan.begin) plan.begin = first;
      if (last > plan.end) plan.end = last;
    }
  }
  for (int g = 0; g < plan.groups; ++g)
    plan.row_begin[g] = is_full ? 0 : num_lane_groups, plan.row_end[g] = is_full ? num_lane_groups : 0;
  for (int h = 0; h < num_lane_groups; ++h) {
    int first = plan.begin, last = plan.end;
    if (!is_full) {
      const int p0 = h * kGroup / kPanel<T>,
                p1 = static_cast<int>(smaller((h + 1) * kGroup - 1, lane_tokens - 1)) / kPanel<T>;
      first = plan.groups, last = 0;
      for (int p = p0; p <= p1; ++p)
        if (plan.panel_begin[p] < plan.panel_end[p])
          first = plan.panel_begin[p] < first ? plan.panel_begin[p] : first,
          last = plan.panel_end[p] > last ? plan.panel_end[p] : last;
      while (first < last && cover(lane_groups[h], first) == Cover::empty) ++first;
      while (first < last && cover(lane_groups[h], last - 1) == Cover::empty) --last;
      if (first > last) first = last;
      for (int g = first; g < last; ++g) {
        if (h < plan.row_begin[g]) plan.row_begin[g] = h;
        plan.row_end[g] = h + 1;
      }
    }
    plan.lane_begin[h] = first, plan.lane_end[h] = last;
  }
}

// Positions and documents of up to kBlock tokens, gathered for lane loads.
struct BlockTokens {
  int32_t position[kBlock], document[kBlock];

  void gather(const TokenView& tokens, int64_t b, int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      Token<int32_t> t = tokens.at(b, first + i);
      position[i] = t.position, document[i] = t.document;
    }
    for (int64_t i = count; i < kBlock; ++i) position[i] = document[i] = 0;
  }
};

// Biases of up to kBlock tokens for one head.
template <class T>
struct BlockBias {
  T high[kBlock], low[kBlock];

  void gather(const BiasView& biases, int64_t b, int64_t head, int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      Bias<T> bias = split_bias<T>(biases.at(b, first + i, head));
      high[i] = bias.high, low[i] = bias.low;
    }
    for (int64_t i = count; i < kBlock; ++i) high[i] = low[i] = 0;
  }
  [[gnu::always_inline]] Bias<Lanes<T>> lanes(int64_t i) const { return {load(high + i), load(low + i)}; }
  [[gnu::always_inline]] Bias<Lanes<T>> broadcast_of(int64_t i) const {
    return {broadcast<Lanes<T>>(high[i]), broadcast<Lanes<T>>(low[i])};
  }
};

// Lanes of tokens i, i + 1, ...; or token i in every lane.
template <class T>
[[gnu::always_inline]] inline Token<LaneInts<T>> lanes_at(const BlockTokens& tokens, int64_t i) {
  Token<LaneInts<T>> t;
  __builtin_memcpy(&t.position, tokens.position + i, sizeof t.position);
  __builtin_memcpy(&t.document, tokens.document + i, sizeof t.document);
  return t;
}
template <class T>
[[gnu::always_inline]] inline Token<LaneInts<T>> broadcast_at(const BlockTokens& tokens, int64_t i) {
  return {LaneInts<T>{} + tokens.position[i], LaneInts<T>{} + tokens.document[i]};
}

// Factor of each weight under dropout: 0 or 1 / (1 - p), by the first word of Philox4x32-10 at (query position, key position, head, global
// row). So what is dropped does not depend on where a token lies in memory.
struct Dropout {
  uint32_t threshold;  // drops a pair if its 24-bit uniform number is below
  uint64_t key;
  int64_t first_head;
  double keep_factor;

  explicit Dropout(const Problem& p)
      : threshold(static_cast<uint32_t>(std::ceil(p.dropout * 0x1p24))),
        key(p.dropout_key),
        first_head(p.first_head),
        keep_factor(1 / (1 - p.dropout)) {}

  template <class T>
  [[gnu::noinline]] Lanes<T> factors(LaneInts<T> query, LaneInts<T> keys, int64_t head, int64_t row) const {
    constexpr int L = kLanes<T>;
    uint32_t c0[L], c1[L], c2[L], c3[L];
    for (int i = 0; i < L; ++i) {
      c0[i] = static_cast<uint32_t>(query[i]), c1[i] = static_cast<uint32_t>(keys[i]);
      c2[i] = static_cast<uint32_t>(first_head + head), c3[i] = static_cast<uint32_t>(row);
    }
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
      for (int i = 0; i < L; ++i) {
        uint64_t p0 = uint64_t{0xd2511f53u} * c0[i], p1 = uint64_t{0xcd9e8d57u} * c2[i];
        c0[i] = static_cast<uint32_t>(p1 >> 32) ^ c1[i] ^ k0;
        c2[i] = static_cast<uint32_t>(p0 >> 32) ^ c3[i] ^ k1;
        c1[i] = static_cast<uint32_t>(p1), c3[i] = static_cast<uint32_t>(p0);
      }
      k0 += 0x9e3779b9u, k1 += 0xbb67ae85u;
    }
    T out[L];
    for (int i = 0; i < L; ++i) out[i] = (c0[i] >> 8) < threshold ? T(0) : static_cast<T>(keep_factor);
    return load(out);
  }
};

}  // namespace
}  // namespace weft::ops::core
