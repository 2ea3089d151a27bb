// Rows of the recall tasks, one at a time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "weft/core/rng.h"
#include "weft/data/recall.h"

namespace weft::data::recall {

struct RecallRow {
  explicit RecallRow(int64_t context)
      : ids(static_cast<size_t>(context)), targets(ids.size(), -1), groups(ids.size(), -1) {}

  void expect(int64_t position, int32_t target, int64_t group) {
    targets[static_cast<size_t>(position)] = target;
    groups[static_cast<size_t>(position)] = static_cast<int32_t>(group);
  }

  std::vector<int32_t> ids, targets, groups;
  std::vector<int32_t> content = {};  // what has to be remembered: its hash decides the split
};

// `index` of the row: what goes round evenly, such as depths, follows it.
RecallRow draw(const MqarOptions& options, int64_t context, int64_t index, Rng rng);
RecallRow draw(const CopyOptions& options, int64_t context, int64_t index, Rng rng);
RecallRow draw(const InductionOptions& options, int64_t context, int64_t index, Rng rng);
RecallRow draw(const NeedleOptions& options, int64_t context, int64_t index, Rng rng);
RecallRow draw(const StateOptions& options, int64_t context, int64_t index, Rng rng);

// Error if the task does not go into rows of that length, or its numbers do not go together.
void check(const MqarOptions& options, int64_t context);
void check(const CopyOptions& options, int64_t context);
void check(const InductionOptions& options, int64_t context);
void check(const NeedleOptions& options, int64_t context);
void check(const StateOptions& options, int64_t context);

std::vector<std::string> group_names(const MqarOptions& options, int64_t context);
std::vector<std::string> group_names(const CopyOptions& options, int64_t context);
std::vector<std::string> group_names(const InductionOptions& options, int64_t context);
std::vector<std::string> group_names(const NeedleOptions& options, int64_t context);
std::vector<std::string> group_names(const StateOptions& options, int64_t context);

int64_t num_elements(const StateOptions& options);  // of the group

constexpr int32_t kNeedleDigits = 4, kNeedleWords = 14, kNeedleNoise = 78;  // the first ids of each

}  // namespace weft::data::recall
