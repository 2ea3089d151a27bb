// The public training step: what it computes, what it refuses, and what it hands to optimisers and ranks.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "src/training/diverged.h"
#include "tests/support/errors.h"
#include "tests/training/support.h"
#include "weft/core/parallel.h"
#include "weft/ops/elementwise.h"
#include "weft/optim/progress.h"

namespace weft {
namespace {

using namespace test;

const std::vector<ParamGroup> kAdamW = {{.algorithm = AdamWOptions{.lr = 1e-2, .weight_decay = 0.01}}};

TEST(Training, LossFallsInF32AndBf16AndWorkingCopiesAgree) {
  for (DType compute : {kF32, kBF16}) {
    SCOPED_TRACE(str(compute));
    LanguageModel model(tiny_options(), Rng(1));
    Training training(model, {.groups = kAdamW, .clip_norm = 1, .compute = compute});
    double first = 0, last = 0;
    for (int64_t step = 0; step < 40; ++step) {
      last = training.step(rows_from(training.num_samples(), 8)).loss;
      if (step == 0) first = last;
    }
    EXPECT_LT(last, first / 2) << "from " << first;
    EXPECT_EQ(training.num_samples(), 320);
    int num_working = 0;
    for (const NamedParam& p : model.params()) num_working += p.param->working().defined();
    EXPECT_EQ(num_working > 0, compute == kBF16);
    EXPECT_TRUE(working_copies_agree(model));
  }
}

// What layers may follow over a training, also when it goes on from a checkpoint. Without a number of steps it stays 0.
TEST(Training, LayersAreToldHowMuchOfItIsDone) {
  LanguageModel model(tiny_options(), Rng(1));
  std::vector<double> seen;
  auto loss = [&](const Tensor& ids, const Tensor& targets, Tokens& tokens, double factor) {
    seen.push_back(tokens.progress());
    return model.loss(ids, targets, tokens, factor);
  };
  const std::string folder = ::testing::TempDir() + "/weft_progress";
  std::filesystem::remove_all(folder);
  const TrainingOptions options{.groups = kAdamW, .steps = 4, .micro_batch = 2};
  Training first(model, loss, options);
  for (int64_t step = 0; step < 3; ++step) first.step(rows_from(0, 4));
  first.save(folder);
  first.evaluate(rows_from(0, 2));
  Training second(model, loss, options);
  second.load(folder);
  for (int64_t step = 0; step < 2; ++step) second.step(rows_from(0, 2));
  EXPECT_EQ(seen, (std::vector<double>{0, 0, 1.0 / 3, 1.0 / 3, 2.0 / 3, 2.0 / 3, 0, 1, 1}));
  seen.clear();
  Training endless(model, loss, {.groups = kAdamW});
  for (int64_t step = 0; step < 2; ++step) endless.step(rows_from(0, 2));
  EXPECT_EQ(seen, (std::vector<double>{0, 0}));
  EXPECT_EQ(training_progress(0, 1), 0);
  EXPECT_EQ(training_progress(1, 1), 1);
}

// Steps that change no weight have the same gradient if the temperature is the same.
TEST(Training, TheTemperatureOfNatsIsTheFirstAtTheFirstStepAndTheEndAtTheLast) {
  auto norms = [](double temperature, double end_temperature) {
    LanguageModelOptions options = tiny_options();
    options.mixers = {
        NatsOptions{.heads = 2, .window = 2, .temperature = temperature, .end_temperature = end_temperature}};
    LanguageModel model(options, Rng(1));
    Training training(model, {.groups = kAdamW, .steps = 4, .lr_factor = [](int64_t) { return 0.0; }});
    std::vector<double> all;
    for (int64_t step = 0; step < 4; ++step) all.push_back(training.step(rows_from(0, 4)).grad_norm);
    return all;
  };
  const std::vector<double> falling = norms(0.9, 0.4), first = norms(0.9, 0.9), last = norms(0.4, 0.4);
  EXPECT_EQ(falling[0], first[0]);
  EXPECT_EQ(falling[3], last[3]);
  for (size_t step : {1u, 2u}) {
    EXPECT_NE(falling[step], first[step]);
    EXPECT_NE(falling[step], last[step]);
  }
  EXPECT_NE(first[3], last[3]);
}

// The optimiser is not told of working copies: forward finds them out of date.
TEST(Training, AnOptimiserWithoutWorkingCopiesTrainsTheSameBits) {
  LanguageModel a(tiny_options(), Rng(1)), b(tiny_options(), Rng(1));
  Training with(a, {.groups = kAdamW, .compute = kBF16});
  auto make = [](std::vector<OptimizerParam> params) {
    for (OptimizerParam& p : params) p.working = {};
    return std::make_unique<Optimizer>(kAdamW, std::move(params));
  };
  Training without(b, {.optimizer = make, .compute = kBF16});
  for (int64_t step = 0; step < 5; ++step) {
    const data::Batch rows = rows_from(step * 4, 4);
    EXPECT_EQ(with.step(rows).loss, without.step(rows).loss) << step;
  }
  EXPECT_EQ(weights_of(a), weights_of(b));
  EXPECT_TRUE(working_copies_agree(b));
}

// What a user may rely on: with as many threads the same bits, in every kind of optimiser that cuts its work by threads.
TEST(Training, RepeatsBitForBitWithAsManyThreads) {
  LanguageModelOptions options = tiny_options();
  options.dim = 128, options.context = 64, options.ffn.hidden = 192, options.mixers = {SoftmaxOptions{.heads = 2}};
  const std::vector<ParamGroup> muon = {{.match = "layers.*.weight", .num_dims = 2, .algorithm = MuonOptions{}},
                                        kAdamW[0]};
  data::Batch rows{.tokens = Tensor::empty({20, 64}, kI32, Device::cpu()),
                   .targets = Tensor::empty({20, 64}, kI32, Device::cpu())};
  for (int64_t i = 0; i < 20 * 64; ++i) {
    rows.tokens.mutable_data<int32_t>()[i] = static_cast<int32_t>(i * i % kVocab);
    rows.targets.mutable_data<int32_t>()[i] = static_cast<int32_t>((i * 7 + i / 64) % kVocab);
  }
  const int before = num_threads();
  for (int threads : {2, 3})
    for (DType compute : {kF32, kBF16}) {
      SCOPED_TRACE(str(threads, " threads, ", compute));
      set_num_threads(threads);
      auto trained = [&] {
        LanguageModel model(options, Rng(1));
        Training training(model, {.groups = muon, .clip_norm = 1, .compute = compute});
        std::vector<double> losses;
        for (int step = 0; step < 2; ++step) losses.push_back(training.step(rows).loss);
        return std::pair(losses, weights_of(model));
      };
      const auto first = trained();
      EXPECT_LT(first.first[1], first.first[0]);
      EXPECT_TRUE(trained() == first);
    }
  set_num_threads(before);
}

TEST(Training, MicroBatchesOfAnySizeSumToOneStep) {
  std::vector<StepResult> results;
  for (int64_t micro_batch : {0, 4, 3, 1}) {
    LanguageModel model(tiny_options(), Rng(1));
    Training training(model, {.micro_batch = micro_batch, .byte_lengths = std::vector<int64_t>(kVocab, 2)});
    results.push_back(training.step(rows_from(0, 8)));
  }
  for (const StepResult& r : results) {
    EXPECT_EQ(r.num_targets, results[0].num_targets);
    EXPECT_EQ(r.num_bytes, 2 * r.num_targets);
    EXPECT_NEAR(r.loss, results[0].loss, 1e-6);
    EXPECT_NEAR(r.grad_norm, results[0].grad_norm, 1e-5);
    EXPECT_NEAR(r.byte_nats, r.loss * static_cast<double>(r.num_targets), 1e-4);
  }
  EXPECT_LT(results[0].num_targets, 8 * kContext);
}

TEST(Training, LossesOfTheCallerAreTheSameStep) {
  LanguageModelOptions options = tiny_options();
  options.residual_dropout = 0.2;
  LanguageModel a(options, Rng(1)), b(options, Rng(1));
  Training tokens(a, {.groups = kAdamW, .clip_norm = 1, .micro_batch = 4});
  Training losses(b, {}, {.groups = kAdamW, .clip_norm = 1});
  for (int64_t step = 0; step < 3; ++step) {
    const data::Batch rows = rows_from(step * 8, 8);
    const StepResult want = tokens.step(rows);
    auto loss_of = [&](const MicroBatch& m) {
      const int64_t first = 4 * m.index;
      TokenData data = plain_tokens(4, kContext);
      data.first_row = first;
      TokensOptions of_tokens = m.tokens;
      of_tokens.loss_share = 0;  // no auxiliary losses here
      Tokens here(data, of_tokens);
      return b
          .loss(rows.tokens.slice(0, first, first + 4), rows.targets.slice(0, first, first + 4), here,
                1.0 / static_cast<double>(want.num_targets))
          .loss;
    };
    const StepResult got = losses.step(2, loss_of);
    EXPECT_EQ(got.loss, want.loss);
    EXPECT_EQ(got.grad_norm, want.grad_norm);
  }
  EXPECT_EQ(weights_of(a), weights_of(b));
  EXPECT_EQ(error_of([&] { losses.step(rows_from(0, 1)); }, {"no loss of tokens", "TokenLoss"}), "");
}

TEST(Training, FrozenParametersStayAndCostNothing) {
  LanguageModel model(tiny_options(), Rng(1));
  model.set_frozen("layers.0.*");
  model.set_frozen("embedding.*");
  Training training(model, {.groups = kAdamW});
  const auto before = weights_of(model);
  for (int64_t step = 0; step < 3; ++step) training.step(rows_from(step * 4, 4));
  const auto after = weights_of(model);
  size_t num_moments = 0;
  const std::vector<NamedParam> params = model.params();
  for (size_t i = 0; i < params.size(); ++i) {
    const bool is_frozen =
        matches_pattern("layers.0.*", params[i].name) || matches_pattern("embedding.*", params[i].name);
    EXPECT_EQ(params[i].param->is_frozen(), is_frozen) << params[i].name;
    EXPECT_EQ(before[i] == after[i], is_frozen) << params[i].name;
    EXPECT_FALSE(params[i].param->grad().defined());
    num_moments += is_frozen ? 0 : 2;
  }
  for (const auto& [name, tensor] : training.optimizer().state()) EXPECT_FALSE(name.starts_with("layers.0.")) << name;
  EXPECT_EQ(training.optimizer().state().size(), num_moments);

  model.set_frozen("layers.0.*", false);
  EXPECT_EQ(error_of([&] { training.step(rows_from(0, 4)); }, {"layers.0.", "was frozen, unfrozen, moved"}), "");
  Training again(model, {.groups = kAdamW});
  again.step(rows_from(0, 4));
  EXPECT_NE(weights_of(model), after);
  EXPECT_EQ(error_of([&] { model.set_frozen("layer.0.*"); }, {"no parameter matches 'layer.0.*'"}), "");
  model.set_frozen("*");
  EXPECT_EQ(error_of([&] { Training none(model, TrainingOptions{}); }, {"all parameters are frozen"}), "");
}

// The sign of the gradient, by the rate; keeps how often it was called.
class SignOptimizer final : public AnyOptimizer {
 public:
  explicit SignOptimizer(std::vector<OptimizerParam> params) : params_(std::move(params)) {}
  void step(std::span<const Tensor> grads, double lr_factor, double grad_factor) override {
    for (size_t i = 0; i < params_.size(); ++i) {
      auto* x = params_[i].value.mutable_data<float>();
      const auto* g = grads[i].data<float>();
      for (int64_t k = 0; k < params_[i].value.num_elements(); ++k)
        x[k] -= static_cast<float>(0.003 * lr_factor) * (g[k] > 0 ? 1.0f : g[k] < 0 ? -1.0f : 0.0f);
    }
    last_factors = {lr_factor, grad_factor};
    ++num_steps_;
  }
  int64_t num_steps() const override { return num_steps_; }
  std::vector<std::pair<std::string, Tensor>> state() const override {
    return {{"calls", Tensor::from<int64_t>({num_steps_}, {1})}};
  }
  void load_state(std::span<const std::pair<std::string, Tensor>> state, int64_t num_steps) override {
    WEFT_CHECK(state.size() == 1 && state[0].second.item() == static_cast<double>(num_steps), "sign: not my state", "");
    num_steps_ = num_steps;
  }
  std::pair<double, double> last_factors;

 private:
  std::vector<OptimizerParam> params_;
  int64_t num_steps_ = 0;
};

TEST(Training, TakesAnOptimiserAndAScheduleOfOnesOwn) {
  for (DType compute : {kF32, kBF16}) {
    LanguageModel model(tiny_options(), Rng(1));
    auto make = [](std::vector<OptimizerParam> params) { return std::make_unique<SignOptimizer>(std::move(params)); };
    auto factor = [](int64_t step) { return step < 20 ? 1.0 : 0.25; };
    Training training(model, {.optimizer = make, .lr_factor = factor, .clip_norm = 0.5, .compute = compute});
    double first = 0, last = 0;
    for (int64_t step = 0; step < 40; ++step) {
      StepResult r = training.step(rows_from(step * 8, 8));
      auto [lr_factor, grad_factor] = static_cast<SignOptimizer&>(training.optimizer()).last_factors;
      EXPECT_EQ(lr_factor, factor(step));
      EXPECT_EQ(grad_factor, clip_factor(r.grad_norm, 0.5));
      if (step == 0) first = r.loss;
      last = r.loss;
    }
    EXPECT_LT(last, 0.7 * first) << "from " << first;
    EXPECT_TRUE(working_copies_agree(model));
    EXPECT_EQ(error_of([&] { Training both(model, {.groups = kAdamW, .optimizer = make}); }, {"both given"}), "");
  }
}

TEST(Training, RefusesStepsThatAreNotFiniteUnlessAGuardSkipsThem) {
  LanguageModel model(tiny_options(), Rng(1));
  Param& norm = *model.params().back().param;
  Training plain(model, {.groups = kAdamW}), guarded(model, {.groups = kAdamW, .guard = {.is_on = true}});
  norm.set_value(Tensor::full(norm.value().shape(), NAN));
  EXPECT_EQ(error_of([&] { plain.step(rows_from(0, 2)); }, {"step 0: loss nan", "gradient norm nan", "guard"}), "");
  model.clear_grads();
  const std::vector<float> before = weights_of(model)[0];
  const StepResult skipped = guarded.step(rows_from(0, 2));
  EXPECT_TRUE(skipped.was_skipped);
  EXPECT_FALSE(std::signbit(skipped.loss) || std::signbit(skipped.grad_norm)) << "no -nan in messages";
  EXPECT_EQ(guarded.num_steps(), 1);
  EXPECT_EQ(guarded.num_skipped(), 1);
  EXPECT_EQ(guarded.optimizer().num_steps(), 0);
  EXPECT_EQ(weights_of(model)[0], before);
  norm.set_value(Tensor::full(norm.value().shape(), 1));
  EXPECT_FALSE(guarded.step(rows_from(0, 2)).was_skipped);
  EXPECT_NE(weights_of(model)[0], before);
}

// As if a second rank had the same rows: everything that is summed is doubled.
class Twice final : public RankSums {
 public:
  void sum_counts(std::span<int64_t> counts) override {
    for (int64_t& c : counts) c *= 2;
    calls.push_back("counts");
  }
  void sum_gradient(size_t param, Tensor& grad) override {
    ops::scale_(grad, 2);
    calls.push_back("gradient");
    order.push_back(param);
  }
  void finish_gradients() override { calls.push_back("finish"); }
  void sum_values(Tensor& values) override {
    ops::scale_(values, 2);
    calls.push_back("values");
  }
  std::vector<std::string> calls;
  std::vector<size_t> order;
};

TEST(Training, HandsOverCountsGradientsAndLossesToBeSummedOverRanks) {
  LanguageModelOptions options = tiny_options();
  options.mixers = {
      SoftmaxOptions{.heads = 4, .head_mixture = {.active = 2, .balance_loss = 0.1, .has_running_load = true}}};
  LanguageModel a(options, Rng(1)), b(options, Rng(1));
  Twice twice;
  const std::vector<int64_t> bytes(kVocab, 1);
  Training alone(a, {.groups = kAdamW, .clip_norm = 1, .micro_batch = 2, .byte_lengths = bytes}),
      shared(b, {.groups = kAdamW, .clip_norm = 1, .micro_batch = 2, .byte_lengths = bytes, .ranks = {.sums = &twice}});
  std::vector<size_t> finals;
  const std::vector<NamedParam> params = b.params();
  std::vector<GradHook> hooks;
  for (size_t i = 0; i < params.size(); ++i)
    hooks.push_back(params[i].param->var().on_step_grad([&finals, i](Tensor&) { finals.push_back(i); }));
  for (int64_t step = 0; step < 3; ++step) {
    twice.calls.clear(), twice.order.clear(), finals.clear();
    const data::Batch rows = rows_from(step * 4, 4);
    const StepResult want = alone.step(rows), got = shared.step(rows);
    EXPECT_EQ(got.num_targets, 2 * want.num_targets);
    EXPECT_EQ(got.num_bytes, 2 * want.num_bytes);
    EXPECT_EQ(got.loss, want.loss);
    EXPECT_EQ(got.byte_nats, 2 * want.byte_nats);
    EXPECT_EQ(got.grad_norm, want.grad_norm);
    ASSERT_EQ(twice.order.size(), params.size()) << "each parameter once, though there are two micro-batches";
    EXPECT_EQ(twice.order, finals);
    EXPECT_NE(twice.order.front(), 0u) << "the embedding is not the first to be final";
    std::vector<std::string> calls{"counts"};
    calls.insert(calls.end(), params.size(), "gradient");
    calls.push_back("finish");
    calls.insert(calls.end(), 1 + 2 * b.buffers().size(), "values");
    EXPECT_EQ(twice.calls, calls);
  }
  EXPECT_GT(b.buffers().size(), 0u);
  EXPECT_EQ(weights_of(a), weights_of(b));
  for (size_t i = 0; i < a.buffers().size(); ++i)
    EXPECT_EQ(a.buffers()[i].buffer->value().to_vector<float>(), b.buffers()[i].buffer->value().to_vector<float>());
}

TEST(Training, EvaluatesItsOwnRowsAndWindows) {
  LanguageModel model(tiny_options(), Rng(1));
  Training training(model, {.groups = {{.algorithm = ScheduleFreeOptions{}}}, .micro_batch = 3});
  for (int64_t step = 0; step < 3; ++step) training.step(rows_from(step * 6, 6));
  const data::Batch rows = rows_from(0, 7);
  const auto points = weights_of(model);
  const Evaluation got = training.evaluate(rows);
  EXPECT_EQ(weights_of(model), points) << "where training goes on";
  AveragedWeights averages(training.optimizer());
  NoGrad no_grad;
  Tokens tokens(plain_tokens(7, kContext));
  auto losses = model.loss(rows.tokens, rows.targets, tokens, 1).losses.to_vector<float>();
  double nats = 0;
  int64_t count = 0;
  for (size_t i = 0; i < losses.size(); ++i) {
    nats += static_cast<double>(losses[i]);
    count += rows.targets.data<int32_t>()[i] >= 0;
  }
  EXPECT_EQ(got.num_targets, count);
  EXPECT_NEAR(got.nats, nats, 1e-4);
  std::vector<int32_t> ids(40, 3);
  data::ValidationWindows windows(data::Dataset(ids), {.context = kContext, .vocab = kVocab});
  EXPECT_EQ(training.evaluate(windows).num_targets, 39);
}

TEST(Training, RefusesWhatDoesNotGoTogether) {
  LanguageModel model(tiny_options(), Rng(1));
  EXPECT_EQ(error_of([&] { Training t(model, {.schedule = {.kind = ScheduleKind::cosine}}); },
                     {"a schedule that falls, over 0 steps", "set steps"}),
            "");
  Training training(model, {.groups = kAdamW});
  data::Batch rows = rows_from(0, 2);
  rows.targets = rows.targets.slice(0, 0, 1);
  EXPECT_EQ(error_of([&] { training.step(rows); }, {"targets are [1, 8] i32 cpu", "tokens [2, 8]"}), "");
  rows.targets = Tensor::zeros({2, kContext}, kI64);
  EXPECT_EQ(error_of([&] { training.step(rows); }, {"targets are [2, 8] i64 cpu"}), "");
  model.set_compute(kF64);
  EXPECT_EQ(error_of([&] { training.step(rows_from(0, 2)); }, {"moved or converted", "set_compute()"}), "");
}

}  // namespace
// A mixer that refuses numbers ends a training as a loss that is not finite does.
TEST(Training, HasDivergedWhereAMixerMeetsNumbersThatItDoesNotTake) {
  LanguageModelOptions o = tiny_options();
  o.mixers = {AdditiveSlotsOptions{.heads = 2}};
  LanguageModel model(o, Rng(1));
  Training training(model, {.groups = {{.algorithm = AdamWOptions{.lr = 1e4}}}});
  EXPECT_THROW(for (int step = 0; step < 10; ++step) training.step(rows_from, training.num_samples(), 8), Diverged);
}

}  // namespace weft
