// Ranks that train one model together. The first leads: it alone reads signals and the clock, writes files and speaks, and tells the others
// what to do next. So all ranks run the same exchanges, whatever happens on one of them.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "trainers/run/context_choice.h"
#include "weft/comm/communicator.h"
#include "weft/data/spread.h"
#include "weft/nn/context_group.h"

namespace weft {
class Repeating;
}

namespace weft::train {

enum class Duty : int32_t { wait, start, restore, step, validate, analyse, save, end };

class Team {
 public:
  // Rank d * context + c of `world` has part c of the sequences of data rank d. Every rank makes one.
  Team(dist::Communicator& world, const ContextChoice& choice);
  // `context`: the ranks that share this one's sequences.
  Team(dist::Communicator& world, std::unique_ptr<dist::Communicator> context, const ContextChoice& choice);

  dist::Communicator& world() const { return world_; }
  bool leads() const { return world_.rank() == 0; }
  int context_rank() const { return context_->rank(); }
  int ranks_here() const { return ranks_here_; }  // that take their memory from where this one does
  const ParallelOptions& parallel() const { return choice_.parallel; }
  const ContextChoice& choice() const { return choice_; }
  const ContextGroup& context() const { return group_; }
  // For forwards that other data ranks do not run at the same time: the ranks that share this one's rows alone.
  const ContextGroup& rows() const { return rows_; }
  // The ranks with the same part of other rows. Every rank calls it the first time.
  dist::Communicator& others();
  // How the tokens of a row are dealt to context ranks; nothing if each rank has whole rows.
  std::optional<data::SpreadOptions> spread(bool keeps_documents_apart) const;
  bool on_any_rank(bool is_so);  // every rank calls it

  // Of the first rank: what all others do next. `text` of Duty::start: what find_start() gave; of Duty::restore: the checkpoint's folder; of
  // Duty::validate: the number of tokens.
  void tell(Duty duty, const std::string& text = {});
  struct Told {
    Duty duty;
    std::string text;
  };
  Told hear();  // of the others: waits for it, and for longer than the time-out only while Duty::wait comes

  // While the first rank does what the others have no part in, however long it takes: it lets them hear of it from time to time, so that who
  // waits for longer than the time-out waits for a rank that is gone. Of no team, or one of a single rank, it does nothing.
  class Errand {
   public:
    explicit Errand(Team* team);
    ~Errand();
    Errand(const Errand&) = delete;
    Errand& operator=(const Errand&) = delete;

   private:
    std::unique_ptr<Repeating> signs_;
  };

 private:
  std::string exchanged(const std::string& text, int64_t length);

  dist::Communicator& world_;
  ContextChoice choice_;
  std::unique_ptr<dist::Communicator> context_, others_;
  ContextGroup group_, rows_;
  int ranks_here_ = 1;
};

// What a rank that does not lead does until the training ends: data, model and steps as those of the first one.
void follow(Team& team, const config::Loaded& config, const std::string& run_folder);

// Error unless `ranks`, which "--ranks 4" or "mpirun started 4 ranks" made, are those of the config.
void check_ranks(const config::Loaded& config, int ranks, const std::string& started_by);

}  // namespace weft::train
