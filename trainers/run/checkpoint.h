// Saving and restoring everything a run needs to continue bit for bit.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "trainers/run/data_identity.h"
#include "trainers/run/recorder.h"
#include "trainers/run/trainer.h"
#include "weft/io/checkpoint.h"

namespace weft::train {

// Besides what the Trainer holds.
struct RunProgress {
  double time_s = 0;
  std::optional<double> best_val = {};
  int64_t best_step = -1;
  LineSums line = {};
};

class RunCheckpoints {
 public:
  RunCheckpoints(std::string folder, io::Retention retention, Trainer& trainer, std::string config_text, uint64_t seed,
                 std::shared_ptr<const DataIdentity> data);

  // Of the trainer's step; then prunes, while the others of the team hear that this takes time. Returns a warning if numbers in it are not
  // finite, otherwise "".
  std::string save(const RunProgress& progress, Team* team);
  void prune(const RunProgress& progress);
  // The newest good checkpoint, if there is one; `messages` says which damaged ones were passed over.
  std::optional<RunProgress> restore_latest(std::vector<std::string>& messages);
  // A named one, of this run or of another.
  RunProgress restore(const std::string& checkpoint_folder);
  // Makes the restored step the one that every later start continues from: what this folder has beyond it, or of another line of training,
  // is set aside. Returns where it is.
  std::vector<std::string> settle(const RunProgress& progress);
  const std::string& restored() const { return restored_; }  // path of the checkpoint; "" before
  int64_t last_saved() const { return last_saved_; }         // step, -1 before the first

 private:
  RunProgress apply(const io::Checkpoint& checkpoint);
  std::string store(const RunProgress& progress);  // saves; returns the path

  std::string folder_;
  io::Retention retention_;
  Trainer& trainer_;
  std::string config_text_;
  uint64_t seed_;
  std::shared_ptr<const DataIdentity> data_;
  int64_t last_saved_ = -1;
  std::string restored_;
  bool is_foreign_ = false;  // restored from another folder
  std::vector<std::string> taken_over_ = {};
};

// Checkpoints of other folders that the training of this one went on from.
std::vector<std::string> taken_over_by(const std::string& checkpoint_folder);

// Model, optimiser and counts of a checkpoint.
void restore_trainer(Trainer& trainer, const io::Checkpoint& checkpoint);

// "" if all numbers of a checkpoint in `folder` are finite; otherwise a warning that names the newest one whose numbers are.
std::string finite_warning(const io::CheckpointInfo& info, const std::string& folder);

}  // namespace weft::train
