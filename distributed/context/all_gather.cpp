// Every rank gathers the keys of all ranks and takes them rank by rank, in the order of hops of a ring: so both schemes have the same bits in
// forward. In backward the sums of gradients of all ranks' keys are scattered.
#include "distributed/context/key_block.h"

namespace weft::dist {

namespace {

// [P, ...] of each part, part r that of rank r.
Keys gathered(Communicator& comm, Keys keys) {
  for (Tensor* part : keys.parts()) *part = comm.all_gather(part->unsqueeze(0));
  return keys;
}

template <class Parts>
Parts of_rank(Parts all, int rank) {
  for (Tensor* part : all.parts()) *part = part->select(0, rank);
  return all;
}

template <class F>
void for_each_source(const Communicator& comm, const HopPlan& plan, F&& f) {
  for (int step = 0; step < plan.steps; ++step)
    if (plan.has_work(comm.rank(), step)) f((comm.rank() + comm.size() - step) % comm.size());
}

}  // namespace

void all_gather_forward(Communicator& comm, const HopPlan& plan, Keys keys, const QueryWork& work,
                        ops::AttentionState& state) {
  const Keys all = gathered(comm, keys);
  for_each_source(comm, plan, [&](int source) { work.forward(state, of_rank(all, source)); });
}

KeyGrads all_gather_backward(Communicator& comm, const HopPlan& plan, Keys keys, QueryBackward& work) {
  const Keys all = gathered(comm, keys);
  KeyGrads sums = zeros_for(all);
  for_each_source(comm, plan, [&](int source) {
    KeyGrads to = of_rank(sums, source);
    work.add(to, of_rank(all, source));
  });
  for (Tensor* part : sums.parts()) *part = comm.reduce_scatter(*part).select(0, 0);
  return sums;
}

}  // namespace weft::dist
