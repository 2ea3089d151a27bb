// How long segments are, and how many of them there are.
#include "weft/distributed/segment_counts.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "weft/distributed/context_recurrence.h"

namespace weft::dist {

namespace {

int64_t divided_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

int64_t count_of(std::span<const int64_t> runs, int64_t length) {
  int64_t count = 0;
  for (int64_t run : runs) count += divided_up(run, length);
  return count;
}

}  // namespace

// Segments of the mean of J runs of N tokens are at most 2 J, of 2 N + J places. Lengths in whole chunks may have fewer; those above twice the mean
// have not, since there are J segments at least.
int64_t segment_length(std::span<const int64_t> runs) {
  constexpr int64_t kChunk = 64;  // tokens that kernels work on at a time, or a multiple of those
  const auto count = static_cast<int64_t>(runs.size());
  if (count == 0) return 0;
  const int64_t longest = *std::ranges::max_element(runs),
                tokens = std::accumulate(runs.begin(), runs.end(), int64_t{0}), mean = divided_up(tokens, count);
  if (2 * count * longest <= 3 * tokens) return longest;
  int64_t best = longest, places = count * longest;
  auto consider = [&](int64_t length) {
    const int64_t segments = count_of(runs, length);
    if (segments <= 2 * count && segments * length < places) best = length, places = segments * length;
  };
  for (int64_t length = std::min(longest - 1, 2 * mean) / kChunk * kChunk; length > 0 && 2 * count * length >= tokens;
       length -= kChunk)
    consider(length);
  consider(mean);
  return best;
}

SegmentCounts counts_of(const SegmentPlan& plan) {
  SegmentCounts counts{.all = static_cast<int64_t>(plan.segments.size()), .longest = 0, .most = plan.most};
  int64_t length = 0;
  for (const SegmentPlan::Segment& s : plan.segments) {
    length = s.comes_in ? length + 1 : 1;
    counts.longest = std::max(counts.longest, length);
  }
  return counts;
}

SegmentCounts counts_of(const Layout& layout, int64_t rows) {
  SegmentCounts counts{.all = 0, .longest = 0, .most = 0};
  for (const RankSegments& rank : segments_of(layout)) {
    counts.longest += rank.segments;
    counts.most = std::max(counts.most, rows * rank.segments);
  }
  counts.all = rows * counts.longest;
  return counts;
}

std::vector<RankSegments> segments_of(const Layout& layout) {
  std::vector<std::vector<int64_t>> runs(static_cast<size_t>(layout.ranks())), padded = runs;
  int last = -1;
  for (int64_t position = 0; position < layout.padded_tokens(); position += layout.block()) {
    const int owner = layout.owner(position);
    std::vector<int64_t>&of_owner = runs[static_cast<size_t>(owner)],
    &with_padding = padded[static_cast<size_t>(owner)];
    const int64_t tokens = std::clamp<int64_t>(layout.tokens() - position, 0, layout.block());
    if (tokens > 0 && owner != last) of_owner.push_back(0), with_padding.push_back(0);
    if (!of_owner.empty()) of_owner.back() += tokens, with_padding.back() += layout.block();
    last = owner;
  }
  std::vector<RankSegments> ranks;
  for (size_t r = 0; r < runs.size(); ++r) {
    // Padding stands behind the last run of its rank, and is computed only where that makes all runs equally long.
    const bool are_equal = std::ranges::adjacent_find(padded[r], std::ranges::not_equal_to()) == padded[r].end();
    const std::vector<int64_t>& of_rank = are_equal ? padded[r] : runs[r];
    const int64_t length = segment_length(of_rank);
    ranks.push_back({.runs = std::ssize(of_rank), .segments = count_of(of_rank, length), .length = length});
  }
  return ranks;
}

}  // namespace weft::dist
