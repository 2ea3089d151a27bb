#include "trainers/study/forecast.h"

#include "trainers/config/translate.h"
#include "trainers/run/prediction.h"
#include "trainers/run/session.h"
#include "weft/core/dry_run.h"

namespace weft::study {

namespace {

// Of one row that is read at once, as a decoding begins; in a dry run, so that no model is too large.
int64_t cache_bytes(const LanguageModelOptions& options, int64_t tokens) {
  DryRun dry;
  NoGrad no_grad;
  LanguageModel model(options, Rng(0));
  const std::shared_ptr<Cache> cache = make_cache(1, tokens);
  Tokens here(plain_tokens(1, tokens, 0), {.cache = cache});
  model.logits(Tensor::zeros({1, tokens}, kI32), here);
  return cached_bytes(*cache);
}

}  // namespace

Forecast forecast_of(const Grid& grid, const Combination& arm, bool has_times, const cli::Extensions& own) {
  constexpr int64_t kAnyVocab = 256;  // a grid reads no data to know it
  const config::Loaded config = config_of(grid, arm, {}, own);
  const config::Experiment& e = config.experiment;
  train::apply_process_settings(e);
  const int64_t num_ids = e.model().has_vocab() ? e.model().vocab() : kAnyVocab;
  const train::MemorySubject subject = train::memory_subject(config, num_ids, e.data().document_mask());
  const train::MemoryEstimate memory = train::MemoryEstimator(subject).of(e.train().micro_batch());
  train::Prediction prediction;
  if (has_times) prediction = train::predict(config, num_ids, memory);
  const train::StepSizes sizes = train::step_sizes(e);
  Forecast forecast{.params = memory.num_params,
                    .seconds = prediction.step_s * static_cast<double>(sizes.steps),
                    .memory_bytes = memory.peak_bytes};
  const int64_t kept = e.checkpoint().keep_last() + (e.checkpoint().keep_best() ? 1 : 0);
  forecast.disk_bytes = kept * (4 * memory.num_params + (grid.keeps_optimizer ? memory.optimizer_bytes : 0));
  const int64_t context = subject.model.context, half = context / 2;
  forecast.cache_bytes = cache_bytes(subject.model, context);
  if (half > 0)
    forecast.cache_bytes_per_token = (forecast.cache_bytes - cache_bytes(subject.model, half)) / (context - half);
  return forecast;
}

}  // namespace weft::study
