// A scan over ranks: a rank computes some heads of a segment when the state of the segment before it has come, and sends the state behind it. A
// message is one state. While one rank has the first heads of a segment, the rank of the segment before has the next
// ones: C groups of heads over P ranks take C + P - 1 turns. Backward goes the other way with gradients of states. In the first turn one rank works
// and the others wait: it makes the state alone, sends it, and makes the outputs when it would have to wait itself, or at the end. Nothing else is
// done twice.
#include <algorithm>
#include <functional>
#include <memory>
#include <tuple>
#include <utility>

#include "distributed/context/segments.h"
#include "ops/recurrence_input.h"
#include "weft/ops/elementwise.h"

namespace weft::dist {

namespace {

using ops::RecurrenceInput;
using ops::RecurrenceOptions;

// Some heads of a segment here, and when it is their turn. A turn comes after that of the segment they depend on, so whichever rank has the
// earliest turn that is left can go on.
struct Item {
  size_t place;   // of the segment in the plan
  int64_t index;  // of the segment here
  int64_t turn, column;
  HeadRange heads;
};

std::vector<Item> items_of(const SegmentPlan& plan, int rank, const RecurrenceInput& input, bool is_backward) {
  const int64_t key_heads = input.q_BTGK.size(2), group = input.v_BTHV.size(2) / key_heads;
  const int64_t at_once = std::clamp<int64_t>(plan.threads / group, 1, key_heads),
                columns = (key_heads + at_once - 1) / at_once;
  std::vector<Item> items;
  int64_t chain = 0;
  for (size_t begin = 0, end; begin < plan.segments.size(); begin = end, ++chain) {
    for (end = begin + 1; end < plan.segments.size() && plan.segments[end].comes_in;) ++end;
    for (size_t i = begin; i < end; ++i)
      for (int64_t c = 0; c < columns && plan.segments[i].rank == rank; ++c) {
        const auto before = static_cast<int64_t>(is_backward ? end - 1 - i : i - begin);
        const int64_t column = chain * columns + c;
        items.push_back({.place = i,
                         .index = plan.segments[i].index,
                         .turn = before + column,
                         .column = column,
                         .heads = {c * at_once, std::min(key_heads, (c + 1) * at_once), group}});
      }
  }
  std::ranges::sort(
      items, [](const Item& a, const Item& b) { return std::tuple(a.turn, a.column) < std::tuple(b.turn, b.column); });
  return items;
}

// What was put off in the first turn.
class Late {
 public:
  template <class F>
  void put_off(F work) {
    work_ = std::move(work);
  }
  void run() {
    if (work_) std::exchange(work_, nullptr)();
  }

 private:
  std::function<void()> work_;
};

// States or their gradients on the way from segment to segment, on whatever rank those are.
class Way {
 public:
  Way(Communicator& comm, const SegmentPlan& plan) : comm_(comm), plan_(plan) {}

  bool is_here(size_t segment) const { return plan_.segments[segment].rank == comm_.rank(); }
  void give(size_t to, const Item& item, const Tensor& state) {
    const int peer = plan_.segments[to].rank;
    if (peer == comm_.rank()) {
      here_.push_back({to, item.column, state});
      return;
    }
    const Send sends[] = {{ops::contiguous(state), peer}};
    sent_.push_back(comm_.start_exchange(sends, {}));
  }
  Tensor take(size_t from, const Item& item, const Shape& shape, DType dtype, Device device) {
    const int peer = plan_.segments[from].rank;
    if (peer == comm_.rank()) {
      const auto found =
          std::ranges::find_if(here_, [&](const Local& l) { return l.place == item.place && l.column == item.column; });
      Tensor state = found->state;
      here_.erase(found);
      return state;
    }
    const Receive receives[] = {{Tensor::empty(shape, dtype, device), peer}};
    comm_.exchange({}, receives);
    return receives[0].tensor;
  }
  void wait() {
    for (const auto& transfer : sent_) transfer->wait();
  }

 private:
  struct Local {
    size_t place;
    int64_t column;
    Tensor state;
  };
  Communicator& comm_;
  const SegmentPlan& plan_;
  std::vector<Local> here_;
  std::vector<std::unique_ptr<Transfer>> sent_;
};

Tensor segment_of(const Tensor& x, const Item& item) {
  return x.defined() ? x.slice(0, item.index, item.index + 1) : x;
}
// x [J, H, K, V]
Tensor state_of(const Tensor& x, const Item& item) { return some_heads(segment_of(x, item), 1, item.heads); }

ops::RecurrenceWants wants_without_state(ops::RecurrenceWants wants) {
  wants.state = false;
  return wants;
}

RecurrenceInput input_of(const RecurrenceInput& input, const Item& item) {
  return some_heads(some_segments(input, item.index, item.index + 1), item.heads);
}

}  // namespace

ContextRecurrence scan_forward(Communicator& comm, const SegmentPlan& plan, const RecurrenceInput& input,
                               const RecurrenceOptions& given_options) {
  RecurrenceOptions options = given_options;
  if (options.checks_decay && input.log_decay.defined()) ops::check_decay("recur", input.log_decay);  // of all at once
  options.checks_decay = false;
  const Tensor& v = input.v_BTHV;
  const DType wide = v.dtype() == kF64 ? kF64 : kF32;
  const Shape of_states{v.size(0), v.size(2), input.q_BTGK.size(3), v.size(3)};
  ContextRecurrence result{.out = Tensor::empty(v.shape(), v.dtype(), v.device()),
                           .state = Tensor::empty(of_states, wide, v.device()),
                           .coming = Tensor::zeros(of_states, wide, v.device()),
                           .maps = {}};
  Way way(comm, plan);
  Late late;
  const std::vector<Item> items = items_of(plan, comm.rank(), input, false);
  for (const Item& item : items) {
    if (&item == &items.back() && plan.segments[item.place].comes_in) late.run();
    RecurrenceInput part = input_of(input, item);
    part.state = state_of(input.state, item);
    if (plan.segments[item.place].comes_in)
      part.state = way.take(item.place - 1, item, state_of(result.state, item).shape(), wide, v.device());
    Tensor coming = state_of(result.coming, item), end = state_of(result.state, item),
           out = some_heads(segment_of(result.out, item), 2, item.heads);
    if (part.state.defined()) ops::copy_(coming, part.state);
    const bool is_awaited = item.turn == 0 && plan.is_needed(item.place) && !way.is_here(item.place + 1);
    const Tensor state = is_awaited ? ops::recur_state(part, options) : ops::recur_into(out, part, options);
    if (plan.is_needed(item.place)) way.give(item.place + 1, item, state);
    ops::copy_(end, state);
    if (is_awaited) late.put_off([out, part, options]() mutable { ops::recur_into(out, part, options); });
  }
  late.run();
  way.wait();
  return result;
}

ops::RecurrenceGrads scan_backward(Communicator& comm, const SegmentPlan& plan, const Tensor& dout,
                                   const Tensor& dstate, const ContextRecurrence& forward, const RecurrenceInput& input,
                                   const RecurrenceOptions& options, const ops::RecurrenceWants& wants) {
  const Tensor& coming = forward.coming;
  const bool is_decay_of_heads = input.log_decay.defined() && input.log_decay.num_dims() == 1;
  auto zeros_like = [](bool is_wanted, const Tensor& x) {
    return is_wanted && x.defined() ? Tensor::zeros(x.shape(), x.dtype(), x.device()) : Tensor();
  };
  auto like = [](bool is_wanted, const Tensor& x) {
    return is_wanted && x.defined() ? Tensor::empty(x.shape(), x.dtype(), x.device()) : Tensor();
  };
  ops::RecurrenceGrads grads{.dq = like(wants.q, input.q_BTGK),
                             .dk = like(wants.k, input.k_BTGK),
                             .dv = like(wants.v, input.v_BTHV),
                             .dlog_decay = is_decay_of_heads ? zeros_like(wants.log_decay, input.log_decay)
                                                             : like(wants.log_decay, input.log_decay),
                             .dbeta = like(wants.beta, input.beta),
                             .dstate = zeros_like(wants.state, input.state)};
  ops::RecurrenceWants wanted = wants;
  wanted.state = true;  // the segment before asks for it
  Way way(comm, plan);
  Late late;
  const std::vector<Item> items = items_of(plan, comm.rank(), input, true);
  for (const Item& item : items) {
    if (&item == &items.back() && plan.is_needed(item.place)) late.run();
    const SegmentPlan::Segment& segment = plan.segments[item.place];
    RecurrenceInput part = input_of(input, item);
    part.state = state_of(coming, item);
    Tensor behind = state_of(dstate, item);
    if (plan.is_needed(item.place)) {
      const Tensor later = way.take(item.place + 1, item, part.state.shape(), coming.dtype(), coming.device());
      behind = behind.defined() ? ops::add(behind, later) : later;
    }
    auto keys_of = [&](const Tensor& x) {
      return x.defined() ? segment_of(x, item).slice(2, item.heads.begin, item.heads.end) : x;
    };
    auto values_of = [&](const Tensor& x) { return some_heads(segment_of(x, item), 2, item.heads); };
    ops::RecurrenceGrads to{.dq = keys_of(grads.dq),
                            .dk = keys_of(grads.dk),
                            .dv = values_of(grads.dv),
                            .dlog_decay = is_decay_of_heads ? Tensor() : values_of(grads.dlog_decay),
                            .dbeta = values_of(grads.dbeta)};
    auto gradients = [&grads, &options, to, behind, part, item, is_decay_of_heads,
                      dy = values_of(dout)](const ops::RecurrenceWants& some) mutable {
      ops::recur_backward_into(to, dy, behind, part, options, some);
      if (is_decay_of_heads && grads.dlog_decay.defined()) {
        Tensor sum = some_heads(grads.dlog_decay, 0, item.heads);
        ops::copy_(sum, ops::add(sum, to.dlog_decay));
      }
      return to.dstate;
    };
    const bool is_awaited = item.turn == 0 && segment.comes_in && !way.is_here(item.place - 1);
    to.dstate = is_awaited ? ops::recur_state_gradient(values_of(dout), behind, part, options) : gradients(wanted);
    if (is_awaited) late.put_off([gradients, wants]() mutable { gradients(wants_without_state(wants)); });
    if (segment.comes_in) {
      way.give(item.place - 1, item, to.dstate);
    } else if (grads.dstate.defined()) {
      Tensor first = state_of(grads.dstate, item);
      ops::copy_(first, to.dstate);
    }
  }
  late.run();
  way.wait();
  return grads;
}

}  // namespace weft::dist
