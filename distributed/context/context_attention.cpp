#include "weft/distributed/context_attention.h"

#include "distributed/context/key_block.h"
#include "weft/core/error.h"

namespace weft::dist {

namespace {

void check_plan(const Communicator& comm, const HopPlan& plan) {
  WEFT_CHECK(plan.ranks == comm.size(), str("context attention: a plan of ", plan.ranks, " ranks for ", comm.size()),
             "make the plan from the layout of this communicator's ranks");
}

}  // namespace

std::string_view to_string(Scheme scheme) {
  switch (scheme) {
    case Scheme::ring: return "ring";
    case Scheme::all_gather: return "all_gather";
  }
  return "?";
}

ops::Attention context_attention(Communicator& comm, Scheme scheme, const Tensor& q, const Tensor& k, const Tensor& v,
                                 const ops::AttentionTokens& here, const ops::AttentionOptions& options,
                                 const HopPlan& plan) {
  check_plan(comm, plan);
  const QueryWork work{q, {here.positions, here.documents}, options};
  ops::AttentionState state = ops::attention_state(q, v.size(3), options);
  const Keys keys = own_keys(k, v, here, options);
  switch (scheme) {
    case Scheme::ring: ring_forward(comm, plan, keys, work, state); break;
    case Scheme::all_gather: all_gather_forward(comm, plan, keys, work, state); break;
  }
  return {ops::cast(state.out, q.dtype()), state.lse};
}

ops::AttentionGrads context_attention_backward(Communicator& comm, Scheme scheme, const Tensor& dout,
                                               const Tensor& dlse, const Tensor& q, const Tensor& k, const Tensor& v,
                                               const ops::Attention& result, const ops::AttentionTokens& here,
                                               const ops::AttentionOptions& options, const HopPlan& plan) {
  check_plan(comm, plan);
  const QueryWork work{q, {here.positions, here.documents}, options};
  const Tensor& query_bias = options.score.query_bias;
  QueryBackward backward{work,
                         dout,
                         result.lse,
                         ops::attention_delta(dout, result.out, dlse, options),
                         Tensor::zeros(q.shape(), q.dtype() == kF64 ? kF64 : kF32, q.device()),
                         {}};
  if (query_bias.defined()) backward.dquery_bias = Tensor::zeros(query_bias.shape(), kF64, q.device());
  const Keys keys = own_keys(k, v, here, options);
  KeyGrads sums;
  switch (scheme) {
    case Scheme::ring: sums = ring_backward(comm, plan, keys, backward); break;
    case Scheme::all_gather: sums = all_gather_backward(comm, plan, keys, backward); break;
  }
  ops::AttentionGrads grads{ops::cast(backward.dq, q.dtype()), ops::cast(sums.dk, k.dtype()),
                            ops::cast(sums.dv, v.dtype())};
  if (query_bias.defined()) grads.dquery_bias = ops::cast(backward.dquery_bias, query_bias.dtype());
  if (sums.dbias.defined()) grads.dkey_bias = ops::cast(sums.dbias, options.score.key_bias.dtype());
  return grads;
}

}  // namespace weft::dist
