// Ranks that train one model together. The first leads: it alone reads signals and the clock, writes files and speaks, and tells the others
// what to do next. So all ranks run the same exchanges, whatever happens on one of them.
#pragma once

#include <memory>
#include <string>

#include "trainers/config/translate.h"
#include "weft/comm/communicator.h"
#include "weft/nn/context_group.h"

namespace weft::train {

enum class Duty : int32_t { start, restore, step, save, end };

class Team {
 public:
  // Rank d * context + c of `world` has part c of the sequences of data rank d. Every rank makes one.
  Team(dist::Communicator& world, const ParallelOptions& parallel);

  dist::Communicator& world() { return world_; }
  bool leads() const { return world_.rank() == 0; }
  int context_rank() const { return context_->rank(); }
  const ParallelOptions& parallel() const { return parallel_; }
  const ContextGroup& context() const { return group_; }

  // Of the first rank: what all others do next. `text` of Duty::restore: the checkpoint's folder.
  void tell(Duty duty, const std::string& text = {});
  struct Told {
    Duty duty;
    std::string text;
  };
  Told hear();  // of the others: waits for it

 private:
  std::string exchanged(const std::string& text, int64_t length);

  dist::Communicator& world_;
  ParallelOptions parallel_;
  std::unique_ptr<dist::Communicator> context_;
  ContextGroup group_;
};

// What a rank that does not lead does until the training ends: data, model and steps as those of the first one.
void follow(Team& team, const config::Loaded& config, const std::string& run_folder);

// Error unless `ranks`, which "--ranks 4" or "mpirun started 4 ranks" made, are those of the config.
void check_ranks(const config::Loaded& config, int ranks, const std::string& started_by);

}  // namespace weft::train
