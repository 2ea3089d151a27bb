// Recurrences whose tokens are on several ranks. A segment is a stretch of one rank and row in which positions follow each other, or a part of one
// where others are much shorter; it may hold several documents. If its first document began before it, a state comes in, from the segment before it
// on whatever rank that is.
#pragma once

#include <algorithm>
#include <vector>

#include "src/nn/mixing/context_tokens.h"
#include "weft/distributed/context_recurrence.h"

namespace weft {

// J segments here of at most L tokens, S segments on all ranks, at most `most` on one of them.
struct Segments {
  int64_t count = 0, longest = 0, most = 0;  // J, L
  // Of the J L places, segment by segment.
  std::vector<int32_t> tokens;      // which of the B T here stands there; any behind the segment's last
  std::vector<int32_t> documents;   // -1 behind the segment's last
  std::vector<int32_t> is_reached;  // 1 where the state that comes in is read
  // Of the B T here.
  std::vector<int32_t> places;         // which of the J L; any of padding that is in no segment
  std::vector<int32_t> is_in_segment;  // 0: such padding
  // Of the S segments, by row and position.
  std::vector<int32_t> order;   // rank * most + segment of that rank
  std::vector<int32_t> chains;  // changes where the state at the end of a segment does not depend on the one before it
  // Of the J here.
  std::vector<int32_t> before;   // which of the S stands before it; 0 if none does
  std::vector<int32_t> goes_on;  // 1 if its first document began before it
  dist::SegmentPlan plan;        // the same for recurrences with states of their own exchange

  bool have_all_tokens() const { return std::ranges::find(is_in_segment, 0) == is_in_segment.end(); }
  // The J L places are the B T tokens in their order.
  bool are_tokens_in_order() const {
    for (size_t i = 0; i < tokens.size(); ++i)
      if (tokens[i] != static_cast<int32_t>(i)) return false;
    return tokens.size() == places.size();
  }
};
Segments plan_segments(const ContextTokens& all, int rank);

}  // namespace weft
