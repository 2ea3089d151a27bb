#include "trainers/run/trainer.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "trainers/run/evaluate.h"
#include "weft/core/dry_run.h"
#include "weft/core/error.h"
#include "weft/core/profile.h"

namespace weft::train {

std::vector<OptimizerParam> optimizer_params(const LanguageModel& model) {
  std::vector<OptimizerParam> params;
  for (const NamedParam& p : model.params()) params.push_back({p.name, p.param->value(), p.param->working()});
  return params;
}

Trainer::Trainer(LanguageModel& model, Optimizer& optimizer, const data::Loader& loader, TrainerOptions options,
                 std::vector<int64_t> byte_lengths)
    : model_(model),
      optimizer_(optimizer),
      loader_(loader),
      options_(options),
      byte_lengths_(std::move(byte_lengths)),
      guard_(options.guard),
      params_(model.params()),
      upload_(default_device()) {
  WEFT_CHECK(params_.size() == optimizer.params().size(),
             str("trainer: the model has ", params_.size(), " parameters, the optimiser ", optimizer.params().size()),
             "make the optimiser from optimizer_params(model)");
  for (const NamedParam& p : params_) leaves_.push_back(p.param->var());
}

void Trainer::resume_at(int64_t step, int64_t num_skipped) {
  step_ = step;
  num_skipped_ = num_skipped;
}

namespace {

// Reports of one name, such as those of several calls of a module, are one number.
std::vector<std::pair<std::string, double>> merged(const std::vector<Tokens::Report>& reports) {
  std::vector<Tokens::Report> all;
  std::map<std::string, size_t> places;
  for (const Tokens::Report& r : reports) {
    auto [place, is_new] = places.emplace(r.name, all.size());
    if (is_new) {
      all.push_back(r);
      continue;
    }
    Tokens::Report& to = all[place->second];
    to.sum = r.is_max ? std::max(to.sum, r.sum) : to.sum + r.sum;
    to.count += r.count;
  }
  std::vector<std::pair<std::string, double>> values;
  for (const Tokens::Report& r : all)
    if (r.count > 0) values.emplace_back(r.name, r.is_max ? r.sum : r.sum / r.count);
  return values;
}

int64_t count_targets(const data::Batch& batch) {
  const auto* targets = batch.targets.data<int32_t>();
  return std::count_if(targets, targets + batch.targets.num_elements(), [](int32_t id) { return id >= 0; });
}

}  // namespace

void Trainer::forward_backward(const data::Batch& batch, int64_t first_row, int64_t num_targets, bool ends_step,
                               std::vector<std::pair<std::string, double>>* diagnostics) {
  const double per_target = num_targets > 0 ? 1.0 / static_cast<double>(num_targets) : 0;
  TokensOptions tokens_options{
      .is_training = true,
      .rng = Rng(options_.seed)["train"][static_cast<uint64_t>(step_)],
      .loss_share = num_targets > 0 ? static_cast<double>(count_targets(batch)) / static_cast<double>(num_targets) : 0,
      .takes_diagnostics = diagnostics != nullptr,
      .attention = options_.attention};
  Tokens tokens(token_data(batch, options_.keeps_documents_apart, first_row, upload_), tokens_options);
  MemoryTag tag("activations");
  LanguageModelLoss result = [&] {
    ProfileRange range("forward");
    return model_.loss(upload_(batch.tokens), upload_(batch.targets), tokens, per_target);
  }();
  if (diagnostics) *diagnostics = merged(tokens.reports());
  ProfileRange range("backward");
  backward(result.loss, {}, {.ends_step = ends_step, .leaves = leaves_});
  losses_.add(result.loss.value(), result.losses, batch.targets, byte_lengths_, upload_);
}

void Trainer::count(const data::Batch& batch, StepResult& result) const {
  result.num_targets += count_targets(batch);
  if (byte_lengths_.empty()) return;
  const auto* targets = batch.targets.data<int32_t>();
  for (int64_t t = 0; t < batch.targets.num_elements(); ++t)
    if (targets[t] >= 0) result.num_bytes += byte_lengths_[static_cast<size_t>(targets[t])];
}

StepResult Trainer::step() {
  const Plan& plan = options_.plan;
  StepResult result{.lr_factor = schedule_factor(options_.schedule, step_, plan.steps)};
  int64_t cursor = options_.overfits_one_batch ? 0 : step_ * plan.rows_per_step;

  // The loss is a sum over all targets of the step divided by their number, so the number comes first. What is behind the first micro-batch is
  // read for that row by row, and once more when its turn comes: only one micro-batch is held.
  data::Batch batch = loader_.batch(cursor, plan.micro_batch);
  count(batch, result);
  for (int64_t row = plan.micro_batch; row < plan.rows_per_step; ++row) count(loader_.batch(cursor + row, 1), result);
  losses_.start();
  const bool takes_diagnostics = options_.diagnostics_every > 0 && (step_ + 1) % options_.diagnostics_every == 0;
  for (int64_t i = 0; i < plan.micro_batches; ++i) {
    const int64_t first_row = cursor + i * plan.micro_batch;
    if (i > 0) batch = {}, batch = loader_.batch(first_row, plan.micro_batch);
    forward_backward(batch, first_row, result.num_targets, i + 1 == plan.micro_batches,
                     takes_diagnostics && i == 0 ? &result.diagnostics : nullptr);
  }
  batch = {};
  losses_.send();

  ProfileRange range("update");
  std::vector<Tensor> grads;
  for (const NamedParam& p : params_) grads.push_back(p.param->grad());
  result.grad_norm = global_norm(grads);  // waits for the device: what was sent before is here then
  StepLosses::Sums sums = losses_.sums();
  result.loss = sums.loss;
  result.byte_nats = sums.byte_nats;
  if (is_dry_run()) result.loss = result.grad_norm = 0;  // its values mean nothing
  const bool is_finite = std::isfinite(result.loss) && std::isfinite(result.grad_norm);
  // A loss of no target is no sample of the losses that the guard compares with.
  result.was_skipped = (result.num_targets > 0 || !is_finite) && guard_.refuses(result.loss, result.grad_norm);
  WEFT_CHECK(result.was_skipped || is_finite,
             str("step ", step_, ": loss ", result.loss, ", gradient norm ", result.grad_norm),
             "lower the learning rate, set optim.skip, or find the op with train.anomaly=true");
  if (result.was_skipped) ++num_skipped_;
  else optimizer_.step(grads, result.lr_factor, clip_factor(result.grad_norm, options_.clip_norm));
  if (result.was_skipped) model_.discard_buffers();
  else model_.update_buffers();
  for (const NamedParam& p : params_) p.param->clear_grad();
  ++step_;
  return result;
}

}  // namespace weft::train
