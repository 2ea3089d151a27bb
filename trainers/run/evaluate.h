// Losses of a model over a run's validation data, and rows of it to analyse a model on.
#pragma once

#include <functional>

#include "trainers/run/data.h"
#include "weft/models/analysis.h"
#include "weft/training/evaluate.h"

namespace weft::train {

class Team;

struct ValidationOptions {
  int64_t length = 0;        // of the windows, tokens
  int64_t batch = 1;         // windows that a rank takes at a time
  int64_t max_tokens = 0;    // 0: all
  bool by_position = false;  // fills in Evaluation::positions
  ops::AttentionBackend attention = ops::AttentionBackend::automatic;
  std::function<void(int64_t done, int64_t total)> progress = {};  // on every rank; an exception breaks it off
};
// `team`: ranks that share the windows, and tokens of each window if there are context ranks. All of them call it and have the result: that of
// one rank, but for the order of sums.
Evaluation validate(LanguageModel& model, const RunData& data, const ValidationOptions& options, const Team* team);

// The first `rows` validation windows, or fewer if there are fewer full ones, for weft/models/analysis.h. Of a team's context ranks each has
// its tokens of them; Team::others() share the forwards.
AnalysisRows analysis_rows(const RunData& data, int64_t context, int64_t rows, const Team* team = nullptr);
bool has_targets(const AnalysisRows& rows);  // on any rank that shares them: analyses want one at least

}  // namespace weft::train
