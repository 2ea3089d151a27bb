// What a Training holds, and the parts of a step.
#pragma once

#include "src/training/step_losses.h"
#include "weft/training/training.h"

namespace weft {

struct Training::State {
  State(Module& trained, TokenLoss its_loss, TrainingOptions its_options);
  ~State();
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  struct Rows {
    int64_t micro_batch, first;  // its number, and its first row among all samples
    bool is_last;
  };
  StepResult begin();
  TokensOptions tokens_options(int64_t micro_batch) const;
  void forward_backward(const data::Batch& batch, const Rows& rows, StepResult& result);
  void finish(StepResult& result, bool is_sample);
  void update(std::span<const Tensor> grads, const StepResult& result);
  void check_params() const;
  EvaluateOptions evaluate_options(int64_t max_tokens) const;

  Module& model;
  TokenLoss loss;
  TrainingOptions options;
  OutlierGuard guard;
  std::vector<NamedParam> params;
  std::vector<NamedBuffer> buffers;
  std::vector<Tensor> masters;  // of what is trained, as the optimiser has them
  std::vector<Var> leaves;      // of the same parameters
  std::unique_ptr<AnyOptimizer> optimizer;
  std::vector<GradHook> hooks;
  Upload upload;
  StepLosses losses;
  int64_t rows_at_once = 1;  // of an evaluation: as many as a forward of the last step took
  int64_t step = 0, num_samples = 0, num_tokens = 0, num_skipped = 0;
};

}  // namespace weft
