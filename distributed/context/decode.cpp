#include "weft/core/error.h"
#include "weft/distributed/context_attention.h"
#include "weft/ops/attention_merge.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/select.h"

namespace weft::dist {

namespace {

// A result as one message: lse is a column beside out.
Tensor packed(const ops::AttentionState& state) {
  if (!state.lse.defined()) return state.out;
  return ops::concatenate(std::vector{state.out, state.lse.unsqueeze(-1)}, -1);
}
ops::AttentionState unpacked(const Tensor& message, bool has_lse) {
  if (!has_lse) return {message, {}};
  const int64_t width = message.size(-1) - 1;
  return {message.slice(-1, 0, width), message.select(-1, width)};
}

// Rank r takes in that of rank r + 1, then r + 2, r + 4, ... where they have taken in as many.
Tensor merged_by_tree(Communicator& comm, Tensor mine, bool has_lse) {
  const int rank = comm.rank();
  for (int step = 1; step < comm.size(); step *= 2) {
    if (rank % (2 * step) == step) {
      comm.exchange(std::vector<Send>{{mine, rank - step}}, {});
      break;
    }
    if (rank + step >= comm.size()) continue;
    Tensor other = Tensor::empty(mine.shape(), mine.dtype(), mine.device());
    comm.exchange({}, std::vector<Receive>{{other, rank + step}});
    mine = packed(ops::merge(unpacked(mine, has_lse), unpacked(other, has_lse)));
  }
  comm.broadcast(mine, 0);
  return mine;
}

Tensor merged_in_order(Communicator& comm, const Tensor& mine, bool has_lse) {
  const Tensor all = comm.all_gather(mine.unsqueeze(0));
  ops::AttentionState state = unpacked(all.select(0, 0), has_lse);
  for (int rank = 1; rank < comm.size(); ++rank) state = ops::merge(state, unpacked(all.select(0, rank), has_lse));
  return packed(state);
}

}  // namespace

ops::Attention context_decode(Communicator& comm, const Tensor& q, const Tensor& k, const Tensor& v,
                              const ops::AttentionTokens& queries, const ops::AttentionTokens& keys,
                              const ops::AttentionOptions& options, DecodeMerge merge) {
  if (comm.size() == 1) return ops::attend(q, k, v, queries, keys, options);
  ops::AttentionState state = ops::attention_state(q, v.size(3), options);
  if (k.size(1) > 0) ops::attend_block(state, q, k, v, queries, keys, options);
  const bool has_lse = state.lse.defined();
  const bool is_tree = merge == DecodeMerge::tree || (merge == DecodeMerge::automatic && comm.size() > 16);
  const Tensor whole =
      is_tree ? merged_by_tree(comm, packed(state), has_lse) : merged_in_order(comm, packed(state), has_lse);
  state = unpacked(whole, has_lse);
  Tensor lse = has_lse ? ops::contiguous(state.lse) : Tensor();
  return {ops::cast(ops::contiguous(state.out), q.dtype()), lse};
}

}  // namespace weft::dist
