// Tasks of recall by the names that `weft eval --tasks`, and `eval` and metrics of a grid, ask for.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainers/config/config.h"
#include "weft/data/recall.h"

namespace weft::train {

// "mqar", "copy" and so on for whole kinds, "overwrite", "selective_copy" and so on for one form of a kind.
std::vector<std::string> task_names();

inline constexpr int64_t kUnknownVocab = int64_t{1} << 30;  // that of a text is known when its tokenizer is

// The task of such a name: as the run's config has it if its own task is one, or else with defaults, in the ids below `vocab`.
data::RecallOptions named_task(const std::string& name, const config::Data& of_run, int64_t vocab);

// How a command or a file asks for a task, and for the length of its rows.
struct TaskWords {
  std::string task = "--tasks ", length = "--lengths ";
};
// Its rows. ConfigError that names the task, the length and what would be long enough.
data::RecallTask rows_of(const std::string& name, const data::RecallOptions& options, int64_t length,
                         const TaskWords& words = {});

}  // namespace weft::train
