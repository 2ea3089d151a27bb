// The masks of `weft bench ring` as data: what the core is given, and, for plans, which places each query sees.
#include <algorithm>

#include "tools/bench/ring/ring.h"
#include "weft/core/error.h"

namespace weft::bench {

namespace {

constexpr MaskKind kMasks[] = {
    {"full", "every key", ""},
    {"causal", "earlier keys", ""},
    {"full_document", "all keys of its document", ""},
    {"causal_document", "earlier keys of its document", ""},
    {"full_long_document", "full_document, documents drawn by their share of the tokens", ""},
    {"causal_long_document", "causal_document, documents drawn by their share of the tokens", ""},
    {"prefix_causal", "earlier keys, and all of the first eighth of the row", ""},
    {"prefix_document", "earlier keys of its document, and all of the document's first 128 keys", ""},
    {"causal_window", "the last eighth of the row", ""},
    {"global_window", "causal_window, and the first 64 keys", ""},
    {"block_causal_document", "keys of its document in its own or an earlier block of 128", ""},
    {"full_window", "keys at most a distance before or behind it", "a window looks back only"},
    {"shared_question", "a question and one of several answers",
     "a token is of one document; two calls, joined by their lse, would do"},
    {"causal_blockwise", "blocks of which the last sees all of the others", "documents are all treated alike"},
};

constexpr int32_t kPrefix = 128, kBlock = 128, kGlobal = 64;

// What each place belongs to: the document's first place and the one behind its last.
struct Stretch {
  int32_t begin, end;
};
std::vector<Stretch> stretches(const std::vector<int32_t>& documents) {
  std::vector<Stretch> of(documents.size());
  for (size_t begin = 0, end = 0; begin < documents.size(); begin = end) {
    while (end < documents.size() && documents[end] == documents[begin]) ++end;
    for (size_t t = begin; t < end; ++t) of[t] = {static_cast<int32_t>(begin), static_cast<int32_t>(end)};
  }
  return of;
}

bool has(const std::string& name, const char* part) { return name.find(part) != std::string::npos; }

}  // namespace

std::span<const MaskKind> ring_masks() { return kMasks; }

double RowMask::pairs() const {
  double sum = 0;
  for (const Seen& s : seen) sum += static_cast<double>(s.count());
  return sum;
}

RowMask make_ring_mask(const std::string& name, int64_t tokens, const data::DocumentLengths& lengths) {
  RowMask row{.name = name};
  const bool is_causal = !has(name, "full"), has_documents = has(name, "document");
  const auto eighth = static_cast<int32_t>(std::max<int64_t>(1, tokens / 8));
  std::vector<int32_t> documents(static_cast<size_t>(tokens));
  if (has_documents) {  // at most a quarter of the row each, as there
    const data::DrawBy by = has(name, "long") ? data::DrawBy::tokens : data::DrawBy::documents;
    documents = data::packed_documents(lengths, tokens, Rng(11), std::max<int64_t>(1, tokens / 4), by);
    row.documents = row.causal.documents = documents;
  }
  row.mask = {.is_causal = is_causal, .same_document = has_documents};
  if (has(name, "window")) row.mask.window = row.causal.window = eighth;
  row.causal.is_causal = is_causal;
  if (name == "global_window") row.mask.prefix = row.causal.prefix = kGlobal;
  if (name == "prefix_causal") row.mask.prefix = row.causal.prefix = eighth;
  if (name == "prefix_document") row.mask.prefix = kPrefix;
  const std::vector<Stretch> of = stretches(documents);
  for (int32_t t = 0; t < static_cast<int32_t>(tokens); ++t) {
    const auto [begin, end] = of[static_cast<size_t>(t)];
    int32_t position = t;
    Seen sees{begin, is_causal ? t + 1 : end, 0};
    if (name == "prefix_causal") sees.end = std::max(sees.end, std::min(eighth, end));
    if (name == "prefix_document") position = t - begin, sees.end = std::max(sees.end, std::min(begin + kPrefix, end));
    if (has(name, "window")) sees.begin = std::max(begin, t + 1 - eighth);
    if (name == "global_window") {
      sees.end = std::max(sees.end, std::min(kGlobal, end));
      sees.first_end = std::min(kGlobal, sees.begin);
    }
    if (name == "block_causal_document") {  // tokens of a block stand at one position
      position = (t - begin) / kBlock;
      sees.end = std::min(end, begin + (position + 1) * kBlock);
    }
    row.positions.push_back(position), row.seen.push_back(sees);
  }
  return row;
}

// Places of a rank ascend, so a stretch of the row is a stretch of the rank's own tokens.
dist::HopPlan plan_of_seen(const dist::Layout& layout, const RowMask& mask, int64_t tile) {
  const int ranks = layout.ranks();
  const int64_t tokens = mask.tokens();
  std::vector<std::vector<int32_t>> before(static_cast<size_t>(ranks));  // tokens of a rank in front of each place
  for (std::vector<int32_t>& of : before) of.assign(static_cast<size_t>(tokens + 1), 0);
  for (int64_t t = 0; t < tokens; ++t)
    for (int r = 0; r < ranks; ++r) {
      std::vector<int32_t>& of = before[static_cast<size_t>(r)];
      of[static_cast<size_t>(t + 1)] = of[static_cast<size_t>(t)] + (layout.owner(t) == r);
    }
  const int64_t each = layout.tokens_per_rank(), tiles_each = (each + tile - 1) / tile;
  dist::HopPlan plan{.ranks = ranks, .tile = tile, .tokens = each};
  for (int r = 0; r < ranks; ++r) {
    const std::vector<int32_t> queries = layout.positions(r);
    for (int hop = 0; hop < ranks; ++hop) {
      const std::vector<int32_t>& keys = before[static_cast<size_t>((r - hop + ranks) % ranks)];
      int64_t pairs = 0, tiles = 0;
      dist::TokenRange of_keys, of_queries;
      std::vector<bool> has_pair(static_cast<size_t>(tiles_each));
      auto see = [&](int32_t from, int32_t to) {
        const int64_t begin = keys[static_cast<size_t>(from)], end = keys[static_cast<size_t>(to)];
        pairs += end - begin;
        of_keys = of_keys.joined({begin, end});
        for (int64_t k = begin / tile; k * tile < end && begin < end; ++k) has_pair[static_cast<size_t>(k)] = true;
      };
      for (int64_t i = 0; i < each; ++i) {
        const int32_t place = queries[static_cast<size_t>(i)];
        if (place < tokens) {
          const Seen& s = mask.seen[static_cast<size_t>(place)];
          const int64_t pairs_before = pairs;
          see(0, s.first_end), see(s.begin, s.end);
          if (pairs > pairs_before) of_queries = of_queries.joined({i, i + 1});
        }
        if ((i + 1) % tile && i + 1 < each) continue;
        tiles += std::count(has_pair.begin(), has_pair.end(), true);
        std::fill(has_pair.begin(), has_pair.end(), false);
      }
      plan.pairs.push_back(pairs), plan.tiles.push_back(tiles);
      plan.keys.push_back(of_keys), plan.queries.push_back(of_queries);
      plan.cover.push_back(pairs == 0             ? dist::Cover::empty
                           : pairs == each * each ? dist::Cover::full
                                                  : dist::Cover::partial);
      if (pairs > 0) plan.steps = std::max(plan.steps, hop + 1);
    }
  }
  return plan;
}

}  // namespace weft::bench
