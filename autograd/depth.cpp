// The mixture over depth of residual streams, at once or in two phases (Attention Residuals, 2603.15031, section "two-phase"): directions do
// not depend on activations, so the routers of a group of sublayers read the sources of earlier groups together. With o, lse of those,
// and the group's own sources v_j behind them,
//   h = alpha o + sum_j b_j v_j,  (alpha, b) = softmax(lse, s_j)
// is the softmax over all, exactly. Backward wants no o: with g = dh, the sources of earlier groups have the weights alpha a_i and
//   ds_i = alpha a_i (g . v_i - t),  t = g . h,
// so the second phase hands g and t to the first, which reads its sources once for the whole group. Neither makes gradients of sources:
// both leave g, weights and ds with them, and a source adds up what it was left when its readers are through.
#include "weft/autograd/depth.h"

#include <algorithm>

#include "weft/autograd/functions.h"
#include "weft/autograd/record.h"
#include "weft/core/dry_run.h"
#include "weft/core/error.h"
#include "weft/ops/depth.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/reduce.h"
#include "weft/ops/select.h"

namespace weft {

using Readings = std::shared_ptr<std::vector<ops::DepthReading>>;

namespace {

Tensor zeros_like(const Tensor& x) { return Tensor::zeros(x.shape(), x.dtype(), x.device()); }
Tensor ticket(int64_t readings) { return Tensor::full({1}, static_cast<double>(readings), kF32, Device::cpu()); }

}  // namespace

DepthSource::DepthSource(const Var& value, const Var& scale)
    : value_(value), scale_(scale), readings_(std::make_shared<std::vector<ops::DepthReading>>()) {
  const bool has_scale = scale.defined();
  Saved r(has_scale ? scale.value() : Tensor());
  auto gather = [readings = readings_, v = Saved(value.value()), r, has_scale](const Tensor& count, Wants) {
    const std::vector<ops::DepthReading> all = std::exchange(*readings, {});
    WEFT_CHECK(is_dry_run() || count.to_vector<float>()[0] == static_cast<float>(all.size()),
               str("depth_mix: a source has ", all.size(), " readings of this backward and of one that failed"),
               "run forward again after an error");
    ops::DepthSourceGrads grads = ops::depth_source_backward(all, v, has_scale ? r.get() : Tensor());
    return has_scale ? Grads(std::move(grads.dvalue), std::move(grads.dscale)) : Grads(std::move(grads.dvalue));
  };
  ticket_ = has_scale ? record("depth_source", ticket(0), {value, scale}, std::move(gather))
                      : record("depth_source", ticket(0), {value}, std::move(gather));
}

// The sources of a mixture as its backward keeps them.
struct DepthReaders {
  std::vector<Saved> values, scales;
  std::vector<Readings> left_with;  // null: the source wants no gradient
  Saved directions;                 // [S, D]

  DepthReaders(std::span<const DepthSource> sources, const Var& directions_SD)
      : directions(ops::contiguous(directions_SD.value())) {
    for (const DepthSource& s : sources) {
      values.emplace_back(s.value_.value());
      if (s.scale_.defined()) scales.emplace_back(s.scale_.value());
      left_with.push_back(s.ticket_.wants_grad() ? s.readings_ : nullptr);
    }
  }
  static std::vector<Tensor> get(const std::vector<Saved>& saved) { return {saved.begin(), saved.end()}; }

  ops::DepthMix forward(const ops::DepthMixOptions& options) const {
    return ops::depth_mix(get(values), get(scales), directions, options);
  }
  // The tickets, then the directions.
  static std::vector<Var> inputs(std::span<const DepthSource> sources, const Var& directions_SD) {
    std::vector<Var> all;
    for (const DepthSource& s : sources) all.push_back(s.ticket_);
    all.push_back(directions_SD);
    return all;
  }
  // Gradients of inputs(), the readings left with the sources.
  std::vector<Tensor> backward(std::span<const Tensor> douts, const Tensor& weights,
                               const ops::DepthMixOptions& options) const {
    ops::DepthMixGrads grads = ops::depth_mix_backward(douts, weights, get(values), get(scales), directions, options);
    std::vector<Tensor> of_inputs;
    for (size_t i = 0; i < left_with.size(); ++i) {
      of_inputs.push_back(ticket(static_cast<int64_t>(douts.size())));
      if (!left_with[i]) continue;
      for (size_t q = 0; q < douts.size(); ++q)
        left_with[i]->push_back({.dout = douts[q],
                                 .weights = weights,
                                 .dscores = grads.dscores,
                                 .directions = directions,
                                 .query = static_cast<int64_t>(q),
                                 .source = static_cast<int64_t>(i)});
    }
    of_inputs.push_back(std::move(grads.ddirections));
    return of_inputs;
  }
};

DepthMixVar depth_mix(std::span<const DepthSource> sources, const Var& direction, bool is_sigmoid) {
  Var directions = unsqueeze(direction, 0);
  DepthReaders kept(sources, directions);
  const ops::DepthMixOptions options{.is_sigmoid = is_sigmoid};
  auto [outs, weights, lse] = kept.forward(options);
  Var y = record("depth_mix", outs[0], Inputs(DepthReaders::inputs(sources, directions)),
                 [kept = std::move(kept), weights = Saved(weights), options](const Tensor& dout, Wants) {
                   return Grads(kept.backward({&dout, 1}, weights, options));
                 });
  return {y, weights.select(-2, 0)};
}

// What the first phase and the reads of a group share.
struct DepthGroup::State {
  DepthReaders sources;
  ops::DepthMix first = {};                  // of the first phase; each out until it is read
  std::vector<Tensor> alphas = {};           // [..., 1, 1] per query that has sources of its own
  std::vector<Tensor> outs_again = {};       // in backward: of the first phase, if a total wants them
  std::vector<Tensor> gs = {}, totals = {};  // [..., D], [..., 1]: from the reads' backward to the first phase's

  bool is_whole() const {  // no query has sources of its own
    return std::none_of(alphas.begin(), alphas.end(), [](const Tensor& alpha) { return alpha.defined(); });
  }
  // The second phase of a query. `out` stands for all of the first phase; its scale is not read.
  ops::DepthMix read(const Tensor& out, int64_t query, const DepthReaders& own) const {
    std::vector<Tensor> v = DepthReaders::get(own.values), r = DepthReaders::get(own.scales);
    v.insert(v.begin(), out);
    if (!r.empty()) r.insert(r.begin(), r[0]);
    return ops::depth_mix(v, r, own.directions, {.first_scores = first.lse.slice(-1, query, query + 1)});
  }
  // h of a query once more.
  Tensor out_again(int64_t query, const DepthReaders& own) {
    if (outs_again.empty()) outs_again = sources.forward({}).outs;
    Tensor out = std::exchange(outs_again[static_cast<size_t>(query)], Tensor());
    return own.values.empty() ? out : read(out, query, own).outs[0];
  }
  std::vector<Tensor> backward() {
    std::vector<Tensor> weights;
    Tensor like_g, like_total;
    for (size_t q = 0; q < gs.size(); ++q)
      if (gs[q].defined()) like_g = gs[q], like_total = totals[q];
    for (size_t q = 0; q < gs.size(); ++q) {
      const auto at = static_cast<int64_t>(q);
      Tensor w = first.weights.slice(-2, at, at + 1);
      weights.push_back(alphas[q].defined() ? ops::mul(w, alphas[q]) : w);
      if (gs[q].defined()) continue;  // a query that nothing used counts nothing
      gs[q] = zeros_like(like_g);
      if (like_total.defined()) totals[q] = zeros_like(like_total);
    }
    ops::DepthMixOptions options;
    if (like_total.defined()) options.totals = ops::concatenate(totals, -1);
    std::vector<Tensor> grads = sources.backward(gs, ops::concatenate(weights, -2), options);
    gs.assign(gs.size(), Tensor()), totals = gs, outs_again.clear();
    return grads;
  }
};

DepthGroup::DepthGroup(std::span<const DepthSource> sources, const Var& directions_SD, bool keeps_outs)
    : state_(std::make_shared<State>(DepthReaders(sources, directions_SD))), keeps_outs_(keeps_outs) {
  state_->first = state_->sources.forward({});
  state_->alphas.resize(static_cast<size_t>(directions_SD.size(0)));
  state_->gs = state_->totals = state_->alphas;
  ticket_ = record("depth_group", ticket(0), Inputs(DepthReaders::inputs(sources, directions_SD)),
                   [state = state_](const Tensor&, Wants) { return Grads(state->backward()); });
}

DepthMixVar DepthGroup::read(int64_t query, std::span<const DepthSource> own, const Var& direction,
                             bool wants_weights) {
  const auto q = static_cast<size_t>(query);
  WEFT_CHECK(q < state_->gs.size() && state_->first.outs[q].defined(),
             str("depth_mix: query ", query, " of a group of ", state_->gs.size()), "read each query once");
  Var directions = unsqueeze(direction, 0);
  DepthReaders kept(own, directions);
  Tensor h = std::exchange(state_->first.outs[q], Tensor()), own_weights, alpha;
  if (!own.empty()) {
    ops::DepthMix mixed = state_->read(h, query, kept);
    h = mixed.outs[0];
    own_weights = ops::contiguous(mixed.weights.slice(-1, 1, static_cast<int64_t>(own.size()) + 1));
    state_->alphas[q] = alpha = ops::contiguous(mixed.weights.slice(-1, 0, 1));
  }
  std::vector<Var> inputs;
  if (!own.empty()) inputs = DepthReaders::inputs(own, directions);
  inputs.push_back(ticket_);
  Var y = record("depth_read", h, Inputs(inputs),
                 [kept = std::move(kept), own_weights, h = Saved(keeps_outs_ ? h : Tensor()), state = state_, query](
                     const Tensor& g, Wants) {
                   const auto at = static_cast<size_t>(query);
                   state->gs[at] = g;
                   if (!state->is_whole()) {
                     const DType wide = state->first.lse.dtype();
                     Tensor out = h.get().defined() ? h.get() : state->out_again(query, kept);
                     state->totals[at] = ops::sum(ops::mul(ops::cast(g, wide), ops::cast(out, wide)), -1, true);
                   }
                   std::vector<Tensor> grads;
                   if (!kept.values.empty()) grads = kept.backward({&g, 1}, own_weights, {.totals = state->totals[at]});
                   grads.push_back(ticket(1));
                   return Grads(std::move(grads));
                 });
  if (!wants_weights) return {y, {}};
  Tensor weights = state_->first.weights.slice(-2, query, query + 1);
  if (own.empty()) return {y, weights.select(-2, 0)};
  return {y, ops::concatenate(std::vector<Tensor>{ops::mul(weights, alpha), own_weights}, -1).select(-2, 0)};
}

}  // namespace weft
