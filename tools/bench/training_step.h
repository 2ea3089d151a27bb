// One model with its optimiser and a batch of random tokens: what benchmarks of whole training steps run.
#pragma once

#include <memory>
#include <vector>

#include "weft/models/language_model.h"
#include "weft/ops/elementwise.h"
#include "weft/optim/optimizer.h"

namespace weft::bench {

struct StepShape {
  const char* text;
  int64_t layers, dim, heads, tokens, vocab, batch;
};

// GPT-2 shaped: LayerNorm in front, GELU 4d, tied head; learned positions, or what `position` says.
inline LanguageModelOptions gpt2_options(const StepShape& s, PositionKind position = PositionKind::learned) {
  return {.vocab = s.vocab,
          .dim = s.dim,
          .layers = s.layers,
          .context = s.tokens,
          .norm = {NormKind::layer, 1e-5},
          .position = position,
          .mixers = {SoftmaxOptions{.heads = s.heads}},
          .ffn = {.kind = FfnKind::gelu}};
}

class TrainingStep {
 public:
  TrainingStep(const LanguageModelOptions& o, int64_t batch, DType compute) : model_(o, Rng(1)) {
    model_.set_compute(compute);
    std::vector<OptimizerParam> params;
    for (const NamedParam& p : model_.params()) {
      params_.push_back(p.param);
      params.push_back({p.name, p.param->value(), p.param->working()});
    }
    optimizer_ = std::make_unique<Optimizer>(std::vector<ParamGroup>{{}}, std::move(params));
    ids_ = Tensor::empty({batch, o.context}, kI32, Device::cpu());
    targets_ = Tensor::empty({batch, o.context}, kI32, Device::cpu());
    for (int64_t i = 0; i < ids_.num_elements(); ++i) {
      auto draw = [&](uint64_t seed) {
        return static_cast<int32_t>(Rng(seed).below(static_cast<uint64_t>(o.vocab), static_cast<uint64_t>(i)));
      };
      ids_.mutable_data<int32_t>()[i] = draw(1);
      targets_.mutable_data<int32_t>()[i] = draw(2);
    }
    ids_ = ops::to(ids_, default_device());
    targets_ = ops::to(targets_, default_device());
    flops_ = model_.flops_per_token() * static_cast<double>(ids_.num_elements());
  }

  // The batch is taken `micro_batches` times.
  double run(bool takes_diagnostics = false, int micro_batches = 1) {
    double sum = 0;
    for (int i = 0; i < micro_batches; ++i) {
      Tokens tokens(plain_tokens(ids_.size(0), ids_.size(1)),
                    {.is_training = true, .takes_diagnostics = takes_diagnostics});
      const double weight = 1.0 / (static_cast<double>(ids_.num_elements()) * micro_batches);
      Var loss = model_.loss(ids_, targets_, tokens, weight).loss;
      backward(loss, {}, {.ends_step = i + 1 == micro_batches});
      sum += loss.value().item();
    }
    std::vector<Tensor> grads;
    for (Param* p : params_) grads.push_back(p->grad());
    optimizer_->step(grads, 1, clip_factor(global_norm(grads), 1));
    for (Param* p : params_) p->clear_grad();
    return sum;
  }
  int64_t num_params() const { return model_.num_params(); }
  double flops() const { return flops_; }
  int64_t num_tokens() const { return ids_.num_elements(); }

 private:
  LanguageModel model_;
  std::vector<Param*> params_;
  std::unique_ptr<Optimizer> optimizer_;
  Tensor ids_, targets_;
  double flops_ = 0;
};

inline std::string rounded(double x) { return str(static_cast<int64_t>(x + 0.5)); }

}  // namespace weft::bench
