#include "weft/training/training.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "src/training/batch.h"
#include "src/training/diverged.h"
#include "src/training/state.h"
#include "weft/core/dry_run.h"
#include "weft/core/error.h"
#include "weft/core/profile.h"
#include "weft/optim/progress.h"

namespace weft {

std::vector<OptimizerParam> optimizer_params(const Module& model) {
  std::vector<OptimizerParam> params;
  for (const NamedParam& p : model.params())
    if (!p.param->is_frozen()) params.push_back({p.name, p.param->value(), p.param->working()});
  return params;
}

namespace {

// Reports of one name, such as those of several calls of a module, are one number.
std::vector<Tokens::Report> merged(const std::vector<Tokens::Report>& reports) {
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
  return all;
}

std::vector<std::pair<std::string, double>> values_of(const std::vector<Tokens::Report>& reports) {
  std::vector<std::pair<std::string, double>> values;
  for (const Tokens::Report& r : reports)
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

}  // namespace

Training::State::State(Module& trained, TokenLoss its_loss, TrainingOptions its_options)
    : model(trained),
      loss(std::move(its_loss)),
      options(checked(trained, std::move(its_options))),
      guard(options.guard),
      params(trained.params()),
      buffers(trained.buffers()),
      upload(device_of(trained)) {
  for (const NamedParam& p : params) {
    if (p.param->is_frozen()) continue;
    masters.push_back(p.param->value());
    leaves.push_back(p.param->var());
  }
  WEFT_CHECK(!masters.empty(), "training: all parameters are frozen", "unfreeze some with set_frozen()");
  make_ranks();
  make_optimizer();
  if (!ranks) return;
  for (size_t i = 0; i < leaves.size(); ++i)
    hooks.push_back(leaves[i].on_step_grad([this, i](Tensor& grad) {
      if (is_in_backward) have_grads[i] = 1;
      ranks->sum_gradient(i, grad);
    }));
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
  takes_reports = options.diagnostics_every > 0 && (step + 1) % options.diagnostics_every == 0;
  reports.clear();
  if (comm_ranks) comm_ranks->start_step();
  return {.lr_factor =
              options.lr_factor ? options.lr_factor(step) : schedule_factor(options.schedule, step, options.steps)};
}

TokensOptions Training::State::tokens_options(int64_t micro_batch) const {
  return {.is_training = true,
          .rng = Rng(options.seed)["train"][static_cast<uint64_t>(step)],
          .progress = training_progress(step, options.steps),
          .takes_diagnostics = micro_batch == 0 && takes_reports,
          .context = context(),
          .attention = options.attention};
}

void Training::State::forward_backward(const data::Batch& batch, const Rows& rows, StepResult& result) {
  const double per_target = result.num_targets > 0 ? 1.0 / static_cast<double>(result.num_targets) : 0;
  TokensOptions of_tokens = tokens_options(rows.micro_batch);
  of_tokens.loss_share = per_target * static_cast<double>(targets_of[static_cast<size_t>(rows.micro_batch)]);
  Tokens tokens(token_data(batch, options.keeps_documents_apart, rows.first, upload), of_tokens);
  MemoryTag tag("activations");
  LanguageModelLoss computed = [&] {
    ProfileRange range("forward");
    return loss(upload(batch.tokens), upload(batch.targets), tokens, per_target);
  }();
  if (of_tokens.takes_diagnostics) reports = merged(tokens.reports());
  ProfileRange range("backward");
  differentiate(computed.loss, rows.is_last);
  WEFT_CHECK(options.byte_lengths.empty() || computed.losses.defined(),
             "training: byte_lengths are given, and the loss has no losses per token",
             "return them with the loss, or leave byte_lengths out");
  losses.add(computed.loss.value(), computed.losses, batch.targets, options.byte_lengths, upload);
}

// All ranks have a gradient of all parameters then. Which of them had none on any rank, and must be left alone, is found here: backward
// first tells of those that it does not reach, and only then comes to the loss.
void Training::State::differentiate(const Var& computed, bool is_last) {
  if (!ranks) return backward(computed, {}, {.ends_step = is_last, .leaves = leaves});
  if (!is_last) return backward(computed, {}, {.ends_step = false});
  have_grads.clear();
  for (const Var& leaf : leaves) have_grads.push_back(leaf.grad().defined() ? 1 : 0);
  is_in_backward = false;
  computed.on_grad([this](Tensor&) { is_in_backward = true; });
  backward(computed, {}, {.leaves = leaves});
}

// Working copies that the optimiser does not rewrite are made anew by the next forward.
void Training::State::update(std::span<const Tensor> grads, const StepResult& result) {
  for (const NamedParam& p : params)
    if (WorkingCopy working = p.param->working(); working.defined() && !p.param->is_frozen()) working.doubt();
  const double grad_factor = clip_factor(result.grad_norm, options.clip_norm);
  const bool is_of_caller = static_cast<bool>(options.optimizer);
  if (!shards || !is_of_caller) return optimizer->step(grads, result.lr_factor, grad_factor);
  optimizer->step(shards->grads_here(grads), result.lr_factor, grad_factor);
  shards->fetch_parts();
}

// The gradients of the step, of all ranks, or what this rank updates of them; and loss and norm of the whole.
std::vector<Tensor> Training::State::take_grads(StepResult& result) {
  if (ranks) ranks->finish_gradients();
  const bool are_parts = options.ranks.zero == 2 && comm_ranks;
  std::vector<Tensor> grads;
  if (are_parts) grads = comm_ranks->take_parts();
  else
    for (const Var& leaf : leaves) grads.push_back(leaf.grad());
  result.grad_norm = global_norm(grads);  // waits for the device: what was sent before is here then
  StepLosses::Sums sums = losses.sums();
  if (ranks) {
    std::vector<double> values = {sums.loss, sums.byte_nats, std::pow(result.grad_norm, 2)};
    values.insert(values.end(), have_grads.begin(), have_grads.end());
    Tensor all = Tensor::from(std::span<const double>(values), {static_cast<int64_t>(values.size())});
    ranks->sum_values(all);
    const auto* summed = all.data<double>();
    sums = {.loss = summed[0], .byte_nats = summed[1]};
    if (are_parts) result.grad_norm = std::sqrt(summed[2]);
    for (size_t i = 0; i < grads.size(); ++i)
      if (summed[3 + i] == 0 && !is_dry_run()) grads[i] = {};
    for (const NamedBuffer& b : buffers) b.buffer->reduce([&](Tensor& x) { ranks->sum_values(x); });
  }
  result.diagnostics = values_of(comm_ranks && takes_reports ? comm_ranks->merged(reports) : reports);
  result.loss = sums.loss;
  result.byte_nats = sums.byte_nats;
  for (double* x : {&result.loss, &result.byte_nats, &result.grad_norm})
    if (std::isnan(*x)) *x = std::numeric_limits<double>::quiet_NaN();  // arithmetic sets its sign: "-nan" in messages
  if (is_dry_run()) result.loss = result.grad_norm = 0;                 // its values mean nothing
  return grads;
}

void Training::State::finish(StepResult& result, bool is_sample) {
  losses.send();
  ProfileRange range("update");
  const std::vector<Tensor> grads = take_grads(result);
  const bool is_finite = std::isfinite(result.loss) && std::isfinite(result.grad_norm);
  result.was_skipped = (is_sample || !is_finite) && guard.refuses(result.loss, result.grad_norm);
  if (!result.was_skipped && !is_finite)
    fail_as<Diverged>(str("step ", step, ": loss ", result.loss, ", gradient norm ", result.grad_norm),
                      "lower the learning rate, switch the guard on (optim.skip in a config), or find the op with "
                      "set_anomaly_mode(true) (train.anomaly=true)");
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
  State& s = *state_;
  const data::Batch whole = completed(batch);
  const std::vector<data::RankShare::Rows> mine = s.share.rows_of(0, whole.tokens.size(0) * s.share.ranks);
  auto samples = [&](int64_t first, int64_t count) {  // asked for by their numbers among those of all ranks
    int64_t row = 0;
    for (const data::RankShare::Rows& rows : mine) {
      if (first >= rows.first && first < rows.first + rows.count)
        return rows_of(whole, row + first - rows.first, count);
      row += rows.count;
    }
    fail(str("training: row ", first, " is not of this rank"), "please report this");
  };
  return s.as_rank([&] { return s.step_of(mine, samples); });
}

StepResult Training::step(const data::SampleSource& samples, int64_t first, int64_t rows) {
  State& s = *state_;
  const std::vector<data::RankShare::Rows> mine = s.share.rows_of(first, rows);
  return s.as_rank([&] { return s.step_of(mine, samples); });
}

StepResult Training::State::step_of(std::span<const data::RankShare::Rows> micro_batches,
                                    const data::SampleSource& samples) {
  WEFT_CHECK(loss, "training: a step of tokens, and the training has no loss of tokens",
             "give it a TokenLoss, or call the step() that takes the loss of each micro-batch");
  WEFT_CHECK(!micro_batches.empty(), "training: a step of 0 rows", "give at least one row");
  rows_at_once = micro_batches[0].count;
  StepResult result = begin();

  // The loss is a sum over all targets of the step divided by their number, so the number comes first. What is behind the first micro-batch is
  // read for that row by row, and once more when its turn comes: only one micro-batch is held.
  std::vector<int64_t> counts(2 + micro_batches.size());  // bytes, rows, targets of each micro-batch
  auto count = [&](const data::Batch& batch, size_t micro_batch) {
    counts[0] += count_bytes(batch, options.byte_lengths);
    counts[1] += batch.tokens.size(0);
    counts[2 + micro_batch] += count_targets(batch);
  };
  data::Batch batch = completed(samples(micro_batches[0].first, micro_batches[0].count));
  count(batch, 0);
  const int64_t tokens_of_row = batch.tokens.size(1);
  for (size_t k = 1; k < micro_batches.size(); ++k)
    for (int64_t i = 0; i < micro_batches[k].count; ++i) count(completed(samples(micro_batches[k].first + i, 1)), k);
  const int64_t rows_here = counts[1];
  const std::vector<int64_t> counted_here(counts.begin() + 2, counts.end());
  if (ranks) ranks->sum_counts(counts);
  const int64_t num_ranks = int64_t{share.ranks} * options.ranks.ranks_per_row;
  WEFT_CHECK(!comm_ranks || counts[1] == rows_here * num_ranks,
             str("training: a step of ", rows_here, " rows here, of ", counts[1], " on all ", num_ranks, " ranks"),
             "give each rank the same number of rows");
  result.num_targets = std::accumulate(counts.begin() + 2, counts.end(), int64_t{0});
  result.num_bytes = counts[0];
  // Losses of layers are those of this rank's rows, or with a context group those of all its ranks' rows, which it counts once.
  targets_of = context() ? std::vector<int64_t>(counts.begin() + 2, counts.end()) : counted_here;

  for (size_t i = 0; i < micro_batches.size(); ++i) {
    const auto [first, rows] = micro_batches[i];
    if (i > 0) batch = {}, batch = completed(samples(first, rows));
    forward_backward(batch,
                     {.micro_batch = static_cast<int64_t>(i), .first = first, .is_last = i + 1 == micro_batches.size()},
                     result);
  }
  batch = {};
  finish(result,
         result.num_targets > 0);  // a loss of no target is no sample of the losses that the guard compares with
  num_samples += rows_here * share.ranks;
  num_tokens += rows_here * tokens_of_row * num_ranks;
  return result;
}

StepResult Training::step(int64_t micro_batches, const std::function<Var(const MicroBatch&)>& loss_of) {
  State& s = *state_;
  WEFT_CHECK(micro_batches > 0, str("training: a step of ", micro_batches, " micro-batches"), "give at least one");
  return s.as_rank([&] {
    StepResult result = s.begin();
    for (int64_t i = 0; i < micro_batches; ++i) {
      MemoryTag tag("activations");
      Var loss = [&] {
        ProfileRange range("forward");
        return loss_of({.index = i, .count = micro_batches, .tokens = s.tokens_options(i)});
      }();
      ProfileRange range("backward");
      s.differentiate(loss, i + 1 == micro_batches);
      s.losses.add(loss.value(), {}, {}, {}, s.upload);
    }
    s.finish(result, true);
    return result;
  });
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
          .attention = options.attention,
          .comm = options.ranks.comm,
          .ranks_per_row = options.ranks.ranks_per_row,
          .context = options.context};
}

int64_t Training::num_steps() const { return state_->step; }
int64_t Training::num_samples() const { return state_->num_samples; }
int64_t Training::num_skipped() const { return state_->num_skipped; }
AnyOptimizer& Training::optimizer() { return *state_->optimizer; }
const AnyOptimizer& Training::optimizer() const { return *state_->optimizer; }
const OutlierGuard& Training::guard() const { return state_->guard; }
void Training::set_diagnostics_every(int64_t steps) { state_->options.diagnostics_every = steps; }

}  // namespace weft
