// What a config's training needs on many ranks, before there are any: work and messages by the cost model (weft/distributed/step_cost.h), memory
// by a dry run of one rank's tokens and one of a scheme's call. Of the choices that are looked at closely, memory and messages are those of a dry
// run of a rank that is spread so, which knows every mixer. Attention other than softmax counts as work of each rank's own tokens.
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
  bool is_dry_run =
      false;  // memory and messages are those of a rank's dry run; otherwise a plan's sums, up to a seventh off
};

// What the config or its overrides say of parallel.*; what is not said there is open.
dist::FixedChoices fixed_choices(const config::Loaded& config);

struct MeshPlanOptions {
  dist::FixedChoices fixed = {};
  data::DocumentLengths documents =
      {};  // of packed rows, whose tokens see their own document only; empty: a row is one document
  // Above 0: the hardware is this machine, and rates of ranks are those that calibrate() finds with about so many operations.
  double calibration_flops = 0;
  // Above 0: ranks are threads of this process. They share its threads, or each has what train.threads says.
  int ranks_here = 0;
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
  // The same with a dry run of the choice: Error if the model cannot be spread so.
  PlannedStep dry_step(const dist::MeshChoice& choice);
  // All choices for these ranks that the fixed ones allow: those that fit first, the fastest first among them, and of equal ones that with the
  // least memory. The first `dry_runs` of them are looked at closely, and what such a look finds impossible is left out.
  std::vector<PlannedStep> steps(int ranks, size_t dry_runs = 0);
  const std::string& teacher_note() const {
    return teacher_note_;
  }  // what is assumed of a teacher that is not here, or ""
  // Why choices were left out, each reason once.
  const std::vector<std::string>& reasons() const { return reasons_; }

 private:
  int threads_of_rank(const config::Loaded& config) const;
  dist::TrainingShape shape_of(const config::Loaded& config);
  dist::StepPlanner planner_of(const config::Loaded& config, dist::Hardware hardware);
  MemorySubject planned_subject(const config::Loaded& config, int64_t vocab);
  void calibrate_here(dist::TrainingShape& shape, dist::Hardware& hardware, int64_t rows) const;
  const MemoryEstimate& memory(int context, int64_t micro_batch, bool recomputes);
  MemoryEstimate dry_run(const dist::MeshChoice& choice) const;
  double more_for_states(const dist::MeshChoice& choice) const;

  MeshPlanOptions options_;
  std::string teacher_note_ = {};
  int threads_ = 1;  // of a rank, by which states of recurrences travel this way or that
  MemorySubject subject_;
  double flops_per_token_ = 0;
  int64_t num_other_layers_ = 0;
  dist::StepPlanner planner_;  // of what the members above say
  std::map<std::pair<int, bool>, MemoryEstimator> estimators_ = {};
  std::map<std::tuple<int, int64_t, bool>, MemoryEstimate> known_ = {};
  std::vector<std::string> reasons_ = {};
};

}  // namespace weft::train
