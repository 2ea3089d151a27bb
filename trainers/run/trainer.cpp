#include "trainers/run/trainer.h"

namespace weft::train {

static TrainingOptions training_options(const TrainerOptions& o) {
  return {.groups = o.groups,
          .schedule = o.schedule,
          .steps = o.plan.steps,
          .clip_norm = o.clip_norm,
          .micro_batch = o.plan.micro_batch,
          .guard = o.guard,
          .seed = o.seed,
          .keeps_documents_apart = o.keeps_documents_apart,
          .diagnostics_every = o.diagnostics_every,
          .byte_lengths = o.byte_lengths,
          .attention = o.attention};
}

Trainer::Trainer(LanguageModel& model, const data::Loader& loader, const TrainerOptions& options)
    : loader_(loader),
      plan_(options.plan),
      overfits_one_batch_(options.overfits_one_batch),
      training_(model, training_options(options)) {}

StepResult Trainer::step() {
  const int64_t first = overfits_one_batch_ ? 0 : num_steps() * plan_.rows_per_step;
  return training_.step([&](int64_t row, int64_t rows) { return loader_.batch(row, rows); }, first,
                        plan_.rows_per_step);
}

}  // namespace weft::train
