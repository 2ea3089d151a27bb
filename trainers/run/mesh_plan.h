// What a config's training needs on many ranks, before there are any: work and messages by the cost model (weft/distributed/step_cost.h), memory
// by a dry run of one rank's tokens. Attention other than softmax counts as work of each rank's own tokens; of what it sends, states of
// recurrences are known.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "trainers/config/config.h"
#include "trainers/run/memory_estimate.h"
#include "weft/data/document_lengths.h"
#include "weft/distributed/step_cost.h"

namespace weft::train {

// This machine as it is now, shared by ranks that are threads of one process: the peak rates of products and of copies, and what training
// reaches of them. Takes a second.
dist::Hardware hardware_here(DType compute, int ranks);

struct PlannedStep {
  dist::MeshChoice choice;
  dist::StepCost cost;
  int64_t bytes = 0;       // that a rank takes from the system
  int64_t peak_bytes = 0;  // of its tensors
  bool fits = false;
};

// What the config or its overrides say of parallel.*; what is not said there is open.
dist::FixedChoices fixed_choices(const config::Loaded& config);

struct MeshPlanOptions {
  dist::FixedChoices fixed = {};
  data::DocumentLengths documents =
      {};  // of packed rows, whose tokens see their own document only; empty: a row is one document
  // Above 0: the hardware is this machine, and rates of ranks are those that calibrate() finds with so many operations at a time.
  double calibration_flops = 0;
  int ranks_here = 1;  // that share this thread's number of threads then
};

class MeshPlan {
 public:
  // `vocab`: of the tokenizer, where the config does not set model.vocab.
  MeshPlan(const config::Loaded& config, int64_t vocab, dist::Hardware hardware, MeshPlanOptions options = {});

  const dist::TrainingShape& training() const { return planner_.training(); }
  const dist::Hardware& hardware() const { return planner_.hardware(); }
  dist::StepPlanner& planner() { return planner_; }
  const dist::FixedChoices& fixed() const { return options_.fixed; }
  double flops_per_token() const { return flops_per_token_; }     // of training
  int64_t num_other_layers() const { return num_other_layers_; }  // of which it is not known what they send

  PlannedStep step(const dist::MeshChoice& choice);
  // All choices for these ranks that the fixed ones allow: those that fit first, the fastest first among them, and of equal ones that with the
  // least memory.
  std::vector<PlannedStep> steps(int ranks);

 private:
  dist::TrainingShape shape_of(const config::Loaded& config);
  dist::StepPlanner planner_of(const config::Loaded& config, dist::Hardware hardware);
  const MemoryEstimate& memory(int context, int64_t micro_batch, bool recomputes);

  MeshPlanOptions options_;
  MemorySubject subject_;
  double flops_per_token_ = 0;
  int64_t num_other_layers_ = 0;
  dist::StepPlanner planner_;  // of what the members above say
  std::map<std::pair<int, bool>, MemoryEstimator> estimators_ = {};
  std::map<std::tuple<int, int64_t, bool>, MemoryEstimate> known_ = {};
};

}  // namespace weft::train
