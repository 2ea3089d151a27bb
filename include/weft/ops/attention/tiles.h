// Plans of the tiles of a pass. Those of partial tiles are kept where tokens have AttentionPlans: every head and layer reads the same ones.
#pragma once

#include <cstring>
#include <type_traits>

#include "weft/ops/attention/plan.h"
#include "weft/ops/attention/plans.h"

namespace weft::ops::core {
namespace {

// Ranges of the pieces of `step` tokens of one side.
inline Ranges ranges_of(const Problem& p, const TokenView& tokens, int64_t n, int64_t step) {
  if (!p.plans) return Ranges(tokens, p.batch, n, step);
  const AttentionPlans::Key key{.step = step};
  if (const auto kept = p.plans->find(key); kept.data)
    return Ranges(static_cast<const TokenRange*>(kept.data), p.batch, (n + step - 1) / step);
  Ranges made(tokens, p.batch, n, step);
  const size_t bytes = static_cast<size_t>(p.batch * made.count()) * sizeof(TokenRange);
  if (bytes > 0) std::memcpy(p.plans->keep(key, static_cast<int64_t>(bytes)), made.row(0), bytes);
  return made;
}

// Ranges of the keys' groups: those of the queries where both sides are the same tokens.
inline Ranges ranges_of_keys(const Problem& p, const Ranges& of_queries) {
  const TokenView &q = p.query_tokens, &k = p.key_tokens;
  const bool are_same = p.queries == p.keys && q.position == k.position && q.document == k.document &&
                        q.stride == k.stride && q.batch_stride == k.batch_stride &&
                        q.document_stride == k.document_stride && q.document_batch_stride == k.document_batch_stride;
  return are_same ? of_queries : Ranges(k, p.batch, p.keys, kGroup);
}

// One side of the tiles.
struct TileSide {
  const Ranges& panels;  // of the side whose tokens are lanes
  const Ranges& groups;
  const Blocks& blocks;
  int64_t tokens;
  int64_t count(int64_t block) const { return smaller(kBlock, tokens - block * kBlock); }
};

// A block of lanes and a block of rows; `row` of the batch as masks see it.
struct Tile {
  int64_t b, row, head, lanes, rows;
};

// kKind: query_tiles if lanes are queries, key_tiles if they are keys.
template <class T, class Mask, AttentionPlans::Kind kKind>
class Tiles {
 public:
  // Kept are no more than some plans per block: where more tiles are partial, the tokens stand in no order, and all plans are made as
  // they are needed.
  Tiles(const Problem& p, const Mask& mask, TileSide lanes, TileSide rows) : mask_(mask), lanes_(lanes), rows_(rows) {
    if constexpr (std::is_same_v<Mask, StandardMask>) {  // it does not look at rows and heads
      if (!p.plans) return;
      const AttentionPlans::Key key{kKind, kPanel<T>, mask};
      if (!p.plans->find(key).is_made) make_all(*p.plans, key, p.batch);
      starts_ = static_cast<const int32_t*>(p.plans->find(key).data);
    }
  }

  // The plan of a tile that is not empty; `made` is its place if it is not kept.
  [[gnu::always_inline]] const TilePlan<T>& plan(TilePlan<T>& made, Cover cover, const Tile& tile) const {
    if (starts_ && cover == Cover::partial) {
      const int32_t *of = starts_ + 2 * (tile.b * lanes_.blocks.count() + tile.lanes), *found = starts_ + of[1];
      while (found[0] != tile.rows) found += 2;
      const auto* kept = reinterpret_cast<const TilePlan<T>*>(starts_ + found[1]);
      return *kept;
    }
    make(made, cover, tile);
    return made;
  }

 private:
  static constexpr int64_t kMostPerBlock = 16;

  [[gnu::always_inline]] Cover cover_of(const Tile& tile, const TokenRange& lanes, const TokenRange& rows) const {
    if constexpr (kKind == AttentionPlans::Kind::query_tiles) return mask_.cover(tile.row, tile.head, lanes, rows);
    else return mask_.cover(tile.row, tile.head, rows, lanes);
  }

  [[gnu::always_inline]] void make(TilePlan<T>& plan, Cover cover, const Tile& tile) const {
    const TokenRange* groups = rows_.groups.row(tile.b) + tile.rows * kGroups;
    make_plan(plan, lanes_.count(tile.lanes), rows_.count(tile.rows), cover == Cover::full,
              lanes_.panels.row(tile.b) + tile.lanes * kPanels<T>, lanes_.groups.row(tile.b) + tile.lanes * kGroups,
              [&](const TokenRange& range, int group) { return cover_of(tile, range, groups[group]); });
  }

  // Calls f(block of rows) for the partial tiles of a block of lanes, of those of all rows of the batch.
  template <class F>
  void for_partial(int64_t block, F&& f) const {
    const int64_t b = block / lanes_.blocks.count(), lanes = block % lanes_.blocks.count();
    auto of_tile = [&](const TokenRange& rows) __attribute__((always_inline)) {
      return cover_of({}, lanes_.blocks.row(b)[lanes], rows);
    };
    auto is_empty = [&](const TokenRange& rows) __attribute__((always_inline)) {
      return of_tile(rows) == Cover::empty;
    };
    for (int64_t r = rows_.blocks.first_seen(b, 0, is_empty); r < rows_.blocks.count();
         r = rows_.blocks.first_seen(b, r + 1, is_empty))
      if (of_tile(rows_.blocks.row(b)[r]) == Cover::partial) f(r);
  }

  // Per block of lanes how many plans, and where their pairs (block of rows, where the plan is) begin; then those pairs, then the plans.
  void make_all(AttentionPlans& plans, const AttentionPlans::Key& key, int64_t batch) const {
    const int64_t blocks = batch * lanes_.blocks.count();
    int64_t count = 0;
    for (int64_t i = 0; i < blocks && count <= kMostPerBlock * blocks; ++i) for_partial(i, [&](int64_t) { ++count; });
    const bool are_few = count <= kMostPerBlock * blocks;
    const int64_t numbers = 2 * (blocks + count), numbers_of_plan = sizeof(TilePlan<T>) / sizeof(int32_t);
    auto* starts = static_cast<int32_t*>(
        plans.keep(key, are_few ? (numbers + count * numbers_of_plan) * static_cast<int64_t>(sizeof(int32_t)) : 0));
    if (!starts) return;
    int64_t pair = 2 * blocks, at = numbers;
    for (int64_t i = 0; i < blocks; ++i) {
      starts[2 * i] = 0, starts[2 * i + 1] = static_cast<int32_t>(pair);
      for_partial(i, [&](int64_t r) {
        TilePlan<T> plan{};
        const int64_t per_row = lanes_.blocks.count();
        make(plan, Cover::partial, {.b = i / per_row, .row = 0, .head = 0, .lanes = i % per_row, .rows = r});
        std::memcpy(starts + at, &plan, sizeof plan);
        starts[pair] = static_cast<int32_t>(r), starts[pair + 1] = static_cast<int32_t>(at);
        pair += 2, at += numbers_of_plan, ++starts[2 * i];
      });
    }
  }

  const Mask& mask_;
  TileSide lanes_, rows_;
  const int32_t* starts_ = nullptr;  // of the kept plans
};

}  // namespace
}  // namespace weft::ops::core
