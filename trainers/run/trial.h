// A training with the sizes of a run and ids that mean nothing: to run dry, for its memory and messages, or for a few steps, for their time.
#pragma once

#include <memory>
#include <optional>

#include "trainers/config/config.h"
#include "trainers/run/trainer.h"
#include "weft/comm/dry_ranks.h"

namespace weft::train {

// What memory, messages and times depend on.
struct MemorySubject {
  LanguageModelOptions model;
  DType compute = kF32;
  std::vector<ParamGroup> groups = {};
  int64_t rows_per_step = 1;  // sequences
  bool clips = true;
  bool keeps_documents_apart = false;
  bool counts_bytes = false;       // bits per byte beside the loss
  bool takes_diagnostics = false;  // in some steps
  ops::AttentionBackend attention = ops::AttentionBackend::automatic;
  ParallelOptions parallel = {};  // of several ranks: what the first one has
  StartOptions start = {};        // what is frozen, and the loss from a teacher
  std::optional<LanguageModelOptions> teacher = {};
};
// `source`: of a teacher, as in trainers/run/start_model.h.
MemorySubject memory_subject(const config::Loaded& config, int64_t num_ids, bool keeps_documents_apart,
                             const std::string& source = {});

class TrialTraining {
 public:
  // `ids`: of the one row that is trained on, context + 1 of them. `team`: of several ranks, each of which makes one and calls the same steps;
  // without it the others of subject.parallel do not exist, and it can only run dry. `samples`: trained on in place of the ids.
  TrialTraining(const MemorySubject& subject, int64_t micro_batch, int64_t micro_batches, std::vector<int32_t> ids,
                Team* team = nullptr, data::SampleSource samples = {});

  const LanguageModel& model() const { return *model_; }
  int64_t num_trained() const;  // parameters that are not frozen
  void start();                 // what the training takes beside the model
  void step();
  int64_t bytes_sent() const { return world_ ? world_->bytes_sent() : 0; }

 private:
  const MemorySubject& subject_;
  TrainerOptions options_;
  std::unique_ptr<dist::DryCommunicator> world_;  // of ranks that do not exist
  std::unique_ptr<LanguageModel> model_, teacher_;
  data::Loader loader_;
  data::SampleSource samples_;
  std::unique_ptr<Team> dry_team_;
  Team* team_ = nullptr;
  std::unique_ptr<Trainer> trainer_;
};

}  // namespace weft::train
