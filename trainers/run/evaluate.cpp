#include "trainers/run/evaluate.h"

#include <algorithm>

namespace weft::train {

AnalysisRows analysis_rows(const RunData& data, int64_t context, int64_t rows) {
  data::ValidationWindows windows = data.windows(context);
  const int64_t full = std::max<int64_t>(1, windows.num_windows() - 1);  // the last may be padded
  data::Batch batch = windows.batch(0, std::min(rows, full));
  Upload upload(default_device());
  return {upload(batch.tokens), upload(batch.targets), token_data(batch, data.keeps_documents_apart(), 0, upload)};
}

bool has_targets(const AnalysisRows& rows) {
  auto targets = rows.targets.to_vector<int32_t>();
  return std::any_of(targets.begin(), targets.end(), [](int32_t id) { return id >= 0; });
}

}  // namespace weft::train
