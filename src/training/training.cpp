#include "weft/training/training.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "src/training/batch.h"
#include "src/training/state.h"
#include "weft/core/dry_run.h"
#include "weft/core/error.h"
#include "weft/core/profile.h"

namespace weft {

std::vector<OptimizerParam> optimizer_params(const Module& model) {
  std::vector<OptimizerParam> params;
  for (const NamedParam& p : model.params())
    if (!p.param->is_frozen()) params.push_back({p.name, p.param->value(), p.param->working()});
  return params;
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

TrainingOptions checked(Module& model, TrainingOptions options) {
  WEFT_CHECK(options.groups.empty() || !options.optimizer,
             "training: groups and an optimiser of its own are both given",
             "give one of them: an optimiser of your own has its own options");
  using enum ScheduleKind;
  const ScheduleKind kind = options.schedule.kind;
  WEFT_CHECK(options.steps > 0 || options.lr_factor || kind == constant || kind == inverse_sqrt,
             str("training: a schedule that falls, over ", options.steps, " steps"), "set steps of the options");
  WEFT_CHECK(options.micro_batch >= 0 && options.clip_norm >= 0,
             str("training: micro_batch is ", options.micro_batch, ", clip_norm ", options.clip_norm),
             "use 0 or more; 0 stands for a whole step, and for no bound");
  if (options.compute) model.set_compute(*options.compute);
  return options;
}

Device device_of(const Module& model) {
  const std::vector<NamedParam> params = model.params();
  WEFT_CHECK(!params.empty(), "training: the model has no parameters", "name them with name_parts()");
  return params[0].param->value().device();
}

std::unique_ptr<AnyOptimizer> make_optimizer(const TrainingOptions& options, std::vector<OptimizerParam> params) {
  if (options.optimizer) return options.optimizer(std::move(params));
  std::vector<ParamGroup> groups = options.groups;
  if (groups.empty()) groups.emplace_back();
  return std::make_unique<Optimizer>(std::move(groups), std::move(params));
}

}  // namespace

Training::State::State(Module& trained, TokenLoss its_loss, TrainingOptions its_options)
    : model(trained),
      loss(std::move(its_loss)),
      options(checked(trained, std::move(its_options))),
      guard(options.guard),
      params(trained.params()),
      buffers(trained.buffers()),
      upload(device_of(trained)) {
  std::vector<OptimizerParam> trained_params = optimizer_params(model);
  WEFT_CHECK(!trained_params.empty(), "training: all parameters are frozen", "unfreeze some with set_frozen()");
  for (const OptimizerParam& p : trained_params) masters.push_back(p.value);
  for (const NamedParam& p : params)
    if (!p.param->is_frozen()) leaves.push_back(p.param->var());
  optimizer = make_optimizer(options, std::move(trained_params));
  if (!options.ranks) return;
  for (size_t i = 0; i < leaves.size(); ++i)
    hooks.push_back(leaves[i].on_step_grad([this, i](Tensor& grad) { options.ranks->sum_gradient(i, grad); }));
}

Training::State::~State() {
  for (GradHook& hook : hooks) hook.remove();
}

// Masters that were replaced, or a choice of others to train, would leave the optimiser with what nobody reads.
void Training::State::check_params() const {
  size_t next = 0;
  for (const NamedParam& p : params) {
    const bool is_trained = next < masters.size() && p.param->value().shares_memory_with(masters[next]);
    WEFT_CHECK(is_trained == !p.param->is_frozen(),
               str("training: ", p.name, " was frozen, unfrozen, moved or converted after the training was made"),
               "make the training after set_frozen(), to() and set_compute()");
    next += is_trained;
  }
}

StepResult Training::State::begin() {
  check_params();
  losses.start();
  return {.lr_factor =
              options.lr_factor ? options.lr_factor(step) : schedule_factor(options.schedule, step, options.steps)};
}

TokensOptions Training::State::tokens_options(int64_t micro_batch) const {
  return {.is_training = true,
          .rng = Rng(options.seed)["train"][static_cast<uint64_t>(step)],
          .takes_diagnostics =
              micro_batch == 0 && options.diagnostics_every > 0 && (step + 1) % options.diagnostics_every == 0,
          .attention = options.attention};
}

void Training::State::forward_backward(const data::Batch& batch, const Rows& rows, StepResult& result) {
  const double per_target = result.num_targets > 0 ? 1.0 / static_cast<double>(result.num_targets) : 0;
  TokensOptions of_tokens = tokens_options(rows.micro_batch);
  of_tokens.loss_share =
      per_target > 0 ? static_cast<double>(count_targets(batch)) / static_cast<double>(result.num_targets) : 0;
  Tokens tokens(token_data(batch, options.keeps_documents_apart, rows.first, upload), of_tokens);
  MemoryTag tag("activations");
  LanguageModelLoss computed = [&] {
    ProfileRange range("forward");
    return loss(upload(batch.tokens), upload(batch.targets), tokens, per_target);
  }();
  if (of_tokens.takes_diagnostics) result.diagnostics = merged(tokens.reports());
  ProfileRange range("backward");
  backward(computed.loss, {}, {.ends_step = rows.is_last, .leaves = leaves});
  WEFT_CHECK(options.byte_lengths.empty() || computed.losses.defined(),
             "training: byte_lengths are given, and the loss has no losses per token",
             "return them with the loss, or leave byte_lengths out");
  losses.add(computed.loss.value(), computed.losses, batch.targets, options.byte_lengths, upload);
}

// Working copies that the optimiser does not rewrite are made anew by the next forward.
void Training::State::update(std::span<const Tensor> grads, const StepResult& result) {
  for (const NamedParam& p : params)
    if (WorkingCopy working = p.param->working(); working.defined() && !p.param->is_frozen()) working.doubt();
  optimizer->step(grads, result.lr_factor, clip_factor(result.grad_norm, options.clip_norm));
}

void Training::State::finish(StepResult& result, bool is_sample) {
  RankSums* ranks = options.ranks;
  losses.send();
  ProfileRange range("update");
  if (ranks) ranks->finish_gradients();
  std::vector<Tensor> grads;
  for (const Var& leaf : leaves) grads.push_back(leaf.grad());
  result.grad_norm = global_norm(grads);  // waits for the device: what was sent before is here then
  StepLosses::Sums sums = losses.sums();
  if (ranks) {
    Tensor both = Tensor::from({sums.loss, sums.byte_nats}, {2});
    ranks->sum_values(both);
    sums = {both.data<double>()[0], both.data<double>()[1]};
    for (const NamedBuffer& b : buffers) b.buffer->reduce([&](Tensor& x) { ranks->sum_values(x); });
  }
  result.loss = sums.loss;
  result.byte_nats = sums.byte_nats;
  if (is_dry_run()) result.loss = result.grad_norm = 0;  // its values mean nothing
  const bool is_finite = std::isfinite(result.loss) && std::isfinite(result.grad_norm);
  result.was_skipped = (is_sample || !is_finite) && guard.refuses(result.loss, result.grad_norm);
  WEFT_CHECK(result.was_skipped || is_finite,
             str("step ", step, ": loss ", result.loss, ", gradient norm ", result.grad_norm),
             "lower the learning rate, switch the guard on (optim.skip in a config), or find the op with "
             "set_anomaly_mode(true) "
             "(train.anomaly=true)");
  if (result.was_skipped) ++num_skipped;
  else update(grads, result);
  for (const NamedBuffer& b : buffers) {
    if (result.was_skipped) b.buffer->discard();
    else b.buffer->update();
  }
  for (Var& leaf : leaves) leaf.set_grad({});
  ++step;
}

Training::Training(LanguageModel& model, TrainingOptions options)
    : Training(model, token_loss(model), std::move(options)) {}
Training::Training(Module& model, TokenLoss loss, TrainingOptions options)
    : state_(std::make_unique<State>(model, std::move(loss), std::move(options))) {}
Training::~Training() = default;

StepResult Training::step(const data::Batch& batch) {
  const data::Batch whole = completed(batch);
  return step([&](int64_t first, int64_t count) { return rows_of(whole, first, count); }, 0, whole.tokens.size(0));
}

StepResult Training::step(const data::SampleSource& samples, int64_t first, int64_t rows) {
  State& s = *state_;
  WEFT_CHECK(s.loss, "training: a step of tokens, and the training has no loss of tokens",
             "give it a TokenLoss, or call the step() that takes the loss of each micro-batch");
  WEFT_CHECK(rows > 0, str("training: a step of ", rows, " rows"), "give at least one row");
  const int64_t each = s.options.micro_batch > 0 ? std::min(s.options.micro_batch, rows) : rows;
  s.rows_at_once = each;
  StepResult result = s.begin();

  // The loss is a sum over all targets of the step divided by their number, so the number comes first. What is behind the first micro-batch is
  // read for that row by row, and once more when its turn comes: only one micro-batch is held.
  std::array<int64_t, 2> counts = {};  // targets, bytes
  auto count = [&](const data::Batch& batch) {
    counts[0] += count_targets(batch);
    counts[1] += count_bytes(batch, s.options.byte_lengths);
  };
  data::Batch batch = completed(samples(first, each));
  count(batch);
  const int64_t tokens_of_row = batch.tokens.size(1);
  for (int64_t row = each; row < rows; ++row) count(completed(samples(first + row, 1)));
  if (s.options.ranks) s.options.ranks->sum_counts(counts);
  result.num_targets = counts[0];
  result.num_bytes = counts[1];

  for (int64_t row = 0, i = 0; row < rows; row += each, ++i) {
    if (i > 0) batch = {}, batch = completed(samples(first + row, std::min(each, rows - row)));
    s.forward_backward(batch, {.micro_batch = i, .first = first + row, .is_last = row + each >= rows}, result);
  }
  batch = {};
  s.finish(result,
           result.num_targets > 0);  // a loss of no target is no sample of the losses that the guard compares with
  s.num_samples += rows;
  s.num_tokens += rows * tokens_of_row;
  return result;
}

StepResult Training::step(int64_t micro_batches, const std::function<Var(const MicroBatch&)>& loss_of) {
  State& s = *state_;
  WEFT_CHECK(micro_batches > 0, str("training: a step of ", micro_batches, " micro-batches"), "give at least one");
  StepResult result = s.begin();
  for (int64_t i = 0; i < micro_batches; ++i) {
    MemoryTag tag("activations");
    Var loss = [&] {
      ProfileRange range("forward");
      return loss_of({.index = i, .count = micro_batches, .tokens = s.tokens_options(i)});
    }();
    ProfileRange range("backward");
    backward(loss, {}, {.ends_step = i + 1 == micro_batches, .leaves = s.leaves});
    s.losses.add(loss.value(), {}, {}, {}, s.upload);
  }
  s.finish(result, true);
  return result;
}

Evaluation Training::evaluate(const data::Batch& batch) {
  const data::Batch whole = completed(batch);
  AveragedWeights averages(*state_->optimizer);
  return weft::evaluate(
      state_->loss, [&](int64_t first, int64_t count) { return rows_of(whole, first, count); }, whole.tokens.size(0),
      state_->evaluate_options(0));
}

Evaluation Training::evaluate(const data::ValidationWindows& windows, int64_t max_tokens) {
  AveragedWeights averages(*state_->optimizer);
  return weft::evaluate(
      state_->loss, [&](int64_t first, int64_t count) { return windows.batch(first, count); }, windows.num_windows(),
      state_->evaluate_options(max_tokens));
}

EvaluateOptions Training::State::evaluate_options(int64_t max_tokens) const {
  return {.batch = std::max(options.micro_batch, rows_at_once),
          .max_tokens = max_tokens,
          .keeps_documents_apart = options.keeps_documents_apart,
          .byte_lengths = options.byte_lengths,
          .attention = options.attention};
}

int64_t Training::num_steps() const { return state_->step; }
int64_t Training::num_samples() const { return state_->num_samples; }
int64_t Training::num_skipped() const { return state_->num_skipped; }
AnyOptimizer& Training::optimizer() { return *state_->optimizer; }
const AnyOptimizer& Training::optimizer() const { return *state_->optimizer; }
const OutlierGuard& Training::guard() const { return state_->guard; }
void Training::set_diagnostics_every(int64_t steps) { state_->options.diagnostics_every = steps; }

}  // namespace weft
