#include "weft/autograd/ranks.h"

#include <numeric>

#include "autograd/recurrence_inputs.h"
#include "weft/autograd/recompute.h"
#include "weft/autograd/record.h"
#include "weft/core/error.h"
#include "weft/ops/elementwise.h"

namespace weft {

Var all_gather(dist::Communicator& comm, const Var& x) {
  if (comm.size() == 1) return x;
  Tensor y = comm.all_gather(ops::contiguous(x.value()));
  return record("all_gather", y, {x},
                [&comm](const Tensor& dy, Wants) { return Grads{comm.reduce_scatter(ops::contiguous(dy))}; });
}

Var all_reduce(dist::Communicator& comm, const Var& x) {
  if (comm.size() == 1) return x;
  auto sum_of = [&comm](const Tensor& mine) {
    Tensor sum = ops::clone(mine);
    comm.all_reduce(sum);
    return sum;
  };
  return record("all_reduce", sum_of(x.value()), {x}, [sum_of](const Tensor& dy, Wants) { return Grads{sum_of(dy)}; });
}

namespace {

Tensor exchanged(dist::Communicator& comm, const Tensor& x_NC, const std::vector<int64_t>& sends,
                 const std::vector<int64_t>& receives) {
  const int64_t coming = std::accumulate(receives.begin(), receives.end(), int64_t{0});
  const Tensor x = ops::contiguous(x_NC);
  Tensor y = Tensor::empty({coming, x.size(1)}, x.dtype(), x.device());
  std::vector<dist::Send> out;
  std::vector<dist::Receive> in;
  int64_t from = 0, to = 0;
  for (int r = 0; r < comm.size(); ++r) {
    const int64_t sent = sends[static_cast<size_t>(r)], received = receives[static_cast<size_t>(r)];
    if (sent > 0) out.push_back({x.slice(0, from, from + sent), r});
    if (received > 0) in.push_back({y.slice(0, to, to + received), r});
    from += sent, to += received;
  }
  comm.exchange(out, in);
  return y;
}

}  // namespace

Var exchange_rows(dist::Communicator& comm, const Var& x_NC, const RowCounts& counts) {
  const auto ranks = static_cast<size_t>(comm.size());
  WEFT_CHECK(counts.sends.size() == ranks && counts.receives.size() == ranks && x_NC.num_dims() == 2 &&
                 std::accumulate(counts.sends.begin(), counts.sends.end(), int64_t{0}) == x_NC.size(0),
             str("exchange_rows: ", x_NC.value(), " over ", ranks, " ranks, counts of ", counts.sends.size(), " and ",
                 counts.receives.size()),
             "give [N, C], and for each rank how many of the N rows it gets and how many come from it");
  return record(
      "exchange_rows", exchanged(comm, x_NC.value(), counts.sends, counts.receives), {x_NC},
      [&comm, counts](const Tensor& dy, Wants) { return Grads{exchanged(comm, dy, counts.receives, counts.sends)}; });
}

std::array<Var, 2> context_attention(const dist::ContextRanks& ranks, dist::Scheme scheme, const Var& q_BnHK,
                                     const Var& k_BnGK, const Var& v_BnGV, const ops::AttentionTokens& here,
                                     const ops::AttentionOptions& given_options,
                                     std::shared_ptr<const dist::HopPlan> plan, const AttentionBias& bias) {
  ops::AttentionOptions options = given_options;
  if (bias.query.defined()) options.score.query_bias = bias.query.value();
  if (bias.key.defined()) options.score.key_bias = bias.key.value();
  const std::vector<Tensor> kept_result = kept_by_recompute("context_attention", [&] {
    ops::Attention y =
        dist::context_attention(ranks, scheme, q_BnHK.value(), k_BnGK.value(), v_BnGV.value(), here, options, *plan);
    return std::vector<Tensor>{y.out, y.lse};
  });
  const ops::Attention result{kept_result[0], kept_result[1]};
  auto backward_of = [ranks, scheme, plan, q = Saved(q_BnHK.value()), k = Saved(k_BnGK.value()),
                      v = Saved(v_BnGV.value()), out = Saved(result.out), lse = Saved(result.lse),
                      kept = std::array{Saved(here.positions), Saved(here.documents), Saved(options.score.alibi_slopes),
                                        Saved(options.score.query_bias), Saved(options.score.key_bias)},
                      here, options](std::span<const Tensor> dys, Wants) {
    for (const Saved& tensor : kept) tensor.get();  // an Error if one changed
    Tensor dout = dys[0].defined() ? ops::contiguous(dys[0])
                                   : Tensor::zeros(out.get().shape(), out.get().dtype(), out.get().device());
    Tensor dlse = dys[1].defined() ? ops::contiguous(dys[1]) : Tensor();
    auto [dq, dk, dv, dquery_bias, dkey_bias] = dist::context_attention_backward(
        ranks, scheme, dout, dlse, q, k, v, {out.get(), lse.get()}, here, options, *plan);
    return Grads{dq, dk, dv, dquery_bias, dkey_bias};
  };
  return record("context_attention", std::array<Tensor, 2>{result.out, result.lse},
                {q_BnHK, k_BnGK, v_BnGV, bias.query, bias.key}, std::move(backward_of));
}

// States of chunks are kept between forward and backward, but not by recompute(), whose second run finds only what is small.
std::array<Var, 2> context_recur(dist::Communicator& comm, std::shared_ptr<const dist::SegmentPlan> plan,
                                 dist::Carry carry, const RecurrenceVars& in, const ops::RecurrenceOptions& options) {
  const ops::RecurrenceInput input = values_of(in);
  ops::RecurrenceStates states;
  const std::vector<Tensor> result = kept_by_recompute("context_recur", [&] {
    dist::ContextRecurrence y = dist::context_recur(comm, *plan, carry, input, options);
    states = y.kept;
    return std::vector<Tensor>{y.out, y.state, y.coming, y.maps};
  });
  auto backward_of = [&comm, plan, carry, options, states, saved = SavedRecurrence(input), coming = Saved(result[2]),
                      maps = Saved(result[3])](std::span<const Tensor> dys, Wants wants) {
    return grads_of(dist::context_recur_backward(
        comm, *plan, carry, dys[0], dys[1], {.out = {}, .state = {}, .coming = coming, .maps = maps, .kept = states},
        saved.get(), options, wants_of(wants)));
  };
  return record("context_recur", std::array<Tensor, 2>{result[0], result[1]}, inputs_of(in), std::move(backward_of));
}

Var hold(const Var& y, std::span<const Var> others) {
  std::vector<Var> inputs{y};
  for (const Var& other : others)
    if (other.wants_grad()) inputs.push_back(other);
  if (inputs.size() == 1) return y;
  std::vector<Tensor> zeros;  // each one number, however large the shape
  for (size_t i = 1; i < inputs.size(); ++i)
    zeros.push_back(Tensor::zeros({}, inputs[i].dtype(), inputs[i].device()).expand(inputs[i].shape()));
  return record("hold", y.value(), Inputs(inputs), [zeros](const Tensor& dy, Wants) {
    std::vector<Tensor> grads{dy};
    grads.insert(grads.end(), zeros.begin(), zeros.end());
    return Grads(std::move(grads));
  });
}

}  // namespace weft
