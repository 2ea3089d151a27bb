// How the ranks of a run share its sequences: the scheme and layout that the config names, or those that choose_scheme() finds where it says
// auto, and how equal their work is then.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "trainers/config/translate.h"
#include "weft/comm/communicator.h"
#include "weft/data/spread.h"

namespace weft::train {

struct ContextChoice {
  ParallelOptions parallel;               // with a scheme and a layout
  dist::SchemeOptions options = {};       // that go with a scheme which was chosen
  int ranks_per_node = 0;                 // of the machine, for options of a scheme that the config names; 0: all
  std::vector<int64_t> windows = {};      // of the model's calls of attention, each once; 0: all earlier tokens
  int64_t window = 0;                     // of all of them: SpreadOptions::window
  std::string reason = {};                // empty with one context rank
  std::vector<std::string> carries = {};  // of each kind of recurrence: how its states reach other ranks, and why

  data::SpreadOptions spread_options(bool keeps_documents_apart) const;
};

// What the choice depends on beside the config: the same on all ranks.
struct RankMachine {
  int ranks_per_node = 0;   // 0: all
  double device_bytes = 0;  // memory of a rank; 0: unknown, and no limit
};
RankMachine rank_machine(dist::Communicator& world);  // every rank calls it

// ConfigError if the config names a scheme that cannot run with the model's heads, or a layout of blocks that are too short for its
// recurrences: choose_context() asks too, this one before there is a run.
void check_context(const config::Loaded& config);
// ConfigError as of check_context(), also for blocks of a layout that was chosen.
ContextChoice choose_context(const config::Loaded& config, const RankMachine& machine);
// What the options say; a ring over zigzag where they leave it open.
ContextChoice as_said(const ParallelOptions& parallel);
// The config with what was chosen.
config::Loaded with_choice(const config::Loaded& config, const ContextChoice& choice);

// Lines for the start of a run of sequences of `tokens`: the reason, and for each window the work of the slowest rank. `documents`: of a sequence
// whose documents are kept apart, or empty.
std::vector<std::string> context_lines(const ContextChoice& choice, int64_t tokens, std::span<const int32_t> documents);

}  // namespace weft::train
