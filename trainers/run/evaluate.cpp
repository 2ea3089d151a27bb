#include "trainers/run/evaluate.h"

#include <algorithm>

#include "trainers/run/team.h"
#include "weft/training/rank_sums.h"

namespace weft::train {

Evaluation validate(LanguageModel& model, const RunData& data, const ValidationOptions& options, const Team* team) {
  const data::ValidationWindows windows = data.windows(options.length);
  const bool keeps_documents_apart = data.keeps_documents_apart();
  const std::optional<data::SpreadOptions> spread = team ? team->spread(keeps_documents_apart) : std::nullopt;
  EvaluateOptions how{.batch = options.batch,
                      .max_tokens = options.max_tokens,
                      .keeps_documents_apart = keeps_documents_apart,
                      .by_position = options.by_position,
                      .byte_lengths = data.byte_lengths,
                      .attention = options.attention,
                      .progress = options.progress,
                      .tokens_per_row = options.length};
  if (team) {
    how.comm = &team->world();
    how.ranks_per_row = team->parallel().context;
    how.context = &team->context();
  }
  auto rows = [&](int64_t first, int64_t count) {
    data::Batch batch = windows.batch(first, count);
    return spread ? data::spread(batch, *spread, team->context_rank()) : batch;
  };
  return evaluate(token_loss(model), rows, windows.num_windows(), how);
}

AnalysisRows analysis_rows(const RunData& data, int64_t context, int64_t rows, const Team* team) {
  data::ValidationWindows windows = data.windows(context);
  const int64_t full = std::max<int64_t>(1, windows.num_windows() - 1);  // the last may be padded
  data::Batch batch = windows.batch(0, std::min(rows, full));
  bool has_documents = data.keeps_documents_apart();
  const std::optional<data::SpreadOptions> spread = team ? team->spread(has_documents) : std::nullopt;
  // Padding, of a short text or of ranks that do not divide the row, is no token of the analysis, on any number of ranks.
  const data::SpreadOptions how = spread.value_or(
      data::SpreadOptions{.layout = dist::LayoutKind::contiguous, .keeps_documents_apart = has_documents});
  const std::vector<int32_t> documents = batch.documents.to_vector<int32_t>();
  has_documents = has_documents || batch.tokens.size(1) % how.ranks != 0 ||
                  std::ranges::any_of(documents, [](int32_t document) { return document < 0; });
  batch = data::spread(batch, how, spread ? team->context_rank() : 0);
  Upload upload(default_device());
  return {.ids = upload(batch.tokens),
          .targets = upload(batch.targets),
          .tokens = token_data(batch, has_documents, 0, upload),
          .context = spread ? &team->rows() : nullptr};
}

bool has_targets(const AnalysisRows& rows) {
  auto targets = rows.targets.to_vector<int32_t>();
  const bool are_here = std::any_of(targets.begin(), targets.end(), [](int32_t id) { return id >= 0; });
  return on_any_rank(rows.context ? rows.context->tokens : nullptr, are_here);
}

}  // namespace weft::train
