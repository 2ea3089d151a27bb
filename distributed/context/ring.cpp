// The schedule of a ring: data go from rank r to r + 1, so after s hops rank r has what began at (r - s) mod P.
#include "distributed/context/key_block.h"

namespace weft::dist {

namespace {

// New tensors like those that travel, to receive the same of another rank.
Keys like(Keys keys) {
  for (Tensor* part : keys.parts()) *part = Tensor::empty(part->shape(), part->dtype(), part->device());
  return keys;
}

// Sends `from` `distance` ranks on and receives what comes from as far before.
std::unique_ptr<Transfer> start(Communicator& comm, const std::vector<Tensor*>& from, const std::vector<Tensor*>& to,
                                int distance = 1) {
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (Tensor* tensor : from) sends.push_back({*tensor, (comm.rank() + distance) % comm.size()});
  for (Tensor* tensor : to) receives.push_back({*tensor, (comm.rank() + comm.size() - distance) % comm.size()});
  return comm.start_exchange(sends, receives);
}

}  // namespace

void ring_forward(Communicator& comm, const HopPlan& plan, Keys keys, const QueryWork& work,
                  ops::AttentionState& state) {
  for (int step = 0; step < plan.steps; ++step) {
    const bool is_last = step + 1 == plan.steps;
    Keys next = is_last ? Keys{} : like(keys);
    auto transfer = start(comm, is_last ? std::vector<Tensor*>{} : keys.parts(), next.parts());
    if (plan.has_work(comm.rank(), step)) work.forward(state, keys);
    transfer->wait();
    if (!is_last) keys = next;
  }
}

KeyGrads ring_backward(Communicator& comm, const HopPlan& plan, Keys keys, QueryBackward& work) {
  KeyGrads sum;  // of the keys of the step before, by all ranks that have had them
  for (int step = 0; step < plan.steps; ++step) {
    const bool is_last = step + 1 == plan.steps, has_sum = step > 0, has_work = plan.has_work(comm.rank(), step);
    Keys next = is_last ? Keys{} : like(keys);
    KeyGrads coming = has_sum ? zeros_for(keys) : KeyGrads{}, own = zeros_for(keys);
    std::vector<Tensor*> from, to;
    auto travels = [&](auto& sent, auto& received) {
      for (Tensor* part : sent.parts()) from.push_back(part);
      for (Tensor* part : received.parts()) to.push_back(part);
    };
    if (!is_last) travels(keys, next);
    if (has_sum) travels(sum, coming);
    auto transfer = start(comm, from, to);
    if (has_work) work.add(own, keys);
    transfer->wait();
    for (size_t i = 0; has_sum && has_work && i < own.parts().size(); ++i)
      ops::add_(*coming.parts()[i], *own.parts()[i]);
    sum = has_sum ? coming : own;
    if (!is_last) keys = next;
  }
  if (plan.steps == 1) return sum;
  // The sum that this rank holds belongs to the rank plan.steps - 1 before it.
  KeyGrads home = sum;
  for (Tensor* part : home.parts()) *part = Tensor::empty(part->shape(), part->dtype(), part->device());
  start(comm, sum.parts(), home.parts(), comm.size() - (plan.steps - 1))->wait();
  return home;
}

}  // namespace weft::dist
