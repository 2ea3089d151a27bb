// The training of a run: the sizes of its steps, its samples in their order, and the step of weft/training/training.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "trainers/config/translate.h"
#include "trainers/run/data.h"
#include "trainers/run/team.h"
#include "weft/data/loader.h"
#include "weft/data/spread.h"
#include "weft/training/training.h"

namespace weft::train {

struct TrainerOptions {
  StepSizes sizes;
  std::vector<ParamGroup> groups = {};
  ScheduleOptions schedule;
  double clip_norm = 0;
  GuardOptions guard = {};
  uint64_t seed = 1;
  bool keeps_documents_apart = false;
  bool overfits_one_batch = false;
  int64_t diagnostics_every = 0;  // steps; 0: never
  std::vector<int64_t> byte_lengths = {};
  ops::AttentionBackend attention = ops::AttentionBackend::automatic;
  TokenLoss loss = {};  // empty: the model's own
};

TrainerOptions trainer_options(const config::Experiment& experiment, const RunData& data, TokenLoss loss = {});

class Trainer {
 public:
  // `team`: of several ranks, each of which makes one and calls the same steps.
  Trainer(LanguageModel& model, data::SampleSource samples, const TrainerOptions& options, Team* team = nullptr);
  Trainer(LanguageModel& model, const data::Loader& loader, const TrainerOptions& options, Team* team = nullptr);

  StepResult step();
  // Loss over the validation data, or the first `max_tokens` of it (0: all), with averaged weights where the optimiser keeps some. All ranks
  // share the windows, and have the result. Stopped where a signal breaks it off, on all ranks.
  Evaluation validate(const RunData& data, int64_t max_tokens);
  // analyse() of weft/models/analysis.h on the first validation rows, with averaged weights. All ranks share its forwards and the tokens of
  // each row, as in a step, and have the result. Nothing where no token of the rows has a target.
  std::vector<std::pair<std::string, double>> analyse(const RunData& data);
  std::string save(const std::string& folder, const std::string& state, const std::string& config);  // its path
  int64_t num_steps() const { return training_.num_steps(); }
  int64_t num_tokens() const { return num_steps() * sizes_.tokens_per_step; }
  int64_t num_skipped() const { return training_.num_skipped(); }
  const StepSizes& sizes() const { return sizes_; }
  Training& training() { return training_; }
  const Training& training() const { return training_; }
  Optimizer& optimizer() { return static_cast<Optimizer&>(training_.optimizer()); }
  const Optimizer& optimizer() const { return static_cast<const Optimizer&>(training_.optimizer()); }
  const OutlierGuard& guard() const { return training_.guard(); }

 private:
  LanguageModel& model_;
  data::SampleSource samples_;
  StepSizes sizes_;
  ops::AttentionBackend attention_;
  bool overfits_one_batch_;
  Team* team_;
  std::optional<data::SpreadOptions> spread_;  // of tokens over context ranks
  Training training_;
};

}  // namespace weft::train
