// What happens between the steps of a training: checkpoints, validations, samples, analyses.
#include <cmath>

#include "trainers/console/stop_signal.h"
#include "trainers/run/training_run.h"
#include "weft/data/tokenizer.h"
#include "weft/models/analysis.h"
#include "weft/models/sample.h"

namespace weft::train {

// Saved first: what looks at the model may fail or be broken off, and is made up for by the next start.
void TrainingRun::after_step(int64_t step) {
  const int64_t every = e_.checkpoint().every();
  if (every > 0 && step % every == 0 && checkpoints_.last_saved() != step) save();
  try {
    if (look_at_model(step) && e_.checkpoint().keep_best() && checkpoints_.last_saved() != step) save();
  } catch (const Stopped&) {}  // the caller sees the signal too
}

// What is due after a step and not recorded yet.
bool TrainingRun::look_at_model(int64_t step) {
  const bool is_last = step == trainer_.sizes().steps;
  auto is_due = [&](int64_t every) { return is_last || (every > 0 && step % every == 0); };
  bool is_best = false;
  if (is_due(e_.eval().every()) && data_.validation && !recorder_.has("val", step)) is_best = validate(is_last);
  if (is_due(e_.log().samples_every()) && recorder_.samples().count(step) < e_.log().samples()) write_samples();
  if (!is_last && is_due(e_.log().analysis_every()) && !recorder_.has("analysis", step)) {
    StopSignal::waits_for("finishing the analysis and saving a checkpoint");
    const auto values = trainer_.analyse(data_);
    if (!values.empty()) recorder_.analysis(values, step, progress_.time_s);
    else recorder_.message(str("step ", step, ": no analysis: none of its tokens has a target"));
  }
  return is_best;
}

bool TrainingRun::validate(bool is_last) {
  StopSignal::waits_for("breaking the validation off, to be made up for, and saving a checkpoint");
  const Evaluation evaluation = trainer_.validate(data_, is_last ? 0 : e_.eval().tokens());
  // The last one may have read more than those before: then they are not compared.
  bool is_comparable = !is_last || !e_.eval().has_tokens() || e_.eval().tokens() >= data_.validation->num_tokens();
  bool is_best =
      evaluation.has_targets() && (is_comparable || !progress_.best_val) && note_validation(evaluation.loss());
  recorder_.validation(evaluation, trainer_.num_steps(), progress_.time_s, is_best);
  return is_best;
}

// Whether it is the best so far.
bool TrainingRun::note_validation(double loss) {
  if (!std::isfinite(loss) || (progress_.best_val && loss >= *progress_.best_val)) return false;
  progress_.best_val = loss;
  progress_.best_step = trainer_.num_steps();
  return true;
}

void TrainingRun::write_samples() {
  StopSignal::waits_for("finishing the sample and saving a checkpoint");
  Team::Errand errand(team_);
  AveragedWeights averages(trainer_.optimizer());
  for (int64_t i = recorder_.samples().count(trainer_.num_steps()); i < e_.log().samples(); ++i) {
    stop_if_asked();
    uint64_t seed = Rng(static_cast<uint64_t>(e_.seed()))["samples"][static_cast<uint64_t>(i)].key();
    std::vector<int32_t> ids = weft::sample(*model_, prompt_,
                                            {.tokens = e_.log().sample_tokens(),
                                             .temperature = e_.log().sample_temperature(),
                                             .top_p = e_.log().sample_top_p(),
                                             .seed = seed,
                                             .vocab = data_.tokenizer->vocab_size(),
                                             .end_of_text = data_.end_of_text,
                                             .first_token = data_.first_token});
    recorder_.sample(trainer_.num_steps(),
                     data::show_utf8(data_.tokenizer->decode(prompt_)) + data::show_utf8(data_.tokenizer->decode(ids)));
  }
}

// The records first, to the disk: a checkpoint never stands for steps that they lack.
void TrainingRun::save() {
  StopSignal::waits_for("finishing the checkpoint");
  {
    const Team::Errand errand(team_);
    folder_.require_present();
    recorder_.sync();
  }
  progress_.line = recorder_.line();
  std::string warning = checkpoints_.save(progress_, team_);
  recorder_.checkpoint(trainer_.num_steps());
  if (!warning.empty()) recorder_.message(warning);
}

void TrainingRun::save_last_step() {
  if (checkpoints_.last_saved() != trainer_.num_steps()) save();
}

}  // namespace weft::train
