// Forward, by gather: each rank computes L and P of its segments, one all-gather, then S_in(j) = P S_in(j - 1) + L along the chains, and each rank
// its outputs. Backward: E, the gradient of the state that comes in with zeros behind the segment, does not depend on any state; one all-gather,
// then the gradient behind segment j is E(j + 1) + P(j + 1)^T of the one behind j + 1, and each rank its gradients.
// Plain recurrences keep the states of chunks that L takes, and correct them later. The delta rule gets L and P in one walk over the tokens, of
// values [V | 0] and the state [0 | I], and computes its tokens again.
#include "distributed/context/segments.h"
#include "ops/recurrence_input.h"
#include "weft/core/error.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/matmul.h"
#include "weft/ops/select.h"

namespace weft::dist {

namespace {

using ops::RecurrenceInput;
using ops::RecurrenceOptions;

struct Sizes {
  int64_t J, H, K, V;
  DType wide;
  explicit Sizes(const RecurrenceInput& in)
      : J(in.v_BTHV.size(0)),
        H(in.v_BTHV.size(2)),
        K(in.q_BTGK.size(3)),
        V(in.v_BTHV.size(3)),
        wide(in.v_BTHV.dtype() == kF64 ? kF64 : kF32) {}
  Shape states(int64_t count) const { return {count, H, K, V}; }
};

bool sends_states(const SegmentPlan& plan) {
  for (const SegmentPlan::Segment& s : plan.segments)
    if (s.comes_in) return true;
  return false;
}

// [J, ...] of all ranks, `most` of each.
Tensor of_all(Communicator& comm, const SegmentPlan& plan, const Tensor& mine) {
  Tensor padded = ops::contiguous(mine);
  if (mine.size(0) < plan.most) {
    Shape rest = mine.shape();
    rest[0] = plan.most - mine.size(0);
    const Tensor parts[] = {padded, Tensor::zeros(rest, mine.dtype(), mine.device())};
    padded = ops::concatenate(parts, 0);
  }
  return comm.all_gather(padded);
}
Tensor of_segment(const Tensor& all, const SegmentPlan& plan, size_t i) {
  const int64_t row = plan.segments[i].rank * plan.most + plan.segments[i].index;
  return all.slice(0, row, row + 1);
}

// P S, or P^T S.
Tensor mapped(const Tensor& map, const Tensor& state, bool is_of_values, bool is_transposed) {
  if (map.num_dims() == 4) return ops::matmul(map, state, {.transpose_a = is_transposed});
  return ops::mul(map.unsqueeze(is_of_values ? 2 : 3), state);
}

Tensor only_where(const std::vector<OwnSegment>& own, bool comes_in, const Tensor& state) {
  if (!state.defined()) return state;
  std::vector<double> factor;
  for (const OwnSegment& s : own) factor.push_back(s.comes_in == comes_in ? 1 : 0);
  const Tensor mask = Tensor::from(std::span<const double>(factor), {static_cast<int64_t>(own.size()), 1, 1, 1});
  return ops::mul(ops::to(ops::cast(mask, state.dtype()), state.device()), state);
}

Tensor rows_or_zeros(const std::vector<Tensor>& rows, const Shape& of_row, DType dtype, Device device) {
  std::vector<Tensor> all = rows;
  for (Tensor& row : all)
    if (!row.defined()) row = Tensor::zeros(of_row, dtype, device);
  return ops::concatenate(all, 0);
}

// Calls f(begin, end) for stretches of segments that are alike.
template <class F>
void for_stretches(const std::vector<OwnSegment>& own, F&& f) {
  auto kind = [](const OwnSegment& s) { return std::tuple(s.comes_in, s.has_map(), s.is_needed); };
  for (size_t begin = 0, end; begin < own.size(); begin = end) {
    for (end = begin + 1; end < own.size() && kind(own[end]) == kind(own[begin]);) ++end;
    f(static_cast<int64_t>(begin), static_cast<int64_t>(end));
  }
}

// [J, H, K V + width of P]: L and P.
Tensor plain_ends(const ops::RecurrenceStates& kept, const std::vector<OwnSegment>& own, const Tensor& state,
                  const Sizes& z, bool is_of_values) {
  const int64_t last = kept.states.size(2) - 1;
  Tensor ends = ops::contiguous(kept.states.select(2, last)), decays = ops::contiguous(kept.decays.select(2, last));
  if (state.defined()) ends = ops::add(ends, mapped(decays, only_where(own, false, state), is_of_values, false));
  const Tensor parts[] = {ends.reshape({z.J, z.H, z.K * z.V}), decays};
  return ops::concatenate(parts, 2);
}

Tensor delta_ends(const RecurrenceInput& input, const std::vector<OwnSegment>& own, const RecurrenceOptions& options,
                  const Sizes& z) {
  const Device device = input.v_BTHV.device();
  std::vector<Tensor> pieces;
  for_stretches(own, [&](int64_t begin, int64_t end) {
    const OwnSegment& kind = own[static_cast<size_t>(begin)];
    const int64_t count = end - begin;
    RecurrenceInput part = some_segments(input, begin, end);
    Tensor ends = Tensor::zeros(z.states(count), z.wide, device),
           maps = Tensor::zeros({count, z.H, z.K, z.K}, z.wide, device);
    std::vector<Tensor> values, states;  // beside each other
    if (kind.is_needed) {
      values.push_back(part.v_BTHV);
      const bool begins = !kind.comes_in && input.state.defined();
      states.push_back(begins ? input.state.slice(0, begin, end) : ends);
    }
    if (kind.has_map()) {
      std::vector<double> identity(static_cast<size_t>(z.K * z.K), 0.0);
      for (int64_t c = 0; c < z.K; ++c) identity[static_cast<size_t>(c * z.K + c)] = 1;
      const Tensor one = ops::cast(Tensor::from(std::span<const double>(identity), {z.K, z.K}), z.wide);
      values.push_back(Tensor::zeros({count, part.v_BTHV.size(1), z.H, z.K}, input.v_BTHV.dtype(), device));
      states.push_back(ops::to(one, device).expand({count, z.H, z.K, z.K}));
    }
    if (kind.is_needed) {
      part.v_BTHV = ops::concatenate(values, 3), part.state = ops::concatenate(states, 3);
      const Tensor all = ops::recur_state(part, options);
      ends = all.slice(3, 0, z.V);
      if (kind.has_map()) maps = all.slice(3, z.V, z.V + z.K);
    }
    auto flat = [&](const Tensor& x) { return ops::contiguous(x).reshape({count, z.H, z.K * x.size(3)}); };
    const Tensor both[] = {flat(ends), flat(maps)};
    pieces.push_back(ops::concatenate(both, 2));
  });
  return ops::concatenate(pieces, 0);
}

ContextRecurrence gather_forward(Communicator& comm, const SegmentPlan& plan, const RecurrenceInput& input,
                                 const RecurrenceOptions& options) {
  const Sizes z(input);
  const bool is_delta = input.beta.defined(), is_of_values = options.side == ops::DecaySide::value;
  const std::vector<OwnSegment> own = segments_of(plan, comm.rank(), z.J);
  ContextRecurrence result;
  result.coming = input.state;
  RecurrenceOptions later = options;
  if (sends_states(plan)) {
    if (is_delta && options.checks_decay && input.log_decay.defined()) ops::check_decay("recur", input.log_decay);
    if (!is_delta) result.kept = ops::recur_states(input, options);
    later.checks_decay = false;
    const Tensor all = of_all(
        comm, plan,
        is_delta ? delta_ends(input, own, later, z) : plain_ends(result.kept, own, input.state, z, is_of_values));
    const int64_t of_state = z.K * z.V;
    result.maps = ops::contiguous(all.slice(2, of_state, all.size(2)));
    if (is_delta) result.maps = result.maps.reshape({all.size(0), z.H, z.K, z.K});
    std::vector<Tensor> coming(own.size());
    Tensor state;  // behind the segment before
    for (size_t i = 0; i < plan.segments.size(); ++i) {
      const SegmentPlan::Segment& s = plan.segments[i];
      const auto index = static_cast<size_t>(s.index);
      if (s.rank == comm.rank() && s.comes_in) coming[index] = state;
      else if (s.rank == comm.rank() && input.state.defined())
        coming[index] = input.state.slice(0, s.index, s.index + 1);
      if (!plan.is_needed(i)) continue;
      const Tensor end = ops::contiguous(of_segment(all, plan, i).slice(2, 0, of_state)).reshape(z.states(1));
      state = s.comes_in && s.passes
                  ? ops::add(end, mapped(of_segment(result.maps, plan, i), state, is_of_values, false))
                  : end;
    }
    result.coming = rows_or_zeros(coming, z.states(1), z.wide, input.v_BTHV.device());
  }
  RecurrenceInput whole = input;
  whole.state = result.coming;
  result.state = ops::recur_into(result.out, whole, later, result.kept.states.defined() ? &result.kept : nullptr);
  return result;
}

ops::RecurrenceGrads gather_backward(Communicator& comm, const SegmentPlan& plan, const Tensor& dout,
                                     const Tensor& dstate, const ContextRecurrence& forward,
                                     const RecurrenceInput& input, const RecurrenceOptions& options,
                                     const ops::RecurrenceWants& wants) {
  const Sizes z(input);
  const bool is_of_values = options.side == ops::DecaySide::value;
  const std::vector<OwnSegment> own = segments_of(plan, comm.rank(), z.J);
  const Device device = input.v_BTHV.device();
  Tensor behind = dstate;
  if (sends_states(plan)) {
    std::vector<Tensor> pieces;
    for_stretches(own, [&](int64_t begin, int64_t end) {
      auto part_of = [&](const Tensor& x) { return x.defined() ? x.slice(0, begin, end) : x; };
      pieces.push_back(
          own[static_cast<size_t>(begin)].comes_in
              ? ops::recur_state_gradient(part_of(dout), part_of(dstate), some_segments(input, begin, end), options)
              : Tensor::zeros(z.states(end - begin), z.wide, device));
    });
    const Tensor all = of_all(comm, plan, ops::concatenate(pieces, 0));
    std::vector<Tensor> later(own.size());
    Tensor before_next;  // gradient of the state that comes into the segment behind this one
    for (size_t i = plan.segments.size(); i-- > 0;) {
      const SegmentPlan::Segment& s = plan.segments[i];
      const Tensor here = plan.is_needed(i) ? before_next : Tensor();
      if (s.rank == comm.rank()) later[static_cast<size_t>(s.index)] = here;
      if (!s.comes_in) continue;
      before_next = of_segment(all, plan, i);
      if (here.defined() && s.passes)
        before_next = ops::add(before_next, mapped(of_segment(forward.maps, plan, i), here, is_of_values, true));
    }
    behind = rows_or_zeros(later, z.states(1), z.wide, device);
    if (dstate.defined()) behind = ops::add(behind, dstate);
  }
  RecurrenceInput whole = input;
  whole.state = forward.coming;
  ops::RecurrenceWants wanted = wants;
  wanted.state = wants.state && input.state.defined();
  ops::RecurrenceGrads grads;
  ops::recur_backward_into(grads, dout, behind, whole, options, wanted,
                           forward.kept.states.defined() ? &forward.kept : nullptr);
  grads.dstate = only_where(own, false, grads.dstate);
  return grads;
}

void check(Communicator& comm, const SegmentPlan& plan, const RecurrenceInput& input) {
  WEFT_CHECK(
      input.q_BTGK.defined() && input.v_BTHV.defined() && input.q_BTGK.num_dims() == 4 && input.v_BTHV.num_dims() == 4,
      "context recurrence: q or v is not [segments, tokens, heads, width]", "give inputs of segments");
  int64_t here = 0;
  for (const SegmentPlan::Segment& s : plan.segments) here += s.rank == comm.rank();
  WEFT_CHECK(here == input.v_BTHV.size(0),
             str("context recurrence: the plan has ", here, " segments of rank ", comm.rank(), ", v is ", input.v_BTHV),
             "make the plan of the tokens that the inputs are of");
}

}  // namespace

std::string_view to_string(Carry carry) { return carry == Carry::gather ? "gather" : "scan"; }

ContextRecurrence context_recur(Communicator& comm, const SegmentPlan& plan, Carry carry,
                                const ops::RecurrenceInput& input, const ops::RecurrenceOptions& options) {
  check(comm, plan, input);
  return carry == Carry::gather ? gather_forward(comm, plan, input, options) : scan_forward(comm, plan, input, options);
}

ops::RecurrenceGrads context_recur_backward(Communicator& comm, const SegmentPlan& plan, Carry carry,
                                            const Tensor& dout, const Tensor& dstate, const ContextRecurrence& forward,
                                            const ops::RecurrenceInput& input, const ops::RecurrenceOptions& options,
                                            const ops::RecurrenceWants& wants) {
  check(comm, plan, input);
  RecurrenceOptions unchecked = options;  // forward has checked them
  unchecked.checks_decay = false;
  return carry == Carry::gather ? gather_backward(comm, plan, dout, dstate, forward, input, unchecked, wants)
                                : scan_backward(comm, plan, dout, dstate, forward, input, unchecked, wants);
}

}  // namespace weft::dist
