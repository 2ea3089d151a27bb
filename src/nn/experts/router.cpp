#include "weft/nn/experts/router.h"

#include <cmath>

#include "weft/autograd/functions.h"
#include "weft/core/error.h"
#include "weft/nn/layers.h"

namespace weft {

namespace {

RouterOptions checked(const RouterOptions& o) {
  WEFT_CHECK(o.experts >= 1 && o.active >= 1 && o.active <= o.experts,
             str("router: ", o.active, " chosen of ", o.experts, " experts"), "choose between 1 and all of them");
  WEFT_CHECK(o.balance_loss >= 0 && o.z_loss >= 0, str("router: losses ", o.balance_loss, ", ", o.z_loss),
             "use 0 (none) or more");
  WEFT_CHECK(!o.has_noise || !o.has_fan_in_init, "router: noise beside weights that do not start at 0",
             "use one of noise and initial weights by fan-in");
  WEFT_CHECK(!o.has_running_load || o.balance != RouterBalance::per_row,
             "router: a running load beside a balance per row", "use balance load or normalised");
  return o;
}

// Standard normal numbers by (row of the step, position, expert), so that no layout of the step changes them.
Tensor noise(const Tokens& tokens, int64_t experts, DType dtype, Rng rng) {
  const int64_t B = tokens.batch(), T = tokens.num_tokens();
  std::span<const int32_t> positions = tokens.cpu_positions();
  Tensor out = Tensor::empty({B, T, experts}, kF32, Device::cpu());
  for (int64_t i = 0; i < B * T; ++i) {
    Rng of_row = rng[static_cast<uint64_t>(tokens.first_row() + i / T)];
    auto first = static_cast<uint64_t>(positions[static_cast<size_t>(i)]) * static_cast<uint64_t>(experts);
    for (int64_t e = 0; e < experts; ++e)
      out.mutable_data<float>()[i * experts + e] = of_row.normal(first + static_cast<uint64_t>(e));
  }
  return cast(Var(to(out, tokens.positions().device())), dtype).value();
}

}  // namespace

Var Routing::dense_weights() const { return scatter_add(probabilities_BTE.shape(), -1, chosen_BTK, weights_BTK); }

Router::Router(const RouterOptions& options, int64_t dim, int64_t layers, double std, Rng rng)
    : o_(checked(options)), share_(1.0 / static_cast<double>(layers)) {
  if (dim > 0) {
    const Shape shape{o_.experts, dim};
    const double bound = 1 / std::sqrt(static_cast<double>(dim));
    weight_ = std::make_unique<Param>(o_.has_fan_in_init ? uniform_init(shape, rng["weight"], bound)
                                                         : normal_init(shape, rng["weight"], o_.has_noise ? 0 : std));
    name_part({"weight", *weight_});
  }
  if (o_.has_noise) {
    WEFT_CHECK(dim > 0, "router: noise without a projection", "give logits that are noisy already");
    noise_ = std::make_unique<Param>(Tensor::zeros({o_.experts, dim}, kF32));
    name_part({"noise", *noise_});
  }
  if (o_.has_running_load) {
    double even = static_cast<double>(o_.active) / static_cast<double>(o_.experts);
    load_ = std::make_unique<Buffer>(Tensor::full({o_.experts}, even));
    name_part({"load", *load_});
  }
}

Routing Router::operator()(const Var& x_BTD, Tokens& tokens) {
  Scope scope(name());
  const DType wide = x_BTD.dtype() == kF64 ? kF64 : kF32;  // near-ties must not flip with the kernel
  Var x = cast(x_BTD, wide), logits = linear(x, cast(Var(*weight_), wide));
  if (noise_ && tokens.is_training()) {
    Var std = softplus(linear(x, cast(Var(*noise_), wide))) + 0.01;
    logits = logits + std * Var(noise(tokens, o_.experts, wide, tokens.random("noise")));
  }
  return choose(logits, tokens);
}

Routing Router::choose(const Var& logits_BTE, Tokens& tokens) {
  Routing r;
  r.probabilities_BTE = softmax(logits_BTE);
  TopKVar top = topk(r.probabilities_BTE, o_.active);
  r.chosen_BTK = top.indices;
  Var total = sum(top.values, -1, true);
  switch (o_.weights) {
    case RouterWeights::raw: r.weights_BTK = top.values; break;
    case RouterWeights::renorm: r.weights_BTK = top.values / total; break;
    case RouterWeights::renorm_detached: r.weights_BTK = top.values / total.detach(); break;
    case RouterWeights::renorm_scaled: r.weights_BTK = top.values * static_cast<double>(o_.active) / total; break;
    case RouterWeights::hard: r.weights_BTK = top.values - top.values.detach() + 1.0; break;
  }
  if (tokens.is_training()) add_losses(r, logits_BTE, tokens);
  if (tokens.takes_reports()) {
    NoGrad no_grad;
    Var ones = Tensor::full(r.weights_BTK.shape(), 1, logits_BTE.dtype(), logits_BTE.device());
    tokens.report_means("load", scatter_add(logits_BTE.shape(), -1, r.chosen_BTK, ones));
    Var p = r.probabilities_BTE, log_p = logits_BTE - unsqueeze(logsumexp(logits_BTE), -1);
    tokens.report_means("entropy", -sum(p * log_p, -1, true));
    tokens.report_means("top_probability", slice(top.values, -1, 0, 1));
  }
  return r;
}

// P and f are means over the same tokens of the whole micro-batch before they meet: a product of means of its parts is another loss.
// Padding is in none of them; of a micro-batch or row that holds nothing else the losses are 0.
void Router::add_losses(const Routing& r, const Var& logits_BTE, Tokens& tokens) {
  const DType wide = logits_BTE.dtype();
  const auto E = static_cast<double>(o_.experts);
  auto at_least_one = [](const Var& x) { return maximum(x, Tensor::full({}, 1, x.dtype(), x.device())); };
  const Var num_tokens = tokens.num_counted(), count = at_least_one(cast(num_tokens, wide));
  Var one_BT1 = unsqueeze(cast(Var(tokens.counted()), wide), -1);
  Var hits_BTE = scatter_add(r.probabilities_BTE.shape(), -1, r.chosen_BTK, expand(one_BT1, r.weights_BTK.shape()));
  hits_BTE = hits_BTE.detach();
  if (load_) tokens.accumulate(*load_, tokens.sum(hits_BTE), num_tokens);
  if (o_.z_loss > 0) {
    Var z = tokens.sum(unsqueeze(square(logsumexp(logits_BTE)), -1)) / count;
    tokens.add_loss("z_loss", sum_all(z), o_.z_loss * share_);
  }
  if (o_.balance_loss == 0) return;
  Var loss;
  if (o_.balance == RouterBalance::per_row) {
    const Var n_B1 = at_least_one(tokens.sum(one_BT1, Over::row));
    const Var of_rows_BE = tokens.sum(hits_BTE, Over::row) / n_B1 * (tokens.sum(r.probabilities_BTE, Over::row) / n_B1);
    // Rows are those of all ranks of the micro-batch: each token brings its part of its row.
    const Var part_BT1 = one_BT1 / unsqueeze(n_B1, 1);
    const Var rows = at_least_one(sum_all(tokens.sum(part_BT1)));  // with a token
    loss = sum_all(tokens.sum(part_BT1 * unsqueeze(of_rows_BE, 1))) / rows * (E / static_cast<double>(o_.active));
  } else {
    Var load_E = load_ ? cast(Var(load_->value()), wide) : tokens.sum(hits_BTE) / count;
    loss = sum_all(load_E * tokens.sum(r.probabilities_BTE) / count) * E;
    if (o_.balance == RouterBalance::normalised) loss = loss * (1.0 / static_cast<double>(o_.active));
  }
  tokens.add_loss("balance_loss", loss, o_.balance_loss * share_);
}

}  // namespace weft
