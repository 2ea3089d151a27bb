// The mixture over depth of residual streams, at once or in two phases (Attention Residuals, 2603.15031, section "two-phase"): directions do
// not depend on activations, so the routers of a group of sublayers read the sources of earlier groups together. With o, lse of those,
// and the group's own sources v_j behind them,
//   h = alpha o + sum_j b_j v_j,  (alpha, b) = softmax(lse, s_j)
// is the softmax over all, exactly. Backward wants no o: with g = dh, the sources of earlier groups have the weights alpha a_i and
//   ds_i = alpha a_i (g . v_i - t),  t = g . h,
// so the second phase hands g and t to the first, which reads its sources once for the whole group.
#include "weft/autograd/depth.h"

#include "weft/autograd/functions.h"
#include "weft/autograd/record.h"
#include "weft/core/error.h"
#include "weft/ops/depth.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/reduce.h"
#include "weft/ops/select.h"

namespace weft {

namespace {

Tensor zeros_like(const Tensor& x) { return Tensor::zeros(x.shape(), x.dtype(), x.device()); }

std::vector<Tensor> values_of(std::span<const Var> vars) {
  std::vector<Tensor> tensors;
  for (const Var& x : vars) tensors.push_back(x.value());
  return tensors;
}

// Sources and directions kept for backward.
struct Kept {
  std::vector<Saved> sources;  // values, then scales
  size_t count;
  Saved directions;

  Kept(std::span<const Tensor> values, std::span<const Tensor> scales, const Tensor& directions)
      : count(values.size()), directions(directions) {
    for (const Tensor& t : values) sources.emplace_back(t);
    for (const Tensor& t : scales) sources.emplace_back(t);
  }
  // Gradients of values, scales and directions, in that order.
  std::vector<Tensor> backward(std::span<const Tensor> douts, const Tensor& weights,
                               const ops::DepthMixOptions& options) const {
    std::vector<Tensor> all;
    for (const Saved& tensor : sources) all.push_back(tensor.get());
    std::span<const Tensor> values(all.data(), count), scales(all.data() + count, all.size() - count);
    ops::DepthMixGrads grads = ops::depth_mix_backward(douts, weights, values, scales, directions, options);
    std::vector<Tensor> of_inputs = std::move(grads.dvalues);
    for (Tensor& d : grads.dscales) of_inputs.push_back(std::move(d));
    of_inputs.push_back(std::move(grads.ddirections));
    return of_inputs;
  }
};

std::vector<Var> inputs_of(std::span<const Var> values, std::span<const Var> scales, const Var& directions) {
  std::vector<Var> inputs(values.begin(), values.end());
  inputs.insert(inputs.end(), scales.begin(), scales.end());
  inputs.push_back(directions);
  return inputs;
}

}  // namespace

DepthMixVar depth_mix(std::span<const Var> values, std::span<const Var> scales, const Var& direction, bool is_sigmoid) {
  Var directions = unsqueeze(direction, 0);
  std::vector<Tensor> v = values_of(values), r = values_of(scales);
  const ops::DepthMixOptions options{.is_sigmoid = is_sigmoid};
  auto [outs, weights, lse] = ops::depth_mix(v, r, directions.value(), options);
  Var y = record("depth_mix", outs[0], Inputs(inputs_of(values, scales, directions)),
                 [kept = Kept(v, r, directions.value()), weights = Saved(weights), options](const Tensor& dout, Wants) {
                   return Grads(kept.backward({&dout, 1}, weights, options));
                 });
  return {y, weights.select(-2, 0)};
}

// What the first phase and the reads of a group share.
struct DepthGroup::State {
  Tensor weights, lse;                 // of the first phase: [..., S, N], [..., S]
  std::vector<Tensor> weights_in_all;  // [..., 1, N] per query: alpha a, once it has been read
  std::vector<Tensor> totals;          // [..., 1] per query: t, when its backward has run
};

DepthGroup::DepthGroup(std::span<const Var> values, std::span<const Var> scales, const Var& directions_SD)
    : state_(std::make_shared<State>()) {
  std::vector<Tensor> v = values_of(values), r = values_of(scales);
  ops::DepthMix mixed = ops::depth_mix(v, r, directions_SD.value());
  const auto S = static_cast<size_t>(directions_SD.size(0));
  state_->weights = mixed.weights, state_->lse = mixed.lse;
  state_->weights_in_all.resize(S), state_->totals.resize(S);
  outs_ = record(
      "depth_group", std::move(mixed.outs), Inputs(inputs_of(values, scales, directions_SD)),
      [kept = Kept(v, r, directions_SD.value()), state = state_](std::span<const Tensor> dys, Wants) {
        std::vector<Tensor> douts, weights, totals;
        Tensor like;
        for (const Tensor& dy : dys) like = dy.defined() ? dy : like;
        for (size_t q = 0; q < dys.size(); ++q) {  // a query that nothing used counts nothing
          const bool is_used = dys[q].defined() && state->totals[q].defined();
          const auto at = static_cast<int64_t>(q);
          Tensor t = state->lse.slice(-1, at, at + 1), w = state->weights.slice(-2, at, at + 1);
          douts.push_back(is_used ? dys[q] : zeros_like(like));
          weights.push_back(is_used ? state->weights_in_all[q] : w);
          totals.push_back(is_used ? state->totals[q] : zeros_like(t));
        }
        return Grads(kept.backward(douts, ops::concatenate(weights, -2), {.totals = ops::concatenate(totals, -1)}));
      });
}

DepthMixVar DepthGroup::read(int64_t query, std::span<const Var> own_values, std::span<const Var> own_scales,
                             const Var& direction, bool wants_weights) {
  const auto q = static_cast<size_t>(query);
  WEFT_CHECK(q < outs_.size() && outs_[q].defined(), str("depth_mix: query ", query, " of a group of ", outs_.size()),
             "read each query once");
  Var first = std::exchange(outs_[q], Var());
  Var directions = unsqueeze(direction, 0);
  Tensor lse = state_->lse.slice(-1, query, query + 1), before = state_->weights.slice(-2, query, query + 1);

  // The first source stands for all of the first phase; its scale is not read.
  std::vector<Tensor> v{first.value()}, r = values_of(own_scales);
  for (const Var& x : own_values) v.push_back(x.value());
  if (!r.empty()) r.insert(r.begin(), r[0]);
  ops::DepthMix mixed;
  if (own_values.empty()) mixed = {.outs = {first.value()}};
  else mixed = ops::depth_mix(v, r, directions.value(), {.first_scores = lse});
  const auto n = static_cast<int64_t>(own_values.size());
  Tensor own_weights = n > 0 ? ops::contiguous(mixed.weights.slice(-1, 1, n + 1)) : Tensor();
  state_->weights_in_all[q] = n > 0 ? ops::mul(before, mixed.weights.slice(-1, 0, 1)) : before;

  v.erase(v.begin());
  if (!r.empty()) r.erase(r.begin());
  std::vector<Var> inputs = inputs_of(own_values, own_scales, directions);
  if (n == 0) inputs.pop_back();
  inputs.insert(inputs.begin(), first);
  const Tensor h = mixed.outs[0];
  Var y = record(
      "depth_read", h, Inputs(inputs),
      [kept = Kept(v, r, directions.value()), own_weights, h = Saved(h), state = state_, q](const Tensor& g, Wants) {
        const DType wide = state->lse.dtype();
        Tensor t = ops::sum(ops::mul(ops::cast(g, wide), ops::cast(h.get(), wide)), -1, true);
        state->totals[q] = t;
        std::vector<Tensor> grads;
        if (kept.count > 0) grads = kept.backward({&g, 1}, own_weights, {.totals = t});
        grads.insert(grads.begin(), g);
        return Grads(std::move(grads));
      });
  if (!wants_weights) return {y, {}};
  Tensor weights = state_->weights_in_all[q].select(-2, 0);
  if (n == 0) return {y, weights};
  return {y, ops::concatenate(std::vector<Tensor>{weights, own_weights.select(-2, 0)}, -1)};
}

}  // namespace weft
