// Visible pairs of every (rank, hop), counted from positions. A query at position q sees the keys in [first(q), q], an interval, so the keys of
// a rank, which ascend, are counted by two look-ups.
#include <algorithm>
#include <array>

#include "weft/comm/layout.h"
#include "weft/core/error.h"

namespace weft::dist {

namespace {

// The first position that each token sees; one past itself if it sees nothing.
std::vector<int32_t> first_seen(const Layout& layout, const CausalMask& mask) {
  const bool has_documents = !mask.documents.empty();
  std::vector<int32_t> first(static_cast<size_t>(layout.padded_tokens()));
  int64_t begin = 0;
  for (int64_t t = 0; t < layout.padded_tokens(); ++t) {
    const auto at = static_cast<size_t>(t);
    const bool is_padding = t >= layout.tokens() || (has_documents && mask.documents[at] < 0);
    if (has_documents && t && t < layout.tokens() && mask.documents[at] != mask.documents[at - 1]) begin = t;
    const int64_t in_window = mask.window ? std::max(begin, t - mask.window + 1) : begin;
    first[at] = static_cast<int32_t>(is_padding ? t + 1 : in_window);
  }
  return first;
}

struct Work {
  int64_t pairs = 0, tiles = 0;
  bool is_full = true;  // every query sees every key
  TokenRange keys = {}, queries = {};
};

// Both position lists ascend; first[q] ascends with q but for padding, which sees nothing.
Work work_of(std::span<const int32_t> queries, std::span<const int32_t> keys, std::span<const int32_t> first,
             int64_t tile) {
  Work work;
  std::vector<bool> has_pair(static_cast<size_t>((static_cast<int64_t>(keys.size()) + tile - 1) / tile));
  for (size_t q0 = 0; q0 < queries.size(); q0 += static_cast<size_t>(tile)) {
    std::fill(has_pair.begin(), has_pair.end(), false);
    // Tiles before it need no other look: the interval of a later query neither begins nor ends before that of an earlier one.
    int64_t marked = 0;
    for (size_t i = q0; i < std::min(queries.size(), q0 + static_cast<size_t>(tile)); ++i) {
      const int32_t q = queries[i];
      const auto begin = std::lower_bound(keys.begin(), keys.end(), first[static_cast<size_t>(q)]) - keys.begin();
      const auto end = std::upper_bound(keys.begin() + begin, keys.end(), q) - keys.begin();
      work.pairs += end - begin;
      work.is_full &= end - begin == static_cast<int64_t>(keys.size());
      if (begin == end) continue;
      work.keys = work.keys.joined({begin, end});
      work.queries = work.queries.joined({static_cast<int64_t>(i), static_cast<int64_t>(i) + 1});
      int64_t k = std::max(begin / tile, marked);
      for (; k * tile < end; ++k) has_pair[static_cast<size_t>(k)] = true;
      marked = k;
    }
    work.tiles += std::count(has_pair.begin(), has_pair.end(), true);
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

HopPlan plan_hops(const Layout& layout, const CausalMask& mask, int64_t tile) {
  WEFT_CHECK(mask.documents.empty() || static_cast<int64_t>(mask.documents.size()) == layout.tokens(),
             str("hop plan: ", mask.documents.size(), " documents of ", layout.tokens(), " tokens"),
             "give each token its document");
  WEFT_CHECK(mask.window >= 0 && tile >= 1, str("hop plan: window ", mask.window, ", tile ", tile),
             "use 0 for no window, and a tile of at least 1");
  const int ranks = layout.ranks();
  const std::vector<int32_t> first = first_seen(layout, mask);
  std::vector<std::vector<int32_t>> positions;
  for (int r = 0; r < ranks; ++r) positions.push_back(layout.positions(r));
  HopPlan plan{.ranks = ranks, .tile = tile, .tokens = layout.tokens_per_rank()};
  for (int r = 0; r < ranks; ++r)
    for (int s = 0; s < ranks; ++s) {
      const auto source = static_cast<size_t>((r - s + ranks) % ranks);
      const Work work = work_of(positions[static_cast<size_t>(r)], positions[source], first, tile);
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

HopPlan plan_hops(std::span<const RankTokens> tokens, int64_t batch, int64_t window) {
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
      const auto &queries = mine.keys, &seen = of.keys;
      int64_t pairs = 0;
      TokenRange of_keys, of_queries;
      size_t begin = 0, end = 0;  // of what a query sees, which ascends with it
      for (size_t i = 0; i < queries.size(); ++i) {
        const auto& [document, position] = queries[i];
        const int64_t first = window > 0 ? position - window + 1 : INT32_MIN;
        while (begin < seen.size() && seen[begin] < std::array{document, first}) ++begin;
        while (end < seen.size() && seen[end] <= std::array{document, position}) ++end;
        if (begin >= end) continue;
        pairs += static_cast<int64_t>(end - begin);
        of_keys = of_keys.joined({of.indices[begin], of.indices[end - 1] + 1});
        of_queries = of_queries.joined({mine.indices[i], mine.indices[i] + 1});
      }
      const bool is_full = pairs == static_cast<int64_t>(queries.size() * seen.size());
      plan.pairs.push_back(pairs);
      if (are_in_order) plan.keys.push_back(of_keys), plan.queries.push_back(of_queries);
      plan.cover.push_back(pairs == 0 ? Cover::empty : is_full ? Cover::full : Cover::partial);
      if (pairs) plan.steps = std::max(plan.steps, s + 1);
    }
  return plan;
}

}  // namespace weft::dist
