// Training of a small module whose batches and losses the caller makes: toy tasks and synthetic tasks.
#pragma once

#include <memory>
#include <vector>

#include "weft/nn/module.h"
#include "weft/optim/optimizer.h"

namespace weft {

class SmallTraining {
 public:
  SmallTraining(Module& module, const AdamWOptions& options) : module_(module) {
    std::vector<OptimizerParam> params;
    for (const NamedParam& p : module.params()) params.push_back({p.name, p.param->value(), p.param->working()});
    optimizer_ = std::make_unique<Optimizer>(std::vector<ParamGroup>{{.algorithm = options}}, std::move(params));
  }

  // One update, gradients clipped to norm 1; returns the loss.
  double step(const Var& loss, double lr_factor = 1) {
    backward(loss);
    std::vector<Tensor> grads;
    for (const NamedParam& p : module_.params()) grads.push_back(p.param->grad());
    optimizer_->step(grads, lr_factor, clip_factor(global_norm(grads), 1));
    module_.clear_grads();
    return loss.value().item();
  }

 private:
  Module& module_;
  std::unique_ptr<Optimizer> optimizer_;
};

}  // namespace weft
