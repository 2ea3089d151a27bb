// Into how many segments the tokens of a rank are cut for a recurrence, and how long they are (weft/distributed/context_recurrence.h).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "weft/comm/layout.h"

namespace weft::dist {

// Every segment of a rank takes the places of its longest one. So runs of tokens whose positions follow each other are cut at this length, into
// segments that hand on their state like others: where the places would be more than 1.5 times the tokens. Then there are at most twice as many
// segments as runs.
int64_t segment_length(std::span<const int64_t> runs);

// What a rank has of a row that is one document.
struct RankSegments {
  int64_t runs = 0;      // of positions that follow each other
  int64_t segments = 0;  // J, into which they are cut
  int64_t length = 0;    // L
};
std::vector<RankSegments> segments_of(const Layout& layout);  // by rank

}  // namespace weft::dist
