// One optimiser step at a time: micro-batches, loss over the global count, clipping, guard, update.
#pragma once

#include <cstdint>
#include <vector>

#include "trainers/config/translate.h"
#include "trainers/run/guard.h"
#include "trainers/run/step_losses.h"
#include "weft/core/staging.h"
#include "weft/data/loader.h"

namespace weft::train {

struct TrainerOptions {
  Plan plan;
  ScheduleOptions schedule;
  double clip_norm = 0;
  GuardOptions guard = {};
  uint64_t seed = 1;
  bool keeps_documents_apart = false;
  bool overfits_one_batch = false;
  int64_t diagnostics_every = 0;  // steps; 0: never
  ops::AttentionBackend attention = ops::AttentionBackend::automatic;
};

struct StepResult {
  double loss = 0;       // nats per target of the step; 0 if no token has one
  double grad_norm = 0;  // before clipping
  double lr_factor = 0;
  int64_t num_targets = 0;
  int64_t num_bytes = 0;  // of the targets' texts
  double byte_nats = 0;   // loss summed over the targets that have bytes
  bool was_skipped = false;
  std::vector<std::pair<std::string, double>> diagnostics = {};  // by path, on the steps that take them
};

class Trainer {
 public:
  Trainer(LanguageModel& model, Optimizer& optimizer, const data::Loader& loader, TrainerOptions options,
          std::vector<int64_t> byte_lengths);

  // Error that names step and loss if it is not finite and no guard is on. A GPU is waited for once, for loss and gradient norm, besides
  // what layers wait for.
  // A step none of whose tokens has a target (documents of one token, padding) is a step like others: its loss and its auxiliary losses are 0, and
  // so are its gradients, which the optimiser applies (momenta go on, weights decay). Only the guard does not learn from it. A
  // micro-batch without targets in a step that has some adds nothing.
  StepResult step();
  int64_t num_steps() const { return step_; }
  int64_t num_tokens() const { return step_ * options_.plan.tokens_per_step; }
  int64_t num_skipped() const { return num_skipped_; }
  const Plan& plan() const { return options_.plan; }
  OutlierGuard& guard() { return guard_; }
  void resume_at(int64_t step, int64_t num_skipped);  // the data cursor is step * rows per step

 private:
  void count(const data::Batch& batch, StepResult& result) const;  // its targets and their bytes
  // What layers report goes to `diagnostics`, if that is given.
  void forward_backward(const data::Batch& batch, int64_t first_row, int64_t num_targets, bool ends_step,
                        std::vector<std::pair<std::string, double>>* diagnostics);

  LanguageModel& model_;
  Optimizer& optimizer_;
  const data::Loader& loader_;
  TrainerOptions options_;
  std::vector<int64_t> byte_lengths_;
  OutlierGuard guard_;
  std::vector<NamedParam> params_;
  std::vector<Var> leaves_;  // of params_
  Upload upload_;
  StepLosses losses_;
  int64_t step_ = 0, num_skipped_ = 0;
};

// The parameters of a model as an optimiser wants them.
std::vector<OptimizerParam> optimizer_params(const LanguageModel& model);

}  // namespace weft::train
