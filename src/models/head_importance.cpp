// Importance of heads by the gradient of a mask, and the loss without the least important ones (1905.10650).
#include <algorithm>
#include <cmath>
#include <functional>
#include <map>

#include "src/models/analysis_rows.h"
#include "weft/autograd/functions.h"
#include "weft/core/error.h"

namespace weft {

namespace {

// Of all ranks that share the rows.
double num_targets(const AnalysisRows& rows) {
  auto targets = rows.targets.to_vector<int32_t>();
  const TokenTable tokens(rows.tokens);
  int64_t here = 0;
  for (size_t i = 0; i < targets.size(); ++i) here += targets[i] >= 0 && !tokens.is_padding(static_cast<int64_t>(i));
  const double count = sum_of_ranks(rows, {static_cast<double>(here)})[0];
  WEFT_CHECK(count > 0, "analysis: rows without a target", "give the next token of each");
  return count;
}

// loss(0), loss(1), ..., each made by one of the ranks.
std::vector<double> shared_losses(dist::Communicator* comm, size_t count, const std::function<double(size_t)>& loss) {
  const size_t ranks = comm ? static_cast<size_t>(comm->size()) : 1,
               mine = comm ? static_cast<size_t>(comm->rank()) : 0;
  std::vector<double> losses(count, 0.0);
  for (size_t i = mine; i < count; i += ranks) losses[i] = loss(i);
  return sum_of_ranks(comm, std::move(losses));
}

}  // namespace

std::vector<double> sum_of_ranks(dist::Communicator* comm, std::vector<double> here) {
  if (!comm || comm->size() == 1 || here.empty()) return here;
  Tensor all =
      to(Tensor::from(std::span<const double>(here), {static_cast<int64_t>(here.size())}), default_device()).value();
  comm->all_reduce(all);
  return all.to_vector<double>();
}

std::vector<double> sum_of_ranks(const AnalysisRows& rows, std::vector<double> here) {
  return sum_of_ranks(rows.context ? rows.context->tokens : nullptr, std::move(here));
}

std::vector<HeadImportance> head_importance(LanguageModel& model, const AnalysisRows& rows) {
  std::vector<std::pair<std::string, Var>> masks;  // [B, 1, H, 1], in the order of the forward
  Probe probe;
  probe.heads = [&](std::string_view path, const Var& y_BTHV) {
    const DType wide = y_BTHV.dtype() == kF64 ? kF64 : kF32;
    Var mask = variable(Tensor::full({y_BTHV.size(0), 1, y_BTHV.size(2), 1}, 1, wide, y_BTHV.device()));
    masks.emplace_back(std::string(path), mask);
    return y_BTHV * cast(mask, y_BTHV.dtype());
  };
  const Recompute recompute = model.options().recompute;
  model.set_recompute(Recompute::none);  // a mask belongs to one forward
  Tokens tokens(rows.tokens, {.probe = &probe, .context = rows.context});
  backward(model.loss(rows.ids, rows.targets, tokens, 1 / num_targets(rows)).loss);
  model.clear_grads();
  model.set_recompute(recompute);

  std::vector<HeadImportance> all;
  for (auto& [path, mask] : masks) {
    const auto B = static_cast<size_t>(mask.size(0)), H = static_cast<size_t>(mask.size(2));
    HeadImportance layer{path, std::vector<double>(H, 0.0)};
    std::vector<double> here(B * H, 0.0);
    if (mask.grad().defined()) here = cast(Var(mask.grad()), kF64).value().to_vector<double>();
    const std::vector<double> grad = sum_of_ranks(rows, std::move(here));
    for (size_t i = 0; i < B * H; ++i) layer.heads[i % H] += std::abs(grad[i]);
    double square = 0;
    for (double x : layer.heads) square += x * x;
    for (double& x : layer.heads) x = square > 0 ? x / std::sqrt(square) : 0;
    all.push_back(std::move(layer));
  }
  return all;
}

std::vector<std::pair<double, double>> pruning_curve(LanguageModel& model, const AnalysisRows& rows,
                                                     const std::vector<HeadImportance>& importance,
                                                     dist::Communicator* comm) {
  struct Head {
    double importance;
    size_t layer, head;
  };
  std::vector<Head> order;
  for (size_t l = 0; l < importance.size(); ++l)
    for (size_t h = 0; h < importance[l].heads.size(); ++h) order.push_back({importance[l].heads[h], l, h});
  if (order.empty()) return {};
  std::stable_sort(order.begin(), order.end(),
                   [](const Head& a, const Head& b) { return a.importance < b.importance; });

  constexpr size_t kSteps = 10;
  auto gone_at = [&](size_t step) { return order.size() * step / kSteps; };
  const std::vector<double> losses = shared_losses(comm, kSteps + 1, [&](size_t step) {
    std::vector<Tensor> masks;
    for (const HeadImportance& layer : importance)
      masks.push_back(Tensor::full({static_cast<int64_t>(layer.heads.size()), 1}, 1, kF32, Device::cpu()));
    for (size_t i = 0; i < gone_at(step); ++i) masks[order[i].layer].mutable_data<float>()[order[i].head] = 0;
    size_t next = 0;
    Probe probe;
    probe.heads = [&](std::string_view, const Var& y_BTHV) {
      WEFT_CHECK(next < masks.size() && masks[next].size(0) == y_BTHV.size(2),
                 "pruning_curve: the importance is of another model", "take it from head_importance() of this one");
      return y_BTHV * cast(to(masks[next++], y_BTHV.device()), y_BTHV.dtype());
    };
    return analysis_loss(model, rows, probe);
  });
  std::vector<std::pair<double, double>> curve;
  for (size_t step = 0; step <= kSteps; ++step)
    curve.emplace_back(static_cast<double>(gone_at(step)) / static_cast<double>(order.size()), losses[step]);
  return curve;
}

double analysis_loss(LanguageModel& model, const AnalysisRows& rows, const Probe& probe) {
  const double factor = 1 / num_targets(rows);
  NoGrad no_grad;
  Tokens tokens(rows.tokens, {.probe = &probe, .context = rows.context});
  Var losses = model.loss(rows.ids, rows.targets, tokens, factor).losses;
  double sum = 0;
  for (double loss : cast(losses, kF64).value().to_vector<double>()) sum += loss;
  return sum_of_ranks(rows, {sum})[0] * factor;
}

std::vector<std::pair<std::string, double>> layer_sensitivity(LanguageModel& model, const AnalysisRows& rows,
                                                              dist::Communicator* comm) {
  std::vector<std::pair<std::string, double>> layers;
  Probe probe;
  probe.heads = [&](std::string_view path, const Var& y_BTHV) {
    if (layers.empty() || layers.back().first != path) layers.emplace_back(std::string(path), 0);
    return y_BTHV;
  };
  const double whole = analysis_loss(model, rows, probe);
  const std::vector<double> losses = shared_losses(comm, layers.size(), [&](size_t layer) {
    Probe without;
    without.heads = [&](std::string_view path, const Var& y_BTHV) {
      return path == layers[layer].first ? y_BTHV * 0.0 : y_BTHV;
    };
    return analysis_loss(model, rows, without);
  });
  for (size_t layer = 0; layer < layers.size(); ++layer) layers[layer].second = losses[layer] - whole;
  return layers;
}

}  // namespace weft
