#include "weft/optim/optimizer.h"

#include <cmath>

#include "weft/core/error.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/optim.h"
#include "weft/ops/reduce.h"

namespace weft {

bool matches_pattern(std::string_view pattern, std::string_view text) {
  // Greedy with one step back to the last star: linear in practice, no recursion.
  size_t p = 0, t = 0, star = std::string_view::npos, mark = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      mark = t;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t])) {
      ++p;
      ++t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++mark;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

Optimizer::Optimizer(std::vector<ParamGroup> groups, std::vector<OptimizerParam> params)
    : groups_(std::move(groups)), params_(std::move(params)) {
  MemoryTag tag("optimiser");
  for (size_t i = 0; i < groups_.size(); ++i)
    if (groups_[i].name.empty()) groups_[i].name = str(i);
  for (const OptimizerParam& param : params_) {
    WEFT_CHECK(param.value.dtype() == kF32 && param.value.is_contiguous(),
               str("optimizer: ", param.name, " is ", param.value), "masters are row-major f32");
    size_t g = 0;
    while (g < groups_.size() && !(matches_pattern(groups_[g].match, param.name) &&
                                   (groups_[g].num_dims == 0 || groups_[g].num_dims == param.value.num_dims())))
      ++g;
    WEFT_CHECK(g < groups_.size(), str("optimizer: no group matches ", param.name, " ", param.value),
               "end the groups with one that matches \"*\"");
    bool is_muon = std::holds_alternative<MuonOptions>(groups_[g].algorithm);
    WEFT_CHECK(!is_muon || param.value.num_dims() == 2,
               str("optimizer: group ", groups_[g].name, " (", groups_[g].match, ") gives ", param.name, " ",
                   param.value, " to Muon"),
               "Muon takes matrices: set rank: 2 in the group, or narrow its pattern");
    group_of_.push_back(g);
    moment1_.push_back(Tensor::zeros(param.value.shape(), kF32, param.value.device()));
    moment2_.push_back(is_muon ? Tensor() : Tensor::zeros(param.value.shape(), kF32, param.value.device()));
  }
}

double Optimizer::lr(size_t group) const {
  return std::visit([](const auto& options) { return options.lr; }, groups_[group].algorithm);
}

void Optimizer::step(std::span<const Tensor> grads, double lr_factor, double grad_factor) {
  WEFT_CHECK(grads.size() == params_.size(),
             str("optimizer: ", grads.size(), " gradients for ", params_.size(), " parameters"),
             "pass one per parameter, undefined where there is none");
  ++num_steps_;
  for (size_t g = 0; g < groups_.size(); ++g) {
    std::vector<ops::OptimTensors> group;
    for (size_t i = 0; i < params_.size(); ++i)
      if (group_of_[i] == g && grads[i].defined())
        group.push_back({params_[i].value, grads[i], moment1_[i], moment2_[i], params_[i].working});
    const auto& algorithm = groups_[g].algorithm;
    if (const auto* adamw = std::get_if<AdamWOptions>(&algorithm)) {
      ops::adamw_(group, {.lr = adamw->lr * lr_factor,
                          .beta1 = adamw->beta1,
                          .beta2 = adamw->beta2,
                          .eps = adamw->eps,
                          .weight_decay = adamw->weight_decay,
                          .step = num_steps_,
                          .grad_scale = grad_factor});
    } else {
      const auto& muon = std::get<MuonOptions>(algorithm);
      ops::muon_(group, {.lr = muon.lr * lr_factor,
                         .momentum = muon.momentum,
                         .weight_decay = muon.weight_decay,
                         .is_nesterov = muon.is_nesterov,
                         .num_iterations = muon.num_iterations,
                         .grad_scale = grad_factor});
    }
  }
}

std::vector<std::pair<std::string, Tensor>> Optimizer::state() const {
  std::vector<std::pair<std::string, Tensor>> state;
  for (size_t i = 0; i < params_.size(); ++i) {
    state.emplace_back(params_[i].name + ".moment1", moment1_[i]);
    if (moment2_[i].defined()) state.emplace_back(params_[i].name + ".moment2", moment2_[i]);
  }
  return state;
}

void Optimizer::load_state(std::span<const std::pair<std::string, Tensor>> state, int64_t num_steps) {
  std::vector<std::pair<std::string, Tensor>> mine = this->state();
  for (auto& [name, tensor] : mine) {
    const Tensor* found = nullptr;
    for (const auto& [other, value] : state)
      if (other == name) found = &value;
    WEFT_CHECK(found, str("optimizer: the state has no ", name),
               "load a checkpoint of the same model and optimiser groups");
    WEFT_CHECK(found->shape() == tensor.shape() && found->dtype() == tensor.dtype(),
               str("optimizer: ", name, " is ", *found, " in the state, ", tensor, " here"),
               "load a checkpoint of the same model");
  }
  WEFT_CHECK(state.size() == mine.size(),
             str("optimizer: ", state.size(), " tensors in the state, ", mine.size(), " here"),
             "load a checkpoint of the same model and optimiser groups");
  for (auto& [name, tensor] : mine)
    for (const auto& [other, value] : state)
      if (other == name) ops::copy_(tensor, value);
  num_steps_ = num_steps;
}

double global_norm(std::span<const Tensor> grads) {
  std::vector<Tensor> there;
  for (const Tensor& grad : grads)
    if (grad.defined()) there.push_back(grad);
  return std::sqrt(ops::sum_of_squares(there));
}

double clip_factor(double norm, double max_norm) { return max_norm > 0 && norm > max_norm ? max_norm / norm : 1; }

}  // namespace weft
