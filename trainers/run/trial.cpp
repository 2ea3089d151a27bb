#include "trainers/run/trial.h"

#include <algorithm>

#include "src/nn/mixing/context_tokens.h"
#include "trainers/run/start_model.h"
#include "weft/core/allocator.h"
#include "weft/data/spread.h"

namespace weft::train {

MemorySubject memory_subject(const config::Loaded& config, int64_t num_ids, bool keeps_documents_apart,
                             const std::string& source) {
  const config::Experiment& e = config.experiment;
  MemorySubject s{.model = model_options(config, num_ids),
                  .compute = compute_dtype(e),
                  .groups = param_groups(e),
                  .rows_per_step = step_sizes(e).rows_per_step,
                  .clips = e.optim().clip_norm() > 0,
                  .keeps_documents_apart = keeps_documents_apart,
                  .counts_bytes = true,
                  .takes_diagnostics = e.log().diagnostics_every() > 0,
                  .parallel = parallel_options(e),
                  .teacher = teacher_options(config, num_ids, source)};
  if (e.has_start()) s.start = start_options(e);
  s.model.fixed_text.resize(static_cast<size_t>(s.model.context));  // for mixers that read one
  return s;
}

namespace {

// Where the tokens of another rank stand, in the form in which ranks tell each other (src/nn/mixing/context_tokens.cpp): positions, positions in
// documents, and documents where there are some, each [rows, tokens], the number of threads, and what all ranks have (ContextTokens::kDocuments).
// A row of the trial is one document.
dist::DryCommunicator::Others places_of_ranks(const MemorySubject& s) {
  const dist::Layout layout = data::layout_of_row(as_said(s.parallel).spread_options(false), s.model.context);
  const dist::Layout parts = dist::Layout::contiguous(s.model.context, s.parallel.context);
  return [layout, parts](int rank, std::span<int32_t> numbers) {
    const auto tokens = static_cast<size_t>(layout.tokens_per_rank());
    const size_t plane = numbers.size() / 3;
    if (numbers.size() % 3 != 2 || plane == 0) return;  // something else is told
    // Rows of the batch, or a fixed sequence, which is dealt in neighbouring parts.
    const std::vector<int32_t> here = layout.positions(0);
    const bool is_batch = plane % tokens == 0 && std::equal(here.begin(), here.end(), numbers.begin());
    const std::vector<int32_t> there = (is_batch ? layout : parts).positions(rank);
    const bool has_documents = (numbers.back() & ContextTokens::kDocuments) != 0;
    for (size_t i = 0; i < plane; ++i) {
      const int32_t position = there[i % there.size()];
      const bool is_padding = position >= layout.tokens();
      numbers[i] = numbers[plane + i] = position;
      numbers[2 * plane + i] = !has_documents ? position : is_padding ? -1 : 0;
    }
  };
}

}  // namespace

TrialTraining::TrialTraining(const MemorySubject& s, int64_t micro_batch, int64_t micro_batches,
                             std::vector<int32_t> ids, Team* team, data::SampleSource samples)
    : subject_(s),
      options_{.sizes = {.context = s.model.context,
                         .micro_batch = micro_batch,
                         .rows_per_step = micro_batches * micro_batch * s.parallel.data,
                         .micro_batches = micro_batches,
                         .tokens_per_step = micro_batches * micro_batch * s.parallel.data * s.model.context,
                         .steps = 1000},
               .groups = s.groups,
               .schedule = {},
               .clip_norm = s.clips ? 1.0 : 0.0,
               .keeps_documents_apart = s.keeps_documents_apart,
               .diagnostics_every = s.takes_diagnostics ? 1 : 0,
               .byte_lengths = std::vector<int64_t>(s.counts_bytes ? static_cast<size_t>(s.model.vocab) : 0, 1),
               .attention = s.attention},
      loader_({{data::Dataset(std::move(ids)), 1.0}}, {.context = s.model.context, .vocab = s.model.vocab}, 0),
      samples_(std::move(samples)),
      team_(team) {
  if (!team && s.parallel.ranks() > 1) {
    world_ = std::make_unique<dist::DryCommunicator>(s.parallel.ranks(), 0);
    auto context = std::make_unique<dist::DryCommunicator>(s.parallel.context, 0, "context", world_.get());
    context->set_others(places_of_ranks(s));
    dry_team_ = std::make_unique<Team>(*world_, std::move(context), as_said(s.parallel));
    team_ = dry_team_.get();
  }
  MemoryTag tag("parameters");
  model_ = std::make_unique<LanguageModel>(s.model, Rng(0));
  model_->set_compute(s.compute);
  freeze(*model_, s.start);
  if (!s.teacher) return;
  teacher_ = std::make_unique<LanguageModel>(*s.teacher, Rng(0));
  teacher_->set_compute(s.compute);
  options_.loss = distillation_loss(*model_, *teacher_, *s.start.distill);
}

int64_t TrialTraining::num_trained() const {
  int64_t count = 0;
  for (const NamedParam& p : model_->params())
    if (!p.param->is_frozen()) count += p.param->value().num_elements();
  return count;
}

void TrialTraining::start() {
  trainer_ = samples_ ? std::make_unique<Trainer>(*model_, samples_, options_, team_)
                      : std::make_unique<Trainer>(*model_, loader_, options_, team_);
}

// The first rank tells the others of its step.
void TrialTraining::step() {
  if (team_ && !team_->leads()) team_->hear();
  trainer_->step();
}

}  // namespace weft::train
