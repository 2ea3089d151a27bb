#include "trainers/study/forecast.h"

#include "trainers/config/translate.h"
#include "trainers/run/num_ids.h"
#include "trainers/run/prediction.h"
#include "trainers/run/session.h"
#include "weft/core/dry_run.h"
#include "weft/core/error.h"

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

const Forecaster::Ids& Forecaster::ids_of(const config::Loaded& config) {
  constexpr int64_t kMostTextBytes = int64_t{64} << 20;  // a second of reading
  const config::Experiment& e = config.experiment;
  const auto [found, is_new] =
      known_.try_emplace(str(config::to_text(e.data()), e.model().vocab(), " ", e.model().context()));
  Ids& ids = found->second;
  if (!is_new) return ids;
  try {
    ids.count = train::num_ids_of(config, kMostTextBytes);
    if (!ids.count) ids.unknown = "the number of ids is a matter of texts that are not read for it";
  } catch (const Error& error) { ids.unknown = error.problem(); }
  return ids;
}

Forecast Forecaster::of(const Combination& arm) {
  constexpr int64_t kAnyVocab = 256;  // for a cache, which has no ids in it
  const config::Loaded config = config_of(grid_, arm, {}, own_);
  const config::Experiment& e = config.experiment;
  train::apply_process_settings(e);
  const Ids& ids = ids_of(config);
  Forecast forecast{.unknown = ids.unknown};
  const train::MemorySubject subject =
      train::memory_subject(config, ids.count.value_or(kAnyVocab), e.data().document_mask());
  if (ids.count) {
    const train::MemoryEstimate memory = train::MemoryEstimator(subject).of(e.train().micro_batch());
    train::Prediction prediction;
    if (has_times_) prediction = train::predict(config, *ids.count, memory);
    const int64_t kept = e.checkpoint().keep_last() + (e.checkpoint().keep_best() ? 1 : 0);
    forecast.sizes = Forecast::Sizes{
        .params = memory.num_params,
        .seconds = prediction.step_s * static_cast<double>(train::step_sizes(e).steps),
        .memory_bytes = memory.peak_bytes,
        .disk_bytes = kept * (4 * memory.num_params + (grid_.keeps_optimizer ? memory.optimizer_bytes : 0))};
  }
  const int64_t context = subject.model.context, half = context / 2;
  forecast.cache_bytes = cache_bytes(subject.model, context);
  if (half > 0)
    forecast.cache_bytes_per_token = (forecast.cache_bytes - cache_bytes(subject.model, half)) / (context - half);
  return forecast;
}

}  // namespace weft::study
