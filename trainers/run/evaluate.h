// Rows of a run's validation data to analyse a model on.
#pragma once

#include "trainers/run/data.h"
#include "weft/models/analysis.h"
#include "weft/training/evaluate.h"

namespace weft::train {

// The first `rows` validation windows, or fewer if there are fewer full ones, for weft/models/analysis.h.
AnalysisRows analysis_rows(const RunData& data, int64_t context, int64_t rows);
bool has_targets(const AnalysisRows& rows);  // analyses want one at least

}  // namespace weft::train
