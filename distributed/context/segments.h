// Parts of a recurrence over ranks: some of its segments, some of its heads.
#pragma once

#include <vector>

#include "weft/distributed/context_recurrence.h"

namespace weft::dist {

// Of the segments here, in the order of their index.
struct OwnSegment {
  size_t place = 0;  // in the plan
  bool comes_in = false, passes = false, is_needed = false;
  // Whether somebody asks what becomes of the state that comes in.
  bool has_map() const { return comes_in && passes && is_needed; }
  bool operator==(const OwnSegment&) const = default;
};
std::vector<OwnSegment> segments_of(const SegmentPlan& plan, int rank, int64_t count);

// A view of some of the segments [begin, end), without a state; of some key heads and their value heads.
ops::RecurrenceInput some_segments(const ops::RecurrenceInput& input, int64_t begin, int64_t end);
struct HeadRange {
  int64_t begin = 0, end = 0;  // key heads
  int64_t group = 1;           // value heads of each
  int64_t first() const { return begin * group; }
  int64_t last() const { return end * group; }
};
ops::RecurrenceInput some_heads(const ops::RecurrenceInput& input, const HeadRange& heads);
// [.., H, ..] along `dim`; undefined stays undefined.
Tensor some_heads(const Tensor& x, int64_t dim, const HeadRange& heads);

// Heads one after the other along chains of segments (recurrence_scan.cpp).
ContextRecurrence scan_forward(Communicator& comm, const SegmentPlan& plan, const ops::RecurrenceInput& input,
                               const ops::RecurrenceOptions& options);
ops::RecurrenceGrads scan_backward(Communicator& comm, const SegmentPlan& plan, const Tensor& dout,
                                   const Tensor& dstate, const ContextRecurrence& forward,
                                   const ops::RecurrenceInput& input, const ops::RecurrenceOptions& options,
                                   const ops::RecurrenceWants& wants);

}  // namespace weft::dist
