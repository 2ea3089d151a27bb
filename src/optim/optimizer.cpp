#include "weft/optim/optimizer.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "weft/core/error.h"
#include "weft/core/pattern.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/optim.h"
#include "weft/ops/reduce.h"

namespace weft {

static constexpr const char* kNumSteps = ".num_steps";

namespace {

bool takes(const ParamGroup& group, const OptimizerParam& param) {
  return matches_pattern(group.match, param.name) && (group.num_dims == 0 || group.num_dims == param.value.num_dims());
}

bool is_schedule_free(const ParamGroup& group) { return std::holds_alternative<ScheduleFreeOptions>(group.algorithm); }

// Of a parameter that ranks share: whether all of it, or nothing of it, is updated here; and what is.
bool is_whole(const OptimizerParam& p) { return p.end < 0; }
bool is_elsewhere(const OptimizerParam& p) { return p.end >= 0 && p.begin == p.end; }
Tensor part_of(const Tensor& whole, const OptimizerParam& p) {
  return is_whole(p) ? whole : whole.reshape({-1}).slice(0, p.begin, p.end);
}
Tensor part_of_grad(const Tensor& grad, const OptimizerParam& p) {
  return grad.num_elements() == p.value.num_elements() ? part_of(grad, p) : grad;
}

struct Moments {
  bool has_first = true, has_second = false;
};
Moments moments_of(const ParamGroup& group) {
  if (const auto* sgd = std::get_if<SgdOptions>(&group.algorithm)) return {.has_first = sgd->momentum > 0};
  return {.has_second = std::holds_alternative<AdamWOptions>(group.algorithm) || is_schedule_free(group)};
}

using Tensors = std::vector<ops::OptimTensors>;

std::string rates_name(size_t group) { return str("group.", group, ".rates"); }

void refresh_working(OptimizerParam& param) {
  if (!param.working.defined()) return;
  Tensor working = param.working.tensor();
  ops::copy_(working, param.value);
  param.working.note(param.value);
}

void update(Tensors& group, const AdamWOptions& o, double lr_factor, double grad_factor, int64_t step,
            double /*average*/) {
  ops::adamw_(group, {.lr = o.lr * lr_factor,
                      .beta1 = o.beta1,
                      .beta2 = o.beta2,
                      .eps = o.eps,
                      .weight_decay = o.weight_decay,
                      .step = step,
                      .grad_scale = grad_factor});
}
// The rate with the bias correction of the second moment.
double corrected_lr(const ScheduleFreeOptions& o, double lr_factor, int64_t step) {
  return o.lr * lr_factor * std::sqrt(1 - std::pow(o.beta2, static_cast<double>(step)));
}
void update(Tensors& group, const ScheduleFreeOptions& o, double lr_factor, double grad_factor, int64_t step,
            double average) {
  ops::schedule_free_adamw_(group, {.lr = corrected_lr(o, lr_factor, step),
                                    .beta1 = o.beta1,
                                    .beta2 = o.beta2,
                                    .eps = o.eps,
                                    .weight_decay = o.weight_decay,
                                    .average = average,
                                    .grad_scale = grad_factor});
}
void update(Tensors& group, const MuonOptions& o, double lr_factor, double grad_factor, int64_t /*step*/,
            double /*average*/) {
  ops::muon_(group, {.lr = o.lr * lr_factor,
                     .momentum = o.momentum,
                     .weight_decay = o.weight_decay,
                     .is_nesterov = o.is_nesterov,
                     .num_iterations = o.num_iterations,
                     .grad_scale = grad_factor});
}
void update(Tensors& group, const LionOptions& o, double lr_factor, double grad_factor, int64_t /*step*/,
            double /*average*/) {
  ops::lion_(group, {.lr = o.lr * lr_factor,
                     .beta1 = o.beta1,
                     .beta2 = o.beta2,
                     .weight_decay = o.weight_decay,
                     .grad_scale = grad_factor});
}
void update(Tensors& group, const SgdOptions& o, double lr_factor, double grad_factor, int64_t /*step*/,
            double /*average*/) {
  ops::sgd_(group, {.lr = o.lr * lr_factor,
                    .momentum = o.momentum,
                    .weight_decay = o.weight_decay,
                    .is_nesterov = o.is_nesterov,
                    .grad_scale = grad_factor});
}

}  // namespace

size_t group_of(std::span<const ParamGroup> groups, const OptimizerParam& param) {
  size_t g = 0;
  while (g < groups.size() && !takes(groups[g], param)) ++g;
  return g;
}

Tensor Optimizer::moments_for(size_t param, bool is_kept) const {
  const OptimizerParam& p = params_[param];
  if (!is_kept || is_elsewhere(p)) return {};
  return Tensor::zeros(part_of(p.value, p).shape(), p.value.dtype(), p.value.device());
}

Optimizer::Optimizer(std::vector<ParamGroup> groups, std::vector<OptimizerParam> params,
                     std::function<void()> fetch_parts)
    : groups_(std::move(groups)),
      params_(std::move(params)),
      num_updates_(params_.size()),
      fetch_parts_(std::move(fetch_parts)) {
  MemoryTag tag("optimiser");
  for (size_t i = 0; i < groups_.size(); ++i)
    if (groups_[i].name.empty()) groups_[i].name = str(i);
  for (const OptimizerParam& param : params_) {
    WEFT_CHECK((param.value.dtype() == kF32 || param.value.dtype() == kF64) && param.value.is_contiguous(),
               str("optimizer: ", param.name, " is ", param.value), "masters are row-major f32, or f64");
    const size_t g = weft::group_of(groups_, param);
    WEFT_CHECK(g < groups_.size(), str("optimizer: no group matches ", param.name, " ", param.value),
               "end the groups with one that matches \"*\"");
    bool is_muon = std::holds_alternative<MuonOptions>(groups_[g].algorithm);
    WEFT_CHECK(!is_muon || param.value.num_dims() == 2,
               str("optimizer: group ", groups_[g].name, " (", groups_[g].match, ") gives ", param.name, " ",
                   param.value, " to Muon"),
               "Muon takes matrices: set the group's num_dims to 2 (rank: 2 in a config), or narrow its pattern");
    const auto* free = std::get_if<ScheduleFreeOptions>(&groups_[g].algorithm);
    WEFT_CHECK(!free || (free->beta1 > 0 && free->beta1 < 1),
               str("optimizer: group ", groups_[g].name, " is schedule-free with beta1 ", free ? free->beta1 : 0),
               "use a beta1 in (0, 1): at 0 there is no average in the point of training");
    WEFT_CHECK(
        !is_muon || is_whole(param) || is_elsewhere(param),
        str("optimizer: Muon is given elements ", param.begin, " to ", param.end, " of ", param.name, " ", param.value),
        "give the whole matrix to one rank");
    const size_t i = group_of_.size();
    group_of_.push_back(g);
    const Moments moments = moments_of(groups_[g]);
    moment1_.push_back(moments_for(i, moments.has_first));
    moment2_.push_back(moments_for(i, moments.has_second));
  }
  for (const ParamGroup& group : groups_)
    rates_.push_back(is_schedule_free(group) ? Tensor::zeros({1}, kF64, Device::cpu()) : Tensor());
}

double Optimizer::lr(size_t group) const {
  return std::visit([](const auto& options) { return options.lr; }, groups_[group].algorithm);
}

void Optimizer::step(std::span<const Tensor> grads, double lr_factor, double grad_factor) {
  WEFT_CHECK(grads.size() == params_.size(),
             str("optimizer: ", grads.size(), " gradients for ", params_.size(), " parameters"),
             "pass one per parameter, undefined where there is none");
  WEFT_CHECK(std::isfinite(lr_factor) && lr_factor >= 0 && std::isfinite(grad_factor),
             str("optimizer: lr_factor is ", lr_factor, ", grad_factor ", grad_factor),
             "use finite factors, and a rate that is not negative");
  WEFT_CHECK(points_.empty(), "optimizer: step() while the parameters show their averages",
             "end AveragedWeights before the next step");
  ++num_steps_;
  for (size_t g = 0; g < groups_.size(); ++g) {
    const auto* free = std::get_if<ScheduleFreeOptions>(&groups_[g].algorithm);
    std::map<int64_t, Tensors> by_updates;  // one entry, unless some parameters had no gradient before
    for (size_t i = 0; i < params_.size(); ++i) {
      const OptimizerParam& p = params_[i];
      if (group_of_[i] != g || !grads[i].defined()) continue;
      const int64_t updates = ++num_updates_[i];
      if (is_elsewhere(p)) continue;
      const Tensor value = part_of(p.value, p);
      if (free && updates == 1) ops::copy_(moment1_[i], value);
      const bool counts = moment2_[i].defined();  // for its bias correction
      by_updates[counts ? updates : 0].push_back(
          {value, part_of_grad(grads[i], p), moment1_[i], moment2_[i], is_whole(p) ? p.working.tensor() : Tensor()});
    }
    double average = 0;
    if (free) {
      const double square = std::pow(corrected_lr(*free, lr_factor, num_steps_), 2);
      double& sum = rates_[g].mutable_data<double>()[0];
      sum += square;
      average = sum > 0 ? std::min(square / sum, 1.0) : 0;
    }
    for (auto& [step, group] : by_updates)
      std::visit([&, step = step, group = &group](
                     const auto& options) { update(*group, options, lr_factor, grad_factor, step, average); },
                 groups_[g].algorithm);
    for (size_t i = 0; i < params_.size(); ++i)
      if (group_of_[i] == g && grads[i].defined() && is_whole(params_[i]) && params_[i].working.defined())
        params_[i].working.note(params_[i].value);
  }
  if (fetch_parts_) fetch_parts_();
}

std::vector<std::pair<std::string, Tensor>> Optimizer::state() const {
  std::vector<std::pair<std::string, Tensor>> state;
  for (size_t i = 0; i < params_.size(); ++i) {
    if (moment1_[i].defined()) state.emplace_back(params_[i].name + ".moment1", moment1_[i]);
    if (moment2_[i].defined()) state.emplace_back(params_[i].name + ".moment2", moment2_[i]);
    if (is_schedule_free(groups_[group_of_[i]]))
      state.emplace_back(params_[i].name + ".point", points_.empty() ? params_[i].value : points_[i]);
    if (num_updates_[i] != num_steps_)
      state.emplace_back(params_[i].name + kNumSteps, Tensor::from({num_updates_[i]}, {1}));
  }
  for (size_t g = 0; g < groups_.size(); ++g)
    if (rates_[g].defined()) state.emplace_back(rates_name(g), rates_[g]);
  return state;
}

void Optimizer::load_state(std::span<const std::pair<std::string, Tensor>> state, int64_t num_steps) {
  std::map<std::string_view, const Tensor*> found;
  for (const auto& [name, tensor] : state) found.emplace(name, &tensor);
  std::vector<std::pair<Tensor, Tensor>> copies;
  size_t num_counts = 0, num_tensors = 0;
  std::vector<int64_t> num_updates(params_.size(), num_steps);
  auto expect = [&](const std::string& name, const Tensor& like) -> const Tensor& {
    ++num_tensors;
    auto at = found.find(name);
    WEFT_CHECK(at != found.end(), str("optimizer: the state has no ", name),
               "load a checkpoint of the same model and optimiser groups");
    WEFT_CHECK(at->second->shape() == like.shape() && at->second->dtype() == like.dtype(),
               str("optimizer: ", name, " is ", *at->second, " in the state, ", like, " here"),
               "load a checkpoint of the same model");
    return *at->second;
  };
  for (size_t i = 0; i < params_.size(); ++i) {
    const OptimizerParam& p = params_[i];
    const ParamGroup& group = groups_[group_of_[i]];
    auto expect_moment = [&](const char* name, const Tensor& here, bool is_kept) {
      if (!is_kept) return;
      const Tensor& whole = expect(p.name + name, p.value);
      if (here.defined()) copies.emplace_back(here, part_of(whole, p));
    };
    expect_moment(".moment1", moment1_[i], moments_of(group).has_first);
    expect_moment(".moment2", moment2_[i], moments_of(group).has_second);
    if (is_schedule_free(group)) copies.emplace_back(p.value, expect(p.name + ".point", p.value));
    const std::string name = params_[i].name + kNumSteps;
    if (auto at = found.find(name); at != found.end()) {
      const Tensor& count = *at->second;
      WEFT_CHECK(count.dtype() == kI64 && count.num_elements() == 1, str("optimizer: ", name, " is ", count),
                 "load a checkpoint that this optimiser saved");
      num_updates[i] = count.to_vector<int64_t>()[0];
      ++num_counts;
    }
  }
  for (size_t g = 0; g < groups_.size(); ++g)
    if (rates_[g].defined()) copies.emplace_back(rates_[g], expect(rates_name(g), rates_[g]));
  WEFT_CHECK(state.size() == num_tensors + num_counts,
             str("optimizer: ", state.size(), " tensors in the state, ", num_tensors + num_counts, " here"),
             "load a checkpoint of the same model and optimiser groups");
  for (auto& [to, from] : copies) ops::copy_(to, from);
  for (size_t i = 0; i < params_.size(); ++i)
    if (is_schedule_free(groups_[group_of_[i]])) refresh_working(params_[i]);
  num_updates_ = std::move(num_updates);
  num_steps_ = num_steps;
}

bool Optimizer::show_averages() {
  if (!points_.empty() || std::none_of(groups_.begin(), groups_.end(), is_schedule_free)) return false;
  MemoryTag tag("optimiser");
  points_.resize(params_.size());
  for (size_t i = 0; i < params_.size(); ++i) {
    const auto* free = std::get_if<ScheduleFreeOptions>(&groups_[group_of_[i]].algorithm);
    if (!free) continue;
    OptimizerParam& p = params_[i];
    points_[i] = ops::clone(p.value);
    if (num_updates_[i] == 0 || is_elsewhere(p)) continue;  // in the first case all three are one
    Tensor value = part_of(p.value, p);
    ops::copy_(value, ops::schedule_free_average(value, moment1_[i], free->beta1));
  }
  if (fetch_parts_) fetch_parts_();
  for (size_t i = 0; i < params_.size(); ++i)
    if (points_[i].defined()) refresh_working(params_[i]);
  return true;
}

void Optimizer::show_points() {
  for (size_t i = 0; i < params_.size(); ++i) {
    if (!points_[i].defined()) continue;
    ops::copy_(params_[i].value, points_[i]);
    refresh_working(params_[i]);
  }
  points_.clear();
}

AveragedWeights::AveragedWeights(AnyOptimizer& optimizer) {
  if (optimizer.show_averages()) optimizer_ = &optimizer;
}
AveragedWeights::~AveragedWeights() {
  if (optimizer_) optimizer_->show_points();
}

double global_norm(std::span<const Tensor> grads) {
  std::vector<Tensor> there;
  for (const Tensor& grad : grads)
    if (grad.defined()) there.push_back(grad);
  return std::sqrt(ops::sum_of_squares(there));
}

double clip_factor(double norm, double max_norm) {
  WEFT_CHECK(std::isfinite(norm) && norm >= 0, str("clip_factor: the norm is ", norm),
             "skip this update: its gradients are not finite; set_anomaly_mode(true) names the op that made them so");
  WEFT_CHECK(max_norm >= 0, str("clip_factor: max_norm is ", max_norm), "use a positive bound, or 0 for none");
  return max_norm > 0 && norm > max_norm ? max_norm / norm : 1;
}

}  // namespace weft
