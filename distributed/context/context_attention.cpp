#include "weft/distributed/context_attention.h"

#include <array>

#include "distributed/context/bytes.h"
#include "distributed/context/heads.h"
#include "distributed/context/ring_call.h"
#include "weft/core/error.h"

namespace weft::dist {

std::string_view to_string(Scheme scheme) {
  switch (scheme) {
    case Scheme::ring: return "ring";
    case Scheme::bidirectional_ring: return "bidirectional_ring";
    case Scheme::double_ring: return "double_ring";
    case Scheme::all_gather: return "all_gather";
    case Scheme::ulysses: return "ulysses";
    case Scheme::usp: return "usp";
  }
  return "?";
}

std::span<const Scheme> all_schemes() {
  static constexpr std::array kAll{
      Scheme::ring, Scheme::bidirectional_ring, Scheme::double_ring, Scheme::all_gather, Scheme::ulysses, Scheme::usp};
  return kAll;
}

namespace {

// The group that exchanges heads, and the ring of the ranks that have the same place in their groups.
struct Arrangement {
  HeadExchange heads;
  Ring ring;
};

Arrangement arrange(const ContextRanks& ranks, Scheme scheme, const Call& call, const HopPlan& plan) {
  Communicator& comm = ranks.all;
  WEFT_CHECK(plan.ranks == comm.size(), str("context attention: a plan of ", plan.ranks, " ranks for ", comm.size()),
             "make the plan from the layout of this communicator's ranks");
  const int64_t heads = call.queries.q.size(2), kv_heads = call.keys.k.size(2);
  const SchemeOptions& options = ranks.options;
  check_scheme(scheme, comm.size(), heads, options);
  const int group = group_size(scheme, comm.size(), options);
  const int64_t at_once = heads_at_once(scheme, options, kv_heads);
  const int place = comm.rank() % group;
  Arrangement of{HeadExchange(comm, comm.rank() - place, group, heads, kv_heads),
                 {.ranks = {comm, place, group},
                  .route = route_of(scheme, comm.size() / group, options.node,
                                    static_cast<int>((kv_heads + at_once - 1) / at_once)),
                  .plan = plan_of_groups(plan, group),
                  .heads_at_once = at_once}};
  return of;
}

void cast_to(Tensor& x, const Tensor& like) {
  if (x.defined()) x = ops::cast(x, like.dtype());
}

}  // namespace

ops::Attention context_attention(const ContextRanks& ranks, Scheme scheme, const Tensor& q, const Tensor& k,
                                 const Tensor& v, const ops::AttentionTokens& here,
                                 const ops::AttentionOptions& options, const HopPlan& plan) {
  const Call call = call_of(q, k, v, here, options);
  const Arrangement at = arrange(ranks, scheme, call, plan);
  ops::Attention y = attend_over(at.ring, at.heads.call(call));
  y.out = ops::cast(y.out, q.dtype());
  at.heads.to_tokens({&y.out, &y.lse});
  return y;
}

ops::AttentionGrads context_attention_backward(const ContextRanks& ranks, Scheme scheme, const Tensor& dout,
                                               const Tensor& dlse, const Tensor& q, const Tensor& k, const Tensor& v,
                                               const ops::Attention& result, const ops::AttentionTokens& here,
                                               const ops::AttentionOptions& options, const HopPlan& plan) {
  Call call = call_of(q, k, v, here, options);
  Arrangement at = arrange(ranks, scheme, call, plan);
  call.queries.dout = dout, call.queries.lse = result.lse;
  call.queries.delta = ops::attention_delta(dout, result.out, dlse, options);
  const Call mine = at.heads.call(call);
  at.ring.queries_travel = do_queries_travel(scheme, ranks.options.backward, shape_of(mine));
  CallGrads sums = backward_over(at.ring, mine);
  cast_to(sums.queries.dq, q);
  // Heads that several ranks have are summed before they are rounded.
  if (!at.heads.has_copies()) cast_to(sums.keys.dk, k), cast_to(sums.keys.dv, v);
  std::vector<Tensor*> of_queries{&sums.queries.dq, &sums.queries.dbias}, of_keys{&sums.keys.dk, &sums.keys.dv};
  const bool has_bias_of_each = call.keys.bias.defined() && call.keys.bias.size(2) == q.size(2);
  (has_bias_of_each ? of_queries : of_keys).push_back(&sums.keys.dbias);
  at.heads.to_tokens(of_queries, of_keys);
  cast_to(sums.keys.dk, k), cast_to(sums.keys.dv, v);
  cast_to(sums.queries.dbias, call.queries.bias), cast_to(sums.keys.dbias, call.keys.bias);
  return {sums.queries.dq, sums.keys.dk, sums.keys.dv, sums.queries.dbias, sums.keys.dbias};
}

ops::AttentionStatistics context_statistics(const ContextRanks& ranks, Scheme scheme, const Tensor& q, const Tensor& k,
                                            const Tensor& lse, const ops::AttentionTokens& here,
                                            const ops::AttentionOptions& options, const HopPlan& plan) {
  Call call = call_of(q, k, {}, here, options);
  call.queries.lse = lse;
  const Arrangement at = arrange(ranks, scheme, call, plan);
  ops::AttentionStatistics all = statistics_over(at.ring, at.heads.call(call));
  at.heads.to_tokens({&all.column_mass, &all.entropy, &all.max_score});
  return all;
}

}  // namespace weft::dist
