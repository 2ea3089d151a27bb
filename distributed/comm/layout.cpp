#include "weft/comm/layout.h"

#include <algorithm>
#include <numeric>

#include "distributed/comm/seen_keys.h"
#include "weft/core/error.h"

namespace weft::dist {

namespace {

int64_t divided_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

void check_sizes(int64_t tokens, int ranks, int64_t block) {
  WEFT_CHECK(tokens >= 1 && ranks >= 1 && block >= 1,
             str("layout: ", tokens, " tokens, ", ranks, " ranks, blocks of ", block), "use at least 1 of each");
}

}  // namespace

std::string_view to_string(LayoutKind kind) {
  switch (kind) {
    case LayoutKind::contiguous: return "contiguous";
    case LayoutKind::striped: return "striped";
    case LayoutKind::zigzag: return "zigzag";
    case LayoutKind::balanced: return "balanced";
  }
  return "?";
}

std::string to_string(const Layout& layout) {
  std::string text = str(layout.kind(), " of ", layout.tokens(), " tokens over ", layout.ranks(), " ranks");
  const bool has_blocks = layout.kind() == LayoutKind::striped || layout.kind() == LayoutKind::balanced;
  return has_blocks ? str(text, " in blocks of ", layout.block()) : text;
}

Layout::Layout(LayoutKind kind, int64_t tokens, int ranks, int64_t block, int64_t blocks_per_rank)
    : kind_(kind),
      tokens_(tokens),
      ranks_(ranks),
      block_(block),
      owners_(static_cast<size_t>(ranks * blocks_per_rank)) {}

Layout Layout::contiguous(int64_t tokens, int ranks) {
  check_sizes(tokens, ranks, 1);
  Layout layout(LayoutKind::contiguous, tokens, ranks, divided_up(tokens, ranks), 1);
  std::iota(layout.owners_.begin(), layout.owners_.end(), 0);
  return layout;
}

Layout Layout::striped(int64_t tokens, int ranks, int64_t block) {
  check_sizes(tokens, ranks, block);
  Layout layout(LayoutKind::striped, tokens, ranks, block, divided_up(tokens, block * ranks));
  for (size_t b = 0; b < layout.owners_.size(); ++b) layout.owners_[b] = static_cast<int>(b) % ranks;
  return layout;
}

Layout Layout::zigzag(int64_t tokens, int ranks) {
  check_sizes(tokens, ranks, 1);
  Layout layout(LayoutKind::zigzag, tokens, ranks, divided_up(tokens, 2 * ranks), 2);
  for (int r = 0; r < ranks; ++r)
    layout.owners_[static_cast<size_t>(r)] = layout.owners_[static_cast<size_t>(2 * ranks - 1 - r)] = r;
  return layout;
}

Layout Layout::balanced(int64_t tokens, int ranks, const TokenMask& mask, int64_t block) {
  check_sizes(tokens, ranks, block);
  WEFT_CHECK(mask.documents.empty() || static_cast<int64_t>(mask.documents.size()) == tokens,
             str("layout: ", mask.documents.size(), " documents of ", tokens, " tokens"),
             "give each token its document");
  Layout layout(LayoutKind::balanced, tokens, ranks, block, divided_up(tokens, block * ranks));
  std::vector<int64_t> work(layout.owners_.size());
  for_each_query(tokens, mask,
                 [&](int64_t t, const SeenKeys& seen) { work[static_cast<size_t>(t / block)] += seen.count(); });
  std::vector<size_t> order(work.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return work[a] > work[b]; });
  for (size_t i = 0; i < order.size(); ++i) {
    const int place = static_cast<int>(i) % ranks;
    const bool goes_back = (static_cast<int>(i) / ranks) % 2;
    layout.owners_[order[i]] = goes_back ? ranks - 1 - place : place;
  }
  return layout;
}

std::vector<int32_t> Layout::positions(int rank) const {
  WEFT_CHECK(rank >= 0 && rank < ranks_, str("layout: rank ", rank, " of ", ranks_), "name a rank");
  std::vector<int32_t> positions;
  positions.reserve(static_cast<size_t>(tokens_per_rank()));
  for (size_t b = 0; b < owners_.size(); ++b)
    if (owners_[b] == rank)
      for (int64_t i = 0; i < block_; ++i)
        positions.push_back(static_cast<int32_t>(static_cast<int64_t>(b) * block_ + i));
  return positions;
}

}  // namespace weft::dist
