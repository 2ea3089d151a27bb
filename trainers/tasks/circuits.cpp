#include "trainers/tasks/circuits.h"

#include <cmath>

#include "trainers/tasks/regression.h"
#include "weft/autograd/functions.h"
#include "weft/training/training.h"

namespace weft::tasks {

namespace {

std::vector<double> numbers_of(Param& weight) {
  return cast(Var(weight.value()), kF64).value().cpu().to_vector<double>();
}

// Positions [B, T] from `first` on.
ops::AttentionTokens tokens_from(int64_t first, int64_t B, int64_t T, Device device) {
  std::vector<int32_t> positions;
  for (int64_t i = 0; i < B * T; ++i) positions.push_back(static_cast<int32_t>(first + i % T));
  return {to(Tensor::from(std::span<const int32_t>(positions), {B, T}), device).value(), {}};
}

// The pairs but the last as tokens, the last as the query.
struct PairBatch {
  Tensor pairs, queries, y;  // [B, n, C], [B, 1, C], [B]
};
PairBatch pairs_of(const RegressionBatch& batch) {
  const int64_t B = batch.x.size(0), n = batch.x.size(1) - 1;
  const Var y = unsqueeze(Var(batch.y), -1);
  const Var both[] = {batch.x, y}, query[] = {slice(Var(batch.x), 1, n, n + 1), slice(y, 1, n, n + 1) * 0.0};
  return {slice(concatenate(both, -1), 1, 0, n).value(), concatenate(query, -1).value(),
          reshape(slice(y, 1, n, n + 1), {B}).value()};
}

double mean_square(const std::vector<double>& predictions, const RegressionBatch& batch) {
  const auto y = batch.y.to_vector<float>();
  const auto pairs = static_cast<size_t>(batch.y.size(1));
  const size_t each = predictions.size() == y.size() ? pairs : 1, rows = y.size() / pairs;
  double sum = 0;
  for (size_t r = 0; r < rows; ++r)
    sum += std::pow(predictions[r * each + each - 1] - static_cast<double>(y[r * pairs + pairs - 1]), 2);
  return sum / static_cast<double>(rows);
}

}  // namespace

PairHeads::PairHeads(int64_t width, int64_t heads, Rng rng)
    : heads_(heads),
      numbers_(width + 1),
      q_(numbers_, heads * numbers_, rng["q"], {.std = 0.3 / std::sqrt(static_cast<double>(numbers_))}),
      k_(numbers_, heads * numbers_, rng["k"], {.std = 0.3 / std::sqrt(static_cast<double>(numbers_))}),
      v_(numbers_, heads * numbers_, rng["v"], {.std = 0.3 / std::sqrt(static_cast<double>(numbers_))}),
      out_(heads * numbers_, 1, rng["out"], {.std = 0.3 / std::sqrt(static_cast<double>(numbers_))}) {
  name_parts({{"q", q_}, {"k", k_}, {"v", v_}, {"out", out_}});
}

Var PairHeads::operator()(const Var& pairs_BnC, const Var& queries_B1C) const {
  const int64_t B = pairs_BnC.size(0), n = pairs_BnC.size(1);
  auto heads = [&](const Linear& map, const Var& x) { return split_heads(map(x), heads_); };
  ops::AttentionOptions all;
  all.mask.is_causal = false;
  const Device device = pairs_BnC.device();
  Var y_B1HC = attend(heads(q_, queries_B1C), heads(k_, pairs_BnC), heads(v_, pairs_BnC), tokens_from(n, B, 1, device),
                      tokens_from(0, B, n, device), all)[0];
  return reshape(out_(merge_heads(y_B1HC)), {B});
}

std::vector<HeadPattern> PairHeads::patterns() {
  const auto C = static_cast<size_t>(numbers_);
  const std::vector<double> q = numbers_of(q_.weight()), k = numbers_of(k_.weight()), v = numbers_of(v_.weight()),
                            out = numbers_of(out_.weight());
  std::vector<HeadPattern> all;
  for (size_t h = 0; h < static_cast<size_t>(heads_); ++h) {
    HeadPattern head{std::vector<double>(C * C), std::vector<double>(C)};
    for (size_t m = h * C; m < (h + 1) * C; ++m)
      for (size_t i = 0; i < C; ++i) {
        head.ov[i] += out[m] * v[m * C + i];
        for (size_t j = 0; j < C; ++j)
          head.kq[i * C + j] += k[m * C + i] * q[m * C + j] / std::sqrt(static_cast<double>(C));
      }
    all.push_back(std::move(head));
  }
  return all;
}

Figures pattern_figures(std::span<const HeadPattern> heads, int64_t width) {
  const auto d = static_cast<size_t>(width), C = d + 1;
  double diagonal = 0, of_kq = 0, on_y = 0, of_ov = 0, sum = 0, sizes = 0, agreeing = 0;
  for (const HeadPattern& head : heads) {
    double trace = 0;
    for (size_t c = 0; c < d; ++c) trace += head.kq[c * C + c];
    const double omega = trace / static_cast<double>(d), mu = head.ov[d];
    diagonal += static_cast<double>(d) * omega * omega;
    // The query's y is 0: the last column is never read.
    for (size_t i = 0; i < C; ++i)
      for (size_t j = 0; j < d; ++j) of_kq += head.kq[i * C + j] * head.kq[i * C + j];
    for (double x : head.ov) of_ov += x * x;
    on_y += mu * mu, sum += mu, sizes += std::abs(mu);
    if ((mu > 0) == (omega > 0)) agreeing += std::abs(mu);
  }
  auto share = [](double part, double whole) { return whole > 0 ? part / whole : 0; };
  return {{"KQ on the diagonal", share(diagonal, of_kq)},
          {"OV on y", share(on_y, of_ov)},
          {"sum of OV", share(std::abs(sum), sizes)},
          {"signs agree", share(agreeing, sizes)}};
}

Figures circuits(int64_t heads, const Options& options) {
  RegressionSizes sizes;
  if (options.tokens > 0) sizes.pairs = options.tokens;
  ++sizes.pairs;  // the query
  const int64_t B = options.batch ? options.batch : 128, steps = options.steps ? options.steps : 3000;
  PairHeads model(sizes.width, heads, Rng(options.seed)["weights"]);
  const AdamWOptions adamw{.lr = options.lr > 0 ? options.lr : 1e-2, .beta2 = 0.99, .weight_decay = 0};
  Training training(model, {}, {.groups = {{.algorithm = adamw}}, .lr_factor = falling(steps), .clip_norm = 1});
  const Rng rows = Rng(options.seed)["regression"];
  auto there = [](const Tensor& x) { return to(x, default_device()); };
  for (int64_t step = 0; step < steps; ++step) {
    const PairBatch batch = pairs_of(regression_batch(step * B, B, sizes, rows));
    training.step(1, [&](const MicroBatch&) {
      return mean_all(square(model(there(batch.pairs), there(batch.queries)) - there(batch.y)));
    });
  }
  constexpr int64_t kRows = 2048;
  const RegressionBatch test = regression_batch(0, kRows, sizes, Rng(options.seed)["rows that were not trained on"]);
  const PairBatch batch = pairs_of(test);
  NoGrad no_grad;
  const auto out = model(there(batch.pairs), there(batch.queries)).value().cpu().to_vector<float>();
  const double own = mean_square({out.begin(), out.end()}, test), step = mean_square(gradient_step(test, sizes), test);
  Figures figures{{"squared error", own},
                  {"of a gradient step", step},
                  {"of ridge", mean_square(ridge(test, sizes), test)},
                  {"gap to the step", own - step}};
  for (const auto& figure : pattern_figures(model.patterns(), sizes.width)) figures.push_back(figure);
  return figures;
}

}  // namespace weft::tasks
