#include "trainers/run/trainer.h"

namespace weft::train {

namespace {

std::optional<data::SpreadOptions> spread_options(const TrainerOptions& o, const Team* team) {
  if (!team || team->parallel().context == 1) return std::nullopt;
  const ParallelOptions& p = team->parallel();
  return data::SpreadOptions{
      .layout = p.layout, .ranks = p.context, .block = p.block, .keeps_documents_apart = o.keeps_documents_apart};
}

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

TrainerOptions trainer_options(const config::Experiment& e, const RunData& data) {
  TrainerOptions options{.sizes = step_sizes(e),
                         .groups = param_groups(e),
                         .schedule = schedule_options(e),
                         .clip_norm = e.optim().clip_norm(),
                         .seed = static_cast<uint64_t>(e.seed()),
                         .keeps_documents_apart = data.keeps_documents_apart(),
                         .overfits_one_batch = e.train().overfit_one_batch(),
                         .diagnostics_every = e.log().diagnostics_every(),
                         .byte_lengths = data.byte_lengths,
                         .attention = attention_backend(e)};
  if (e.optim().has_skip())
    options.guard = {.is_on = true,
                     .loss_z = e.optim().skip().loss_z(),
                     .grad_z = e.optim().skip().grad_z(),
                     .window = e.optim().skip().window(),
                     .max_in_a_row = e.optim().skip().max_in_a_row()};
  return options;
}

Trainer::Trainer(LanguageModel& model, const data::Loader& loader, const TrainerOptions& options, Team* team)
    : loader_(loader),
      sizes_(options.sizes),
      overfits_one_batch_(options.overfits_one_batch),
      team_(team),
      spread_(spread_options(options, team)),
      training_(model, training_options(options, spread_, team)) {}

std::string Trainer::save(const std::string& folder, const std::string& state, const std::string& config) {
  if (team_ && team_->leads()) team_->tell(Duty::save);
  return training_.save(folder, state, config);
}

StepResult Trainer::step() {
  if (team_ && team_->leads()) team_->tell(Duty::step);
  const int64_t first = overfits_one_batch_ ? 0 : num_steps() * sizes_.rows_per_step;
  auto rows_of = [&](int64_t row, int64_t rows) {
    data::Batch batch = loader_.batch(row, rows);
    return spread_ ? data::spread(batch, *spread_, team_->context_rank()) : batch;
  };
  return training_.step(rows_of, first, sizes_.rows_per_step);
}

}  // namespace weft::train
