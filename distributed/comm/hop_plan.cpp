// Visible pairs of every (rank, hop), counted from positions. What a query sees are one or two stretches of positions, so the keys of a rank,
// which ascend, are counted by look-ups.
#include <algorithm>
#include <array>

#include "distributed/comm/seen_keys.h"
#include "weft/comm/layout.h"
#include "weft/core/error.h"

namespace weft::dist {

namespace {

// Of each position; padding sees nothing.
std::vector<SeenKeys> seen_keys_of(const Layout& layout, const TokenMask& mask) {
  std::vector<SeenKeys> seen(static_cast<size_t>(layout.padded_tokens()));
  for_each_query(layout.tokens(), mask, [&](int64_t t, const SeenKeys& keys) { seen[static_cast<size_t>(t)] = keys; });
  return seen;
}

struct Work {
  int64_t pairs = 0, tiles = 0;
  bool is_full = true;  // every query sees every key
  TokenRange keys = {}, queries = {};
};

// The tiles of a row of tiles that have a pair.
class Tiles {
 public:
  Tiles(size_t keys, int64_t tile)
      : tile_(tile), has_pair_(static_cast<size_t>((static_cast<int64_t>(keys) + tile - 1) / tile)) {}
  void clear() { std::fill(has_pair_.begin(), has_pair_.end(), false); }
  // `marked`: tiles before it need no other look, since the stretches of a document ascend.
  void mark(int64_t begin, int64_t end, int64_t& marked) {
    int64_t k = std::max(begin / tile_, marked);
    for (; k * tile_ < end; ++k) has_pair_[static_cast<size_t>(k)] = true;
    marked = k;
  }
  int64_t count() const { return std::count(has_pair_.begin(), has_pair_.end(), true); }

 private:
  int64_t tile_;
  std::vector<bool> has_pair_;
};

// Both position lists ascend.
Work work_of(std::span<const int32_t> queries, std::span<const int32_t> keys, std::span<const SeenKeys> seen,
             int64_t tile) {
  Work work;
  Tiles tiles(keys.size(), tile);
  auto below = [&](int32_t position) { return std::lower_bound(keys.begin(), keys.end(), position) - keys.begin(); };
  for (size_t q0 = 0; q0 < queries.size(); q0 += static_cast<size_t>(tile)) {
    tiles.clear();
    int64_t marked = 0, more_marked = 0;
    for (size_t i = q0; i < std::min(queries.size(), q0 + static_cast<size_t>(tile)); ++i) {
      const SeenKeys& of = seen[static_cast<size_t>(queries[i])];
      int64_t pairs = 0;
      auto add = [&](int32_t from, int32_t to, int64_t& so_far) {
        if (from >= to) return;
        const int64_t begin = below(from), end = below(to);
        if (begin == end) return;
        pairs += end - begin;
        work.keys = work.keys.joined({begin, end});
        tiles.mark(begin, end, so_far);
      };
      add(of.begin, of.end, marked), add(of.more_begin, of.more_end, more_marked);
      work.pairs += pairs;
      work.is_full &= pairs == static_cast<int64_t>(keys.size());
      const auto at = static_cast<int64_t>(i);
      if (pairs) work.queries = work.queries.joined({at, at + 1});
    }
    work.tiles += tiles.count();
  }
  return work;
}

double lockstep(const HopPlan& plan, const std::vector<int64_t>& of) {
  int64_t sum = 0;
  for (int s = 0; s < plan.ranks; ++s) {
    int64_t slowest = 0;
    for (int r = 0; r < plan.ranks; ++r) slowest = std::max(slowest, of[static_cast<size_t>(r * plan.ranks + s)]);
    sum += slowest;
  }
  return static_cast<double>(sum);
}

double largest_rank(const HopPlan& plan, const std::vector<int64_t>& of) {
  int64_t largest = 0;
  for (int r = 0; r < plan.ranks; ++r) {
    int64_t sum = 0;
    for (int s = 0; s < plan.ranks; ++s) sum += of[static_cast<size_t>(r * plan.ranks + s)];
    largest = std::max(largest, sum);
  }
  return static_cast<double>(largest);
}

double ideal_pairs(const HopPlan& plan) {
  double sum = 0;
  for (int64_t pairs : plan.pairs) sum += static_cast<double>(pairs);
  return std::max(1.0, sum) / plan.ranks;
}

}  // namespace

TokenRange TokenRange::joined(const TokenRange& other) const {
  if (is_empty()) return other;
  if (other.is_empty()) return *this;
  return {std::min(begin, other.begin), std::max(end, other.end)};
}

double HopPlan::lockstep_pairs() const { return lockstep(*this, pairs) / ideal_pairs(*this); }
double HopPlan::lockstep_tiles() const {
  return lockstep(*this, tiles) * static_cast<double>(tile * tile) / ideal_pairs(*this);
}
double HopPlan::rank_pairs() const { return largest_rank(*this, pairs) / ideal_pairs(*this); }
double HopPlan::rank_tiles() const {
  return largest_rank(*this, tiles) * static_cast<double>(tile * tile) / ideal_pairs(*this);
}

HopPlan HopPlan::every_hop(int ranks) {
  const auto hops = static_cast<size_t>(ranks * ranks);
  return {.ranks = ranks,
          .steps = ranks,
          .cover = std::vector<Cover>(hops, Cover::partial),
          .pairs = std::vector<int64_t>(hops),
          .tiles = std::vector<int64_t>(hops)};
}

HopPlan plan_hops(const Layout& layout, const TokenMask& mask, int64_t tile) {
  WEFT_CHECK(mask.documents.empty() || static_cast<int64_t>(mask.documents.size()) == layout.tokens(),
             str("hop plan: ", mask.documents.size(), " documents of ", layout.tokens(), " tokens"),
             "give each token its document");
  WEFT_CHECK(mask.window >= 0 && tile >= 1, str("hop plan: window ", mask.window, ", tile ", tile),
             "use 0 for no window, and a tile of at least 1");
  const int ranks = layout.ranks();
  const std::vector<SeenKeys> seen = seen_keys_of(layout, mask);
  std::vector<std::vector<int32_t>> positions;
  for (int r = 0; r < ranks; ++r) positions.push_back(layout.positions(r));
  HopPlan plan{.ranks = ranks, .tile = tile, .tokens = layout.tokens_per_rank()};
  for (int r = 0; r < ranks; ++r)
    for (int s = 0; s < ranks; ++s) {
      const auto source = static_cast<size_t>((r - s + ranks) % ranks);
      const Work work = work_of(positions[static_cast<size_t>(r)], positions[source], seen, tile);
      plan.pairs.push_back(work.pairs);
      plan.tiles.push_back(work.tiles);
      plan.keys.push_back(work.keys), plan.queries.push_back(work.queries);
      plan.cover.push_back(work.pairs == 0 ? Cover::empty : work.is_full ? Cover::full : Cover::partial);
      if (work.pairs) plan.steps = std::max(plan.steps, s + 1);
    }
  return plan;
}

namespace {

// The tokens of a rank but padding, sorted by row, document and position. A row has at most 2^31 positions and documents.
struct SortedTokens {
  std::vector<std::array<int64_t, 2>> keys;  // row and document, position
  std::vector<int64_t> indices;              // of each in its row
  bool are_in_order = true;                  // indices ascend in each document

  SortedTokens(const RankTokens& tokens, int64_t batch) {
    const auto count = static_cast<int64_t>(tokens.positions.size()), each = count / batch;
    std::vector<std::array<int64_t, 3>> all;
    for (int64_t i = 0; i < count; ++i) {
      const auto at = static_cast<size_t>(i);
      const int64_t document = tokens.documents.empty() ? 0 : tokens.documents[at];
      if (document >= 0) all.push_back({(i / each) << 32 | document, tokens.positions[at], i % each});
    }
    std::sort(all.begin(), all.end());
    for (const auto& [document, position, index] : all) {
      are_in_order &= keys.empty() || keys.back()[0] != document || indices.back() < index;
      keys.push_back({document, position}), indices.push_back(index);
    }
  }
};

}  // namespace

namespace {

// What a rank's queries see of a rank's keys.
struct RowsWork {
  int64_t pairs = 0;
  TokenRange keys = {}, queries = {};
};

RowsWork work_of(const SortedTokens& mine, const SortedTokens& of, const TokenMask& mask) {
  RowsWork work;
  const auto &queries = mine.keys, &seen = of.keys;
  // Places in `seen` of the ends of both stretches, which ascend with the query.
  size_t begin = 0, end = 0, more_begin = 0, more_end = 0;
  for (size_t i = 0; i < queries.size(); ++i) {
    const auto& [document, position] = queries[i];
    const SeenKeys keys = seen_keys(position, INT32_MIN, INT32_MAX, mask);
    auto find = [&](size_t& place, int64_t at) {
      while (place < seen.size() && seen[place] < std::array{document, at}) ++place;
    };
    auto add = [&](size_t& from, int64_t first, size_t& to, int64_t last) {
      if (first >= last) return;
      find(from, first), find(to, last);
      if (from >= to) return;
      work.pairs += static_cast<int64_t>(to - from);
      work.keys = work.keys.joined({of.indices[from], of.indices[to - 1] + 1});
      work.queries = work.queries.joined({mine.indices[i], mine.indices[i] + 1});
    };
    add(begin, keys.begin, end, keys.end), add(more_begin, keys.more_begin, more_end, keys.more_end);
  }
  return work;
}

}  // namespace

HopPlan plan_hops(std::span<const RankTokens> tokens, int64_t batch, const TokenMask& mask) {
  const auto ranks = static_cast<int>(tokens.size());
  std::vector<SortedTokens> sorted;
  for (const RankTokens& of_rank : tokens) sorted.emplace_back(of_rank, batch);
  const bool are_in_order = std::ranges::all_of(sorted, &SortedTokens::are_in_order);
  HopPlan plan{.ranks = ranks, .tokens = static_cast<int64_t>(tokens.front().positions.size()) / batch};
  plan.tiles.resize(tokens.size() * tokens.size());
  for (int r = 0; r < ranks; ++r)
    for (int s = 0; s < ranks; ++s) {
      const SortedTokens &mine = sorted[static_cast<size_t>(r)],
                         &of = sorted[static_cast<size_t>((r - s + ranks) % ranks)];
      const RowsWork work = work_of(mine, of, mask);
      const bool is_full = work.pairs == static_cast<int64_t>(mine.keys.size() * of.keys.size());
      plan.pairs.push_back(work.pairs);
      if (are_in_order) plan.keys.push_back(work.keys), plan.queries.push_back(work.queries);
      plan.cover.push_back(work.pairs == 0 ? Cover::empty : is_full ? Cover::full : Cover::partial);
      if (work.pairs) plan.steps = std::max(plan.steps, s + 1);
    }
  return plan;
}

}  // namespace weft::dist
