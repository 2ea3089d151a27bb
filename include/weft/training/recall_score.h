// How much of a recall task a model gets right.
//   RecallScore score = score_recall(model, data::RecallTask(data::MqarOptions(), 64, 1), /*rows=*/256);
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "weft/data/recall.h"
#include "weft/models/language_model.h"

namespace weft {

struct HitCount {
  int64_t targets = 0, hits = 0;  // a hit: the most likely id is the target
  double share() const { return targets ? static_cast<double>(hits) / static_cast<double>(targets) : 0; }
};

struct RecallScore {
  int64_t rows = 0, whole_rows = 0;  // whole: every target of the row is a hit
  HitCount all;
  double nats = 0;                                            // mean loss per target
  double standard_error = 0;                                  // of all.share(), over rows; NaN of one row
  std::vector<std::pair<std::string, HitCount>> groups = {};  // in the order of group_names(); those with targets
  std::vector<HitCount> by_row = {};
};

// Of the first `rows` test rows, `batch` at a time (0: by their size). The model has at least the task's ids, and no learned positions for
// fewer tokens. The model reads what it would read in a training: earlier answers stand in the row.
RecallScore score_recall(LanguageModel& model, const data::RecallTask& task, int64_t rows, int64_t batch = 0);

}  // namespace weft
