// Importance of heads by the gradient of a mask, and the loss without the least important ones (1905.10650).
#include <algorithm>
#include <cmath>
#include <map>

#include "weft/autograd/functions.h"
#include "weft/core/error.h"
#include "weft/models/analysis.h"

namespace weft {

namespace {

int64_t num_targets(const AnalysisRows& rows) {
  auto targets = rows.targets.to_vector<int32_t>();
  const Tokens tokens(rows.tokens);
  int64_t count = 0;
  for (size_t i = 0; i < targets.size(); ++i) count += targets[i] >= 0 && !tokens.is_padding(static_cast<int64_t>(i));
  WEFT_CHECK(count > 0, "analysis: rows without a target", "give the next token of each");
  return count;
}

double loss_of(LanguageModel& model, const AnalysisRows& rows, const Probe& probe) {
  const double factor = 1 / static_cast<double>(num_targets(rows));
  NoGrad no_grad;
  Tokens tokens(rows.tokens, {.probe = &probe});
  Var losses = model.loss(rows.ids, rows.targets, tokens, factor).losses;
  double sum = 0;
  for (double loss : cast(losses, kF64).value().to_vector<double>()) sum += loss;
  return sum * factor;
}

}  // namespace

std::vector<HeadImportance> head_importance(LanguageModel& model, const AnalysisRows& rows) {
  std::vector<std::pair<std::string, Var>> masks;  // [B, 1, H, 1], in the order of the forward
  Probe probe;
  probe.heads = [&](std::string_view path, const Var& y_BTHV) {
    Var mask = variable(Tensor::full({y_BTHV.size(0), 1, y_BTHV.size(2), 1}, 1, kF32, y_BTHV.device()));
    masks.emplace_back(std::string(path), mask);
    return y_BTHV * cast(mask, y_BTHV.dtype());
  };
  const Recompute recompute = model.options().recompute;
  model.set_recompute(Recompute::none);  // a mask belongs to one forward
  Tokens tokens(rows.tokens, {.probe = &probe});
  Var loss = model.loss(rows.ids, rows.targets, tokens, 1 / static_cast<double>(num_targets(rows))).loss;
  backward(loss);
  model.clear_grads();
  model.set_recompute(recompute);

  std::vector<HeadImportance> all;
  for (auto& [path, mask] : masks) {
    const auto B = static_cast<size_t>(mask.size(0)), H = static_cast<size_t>(mask.size(2));
    HeadImportance layer{path, std::vector<double>(H, 0.0)};
    if (mask.grad().defined()) {
      auto grad = mask.grad().to_vector<float>();
      for (size_t i = 0; i < B * H; ++i) layer.heads[i % H] += std::abs(static_cast<double>(grad[i]));
    }
    double square = 0;
    for (double x : layer.heads) square += x * x;
    for (double& x : layer.heads) x = square > 0 ? x / std::sqrt(square) : 0;
    all.push_back(std::move(layer));
  }
  return all;
}

std::vector<std::pair<double, double>> pruning_curve(LanguageModel& model, const AnalysisRows& rows,
                                                     const std::vector<HeadImportance>& importance) {
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
  std::vector<std::pair<double, double>> curve;
  for (size_t step = 0; step <= kSteps; ++step) {
    std::vector<Tensor> masks;
    for (const HeadImportance& layer : importance)
      masks.push_back(Tensor::full({static_cast<int64_t>(layer.heads.size()), 1}, 1, kF32, Device::cpu()));
    const size_t gone = order.size() * step / kSteps;
    for (size_t i = 0; i < gone; ++i) masks[order[i].layer].mutable_data<float>()[order[i].head] = 0;
    size_t next = 0;
    Probe probe;
    probe.heads = [&](std::string_view, const Var& y_BTHV) {
      WEFT_CHECK(next < masks.size() && masks[next].size(0) == y_BTHV.size(2),
                 "pruning_curve: the importance is of another model", "take it from head_importance() of this one");
      return y_BTHV * cast(to(masks[next++], y_BTHV.device()), y_BTHV.dtype());
    };
    curve.emplace_back(static_cast<double>(gone) / static_cast<double>(order.size()), loss_of(model, rows, probe));
  }
  return curve;
}

std::vector<std::pair<std::string, double>> layer_sensitivity(LanguageModel& model, const AnalysisRows& rows) {
  std::vector<std::pair<std::string, double>> layers;
  Probe probe;
  probe.heads = [&](std::string_view path, const Var& y_BTHV) {
    if (layers.empty() || layers.back().first != path) layers.emplace_back(std::string(path), 0);
    return y_BTHV;
  };
  const double whole = loss_of(model, rows, probe);
  for (auto& [silent, more] : layers) {
    Probe without;
    without.heads = [&, &silent = silent](std::string_view path, const Var& y_BTHV) {
      return path == silent ? y_BTHV * 0.0 : y_BTHV;
    };
    more = loss_of(model, rows, without) - whole;
  }
  return layers;
}

}  // namespace weft
