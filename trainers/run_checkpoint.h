// Saving and restoring everything a run needs to continue bit for bit.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "trainers/trainer.h"
#include "weft/io/checkpoint.h"

namespace weft::train {

// Besides what Trainer, model and optimiser hold.
struct RunProgress {
  double time_s = 0;
  std::optional<double> best_val = {};
  int64_t best_step = -1;
};

class RunCheckpoints {
 public:
  RunCheckpoints(std::string folder, io::Retention retention, LanguageModel& model, Optimizer& optimizer,
                 Trainer& trainer, std::string config_text, uint64_t seed);

  void save(const RunProgress& progress);  // of the trainer's step; then prunes
  // The newest good checkpoint, if there is one; `messages` says which damaged ones were passed over.
  std::optional<RunProgress> restore_latest(std::vector<std::string>& messages);
  RunProgress restore(const std::string& checkpoint_folder);
  int64_t last_saved() const { return last_saved_; }  // step, -1 before the first

 private:
  RunProgress apply(const io::Checkpoint& checkpoint);

  std::string folder_;
  io::Retention retention_;
  LanguageModel& model_;
  Optimizer& optimizer_;
  Trainer& trainer_;
  std::string config_text_;
  uint64_t seed_;
  int64_t last_saved_ = -1;
};

// Weights of a file into a model; Error that lists missing, unexpected and wrongly shaped tensors.
void load_weights(LanguageModel& model, const io::SafetensorsFile& file);

}  // namespace weft::train
