// What a config's training needs on many ranks, before there are any: work and messages by the cost model (weft/distributed/step_cost.h), memory
// by a dry run of one rank's tokens. Attention other than softmax counts as work of each rank's own tokens; what it sends is not known.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "trainers/config/config.h"
#include "trainers/run/memory_estimate.h"
#include "weft/distributed/step_cost.h"

namespace weft::train {

// This machine as it is now, shared by ranks that are threads of one process: the peak rates of products and of copies, and what training
// reaches of them. Takes a second.
dist::Hardware hardware_here(DType compute, int ranks);

struct PlannedStep {
  dist::MeshChoice choice;
  dist::StepCost cost;
  int64_t bytes = 0;  // of one rank, at its peak
  bool fits = false;
};

class MeshPlan {
 public:
  // `vocab`: of the tokenizer, where the config does not set model.vocab. zero 1: ranks share the optimiser's moments; 2: and gradients.
  MeshPlan(const config::Loaded& config, int64_t vocab, dist::Hardware hardware, int zero = 0);

  const dist::TrainingShape& training() const { return training_; }
  const dist::Hardware& hardware() const { return hardware_; }
  double flops_per_token() const { return flops_per_token_; }     // of training
  int64_t num_other_layers() const { return num_other_layers_; }  // whose attention is not softmax

  PlannedStep step(const dist::MeshChoice& choice);
  // All choices for these ranks: those that fit first, the fastest first among them, and of equal ones that with the least memory.
  std::vector<PlannedStep> steps(int ranks);

 private:
  const MemoryEstimate& memory(int context, int64_t micro_batch, bool recomputes);

  MemorySubject subject_;
  dist::TrainingShape training_;
  dist::Hardware hardware_;
  int zero_ = 0;
  double flops_per_token_ = 0;
  int64_t num_other_layers_ = 0;
  std::map<std::pair<int, bool>, MemoryEstimator> estimators_ = {};
  std::map<std::tuple<int, int64_t, bool>, MemoryEstimate> known_ = {};
};

}  // namespace weft::train
