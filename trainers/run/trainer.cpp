#include "trainers/run/trainer.h"

#include "trainers/console/stop_signal.h"
#include "trainers/run/evaluate.h"
#include "weft/core/error.h"

namespace weft::train {

namespace {

constexpr int64_t kAnalysedRows = 8;

// What is added to a row that does not divide is told by its document.
bool pads(const std::optional<data::SpreadOptions>& spread, int64_t context) {
  return spread && data::layout_of_row(*spread, context).padded_tokens() != context;
}

TrainingOptions training_options(const TrainerOptions& o, const std::optional<data::SpreadOptions>& spread,
                                 Team* team) {
  TrainingOptions options{.groups = o.groups,
                          .schedule = o.schedule,
                          .steps = o.sizes.steps,
                          .clip_norm = o.clip_norm,
                          .micro_batch = o.sizes.micro_batch,
                          .guard = o.guard,
                          .seed = o.seed,
                          .keeps_documents_apart = o.keeps_documents_apart,
                          .diagnostics_every = o.diagnostics_every,
                          .byte_lengths = o.byte_lengths,
                          .attention = o.attention};
  options.keeps_documents_apart = o.keeps_documents_apart || pads(spread, o.sizes.context);
  if (!team) return options;
  options.ranks = {.comm = &team->world(), .zero = team->parallel().zero, .ranks_per_row = team->parallel().context};
  options.context = &team->context();
  return options;
}

}  // namespace

TrainerOptions trainer_options(const config::Experiment& e, const RunData& data, TokenLoss loss) {
  TrainerOptions options{.sizes = step_sizes(e),
                         .groups = param_groups(e),
                         .schedule = schedule_options(e),
                         .clip_norm = e.optim().clip_norm(),
                         .seed = static_cast<uint64_t>(e.seed()),
                         .keeps_documents_apart = data.keeps_documents_apart(),
                         .overfits_one_batch = e.train().overfit_one_batch(),
                         .diagnostics_every = e.log().diagnostics_every(),
                         .byte_lengths = data.byte_lengths,
                         .attention = attention_backend(e),
                         .loss = std::move(loss)};
  if (e.optim().has_skip())
    options.guard = {.is_on = true,
                     .loss_z = e.optim().skip().loss_z(),
                     .grad_z = e.optim().skip().grad_z(),
                     .window = e.optim().skip().window(),
                     .max_in_a_row = e.optim().skip().max_in_a_row()};
  return options;
}

Trainer::Trainer(LanguageModel& model, const data::Loader& loader, const TrainerOptions& options, Team* team)
    : Trainer(
          model, [&loader](int64_t first, int64_t count) { return loader.batch(first, count); }, options, team) {}

Trainer::Trainer(LanguageModel& model, data::SampleSource samples, const TrainerOptions& options, Team* team)
    : model_(model),
      samples_(std::move(samples)),
      sizes_(options.sizes),
      attention_(options.attention),
      overfits_one_batch_(options.overfits_one_batch),
      team_(team),
      spread_(team ? team->spread(options.keeps_documents_apart) : std::nullopt),
      training_(model, options.loss ? options.loss : token_loss(model), training_options(options, spread_, team)) {}

std::string Trainer::save(const std::string& folder, const std::string& state, const std::string& config) {
  if (team_ && team_->leads()) team_->tell(Duty::save);
  return training_.save(folder, state, config);
}

Evaluation Trainer::validate(const RunData& data, int64_t max_tokens) {
  if (team_ && team_->leads()) team_->tell(Duty::validate, str(max_tokens));
  AveragedWeights averages(optimizer());
  return train::validate(model_, data,
                         {.length = sizes_.context,
                          .batch = sizes_.micro_batch,
                          .max_tokens = max_tokens,
                          .attention = attention_,
                          .progress =
                              [this](int64_t, int64_t) {
                                const bool is_asked = StopSignal::was_raised();
                                if (team_ ? team_->on_any_rank(is_asked) : is_asked) throw Stopped();
                              }},
                         team_);
}

std::vector<std::pair<std::string, double>> Trainer::analyse(const RunData& data) {
  if (team_ && team_->leads()) team_->tell(Duty::analyse);
  AveragedWeights averages(optimizer());
  const AnalysisRows rows = analysis_rows(data, sizes_.context, kAnalysedRows, team_);
  if (!has_targets(rows)) return {};
  return weft::analyse(model_, rows, team_ ? &team_->others() : nullptr);
}

StepResult Trainer::step() {
  if (team_ && team_->leads()) team_->tell(Duty::step);
  const int64_t first = overfits_one_batch_ ? 0 : num_steps() * sizes_.rows_per_step;
  auto rows_of = [&](int64_t row, int64_t rows) {
    data::Batch batch = samples_(row, rows);
    return spread_ ? data::spread(batch, *spread_, team_->context_rank()) : batch;
  };
  return training_.step(rows_of, first, sizes_.rows_per_step);
}

}  // namespace weft::train
