#include "distributed/context/segments.h"

namespace weft::dist {

std::vector<OwnSegment> segments_of(const SegmentPlan& plan, int rank, int64_t count) {
  std::vector<OwnSegment> own(static_cast<size_t>(count));
  for (size_t i = 0; i < plan.segments.size(); ++i) {
    const SegmentPlan::Segment& s = plan.segments[i];
    if (s.rank == rank)
      own[static_cast<size_t>(s.index)] = {
          .place = i, .comes_in = s.comes_in, .passes = s.passes, .is_needed = plan.is_needed(i)};
  }
  return own;
}

ops::RecurrenceInput some_segments(const ops::RecurrenceInput& input, int64_t begin, int64_t end) {
  ops::RecurrenceInput part = input;
  for (Tensor* x : {&part.q_BTGK, &part.k_BTGK, &part.v_BTHV, &part.beta, &part.writes, &part.documents})
    if (x->defined()) *x = x->slice(0, begin, end);
  if (part.log_decay.defined() && part.log_decay.num_dims() > 1) part.log_decay = part.log_decay.slice(0, begin, end);
  part.state = {};
  return part;
}

Tensor some_heads(const Tensor& x, int64_t dim, const HeadRange& heads) {
  return x.defined() ? x.slice(dim, heads.first(), heads.last()) : x;
}

ops::RecurrenceInput some_heads(const ops::RecurrenceInput& input, const HeadRange& heads) {
  ops::RecurrenceInput part = input;
  for (Tensor* x : {&part.q_BTGK, &part.k_BTGK}) *x = x->slice(2, heads.begin, heads.end);
  for (Tensor* x : {&part.v_BTHV, &part.beta, &part.writes}) *x = some_heads(*x, 2, heads);
  if (part.log_decay.defined())
    part.log_decay = some_heads(part.log_decay, part.log_decay.num_dims() > 1 ? 2 : 0, heads);
  part.state = some_heads(part.state, 1, heads);
  return part;
}

}  // namespace weft::dist
