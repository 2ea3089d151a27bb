// Parts of the training loop: the outlier guard, the numbers of an evaluation.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numbers>

#include "src/training/step_losses.h"
#include "tests/io/temp_folder.h"
#include "tests/support/errors.h"
#include "tests/support/random.h"
#include "tests/trainers/config_text.h"
#include "trainers/run/evaluate.h"
#include "trainers/run/peak_rate.h"
#include "trainers/run/recorder.h"
#include "trainers/run/session.h"
#include "trainers/run/trainer.h"

namespace weft::train {
namespace {

using test::error_of;

double wave(int step) { return 3 + 0.1 * std::sin(step); }

TEST(OutlierGuard, SkipsAPlantedSpikeAndLearnsNothingFromIt) {
  OutlierGuard guard({.is_on = true, .loss_z = 6, .grad_z = 6, .window = 16});
  for (int step = 0; step < 16; ++step) EXPECT_FALSE(guard.refuses(wave(step), 1 + 0.05 * std::cos(step))) << step;
  std::deque<OutlierGuard::Entry> before = guard.window();
  EXPECT_TRUE(guard.refuses(6, 1)) << "loss";
  EXPECT_TRUE(guard.refuses(3, 4)) << "gradient norm";
  ASSERT_EQ(guard.window().size(), before.size());
  for (size_t i = 0; i < before.size(); ++i) EXPECT_EQ(guard.window()[i].loss, before[i].loss);
  EXPECT_FALSE(guard.refuses(wave(16), 1)) << "an ordinary step after the spike";
  EXPECT_FALSE(guard.refuses(0.5, 0.01)) << "a step far below the mean is no outlier";
  EXPECT_EQ(guard.window().size(), 16u);
}

TEST(OutlierGuard, JudgesByZScoreOnceTheWindowIsFull) {
  OutlierGuard guard({.is_on = true, .loss_z = 2, .grad_z = 100, .window = 4});
  EXPECT_FALSE(guard.refuses(1, 1));
  EXPECT_FALSE(guard.refuses(1000, 1)) << "the window is not full: nothing finite is refused";
  guard.set_window({{1, 1}, {2, 1}, {3, 1}, {4, 1}});  // mean 2.5, standard deviation sqrt(5/3): the bound is 5.08
  EXPECT_TRUE(guard.refuses(5.09, 1));
  EXPECT_FALSE(guard.refuses(5.07, 1));
}

TEST(OutlierGuard, SkipsWhatIsNotFiniteAtOnceAndNothingWhenOff) {
  OutlierGuard guard({.is_on = true});
  EXPECT_TRUE(guard.refuses(NAN, 1));
  EXPECT_TRUE(guard.refuses(1, INFINITY));
  EXPECT_TRUE(guard.window().empty());
  OutlierGuard off({.is_on = false});
  EXPECT_FALSE(off.refuses(NAN, INFINITY));
}

TEST(OutlierGuard, GivesUpAfterTooManyRefusalsInARowAndOnlyThen) {
  OutlierGuard guard({.is_on = true, .loss_z = 6, .grad_z = 6, .window = 4, .max_in_a_row = 3});
  for (int step = 0; step < 4; ++step) EXPECT_FALSE(guard.refuses(wave(step), 1 + 0.05 * std::cos(step)));
  for (int round = 0; round < 2; ++round) {
    EXPECT_TRUE(guard.refuses(NAN, 1));
    EXPECT_TRUE(guard.refuses(1e6, 1)) << "outliers count as what is not finite does";
    EXPECT_EQ(guard.num_in_a_row(), 2);
    EXPECT_FALSE(guard.gives_up());
    EXPECT_FALSE(guard.refuses(wave(4 + round), 1));
    EXPECT_EQ(guard.num_in_a_row(), 0) << "an accepted step begins anew";
  }
  OutlierGuard resumed({.is_on = true, .max_in_a_row = 3});
  resumed.set_in_a_row(2);
  EXPECT_TRUE(resumed.refuses(1, INFINITY));
  EXPECT_TRUE(resumed.gives_up());
}

TEST(StepLosses, AddOnTheCpuInTheOrderOfTheTokens) {
  const std::vector<int64_t> bytes{3, 0, 1};
  StepLosses losses;
  Upload upload(Device::cpu());
  double loss = 0, byte_nats = 0;
  for (int step = 0; step < 2; ++step) {
    losses.start();
    loss = byte_nats = 0;
    for (int micro_batch = 0; micro_batch < 3; ++micro_batch) {
      Tensor nats = test::random_normal({2, 5}, str(step, "/", micro_batch));
      std::vector<int32_t> ids;
      for (int i = 0; i < 10; ++i) ids.push_back((i * 7 + micro_batch) % 4 - 1);
      Tensor total = Tensor::full({}, 0.1 * micro_batch + step, kF32, Device::cpu());
      losses.add(total, nats, Tensor::from(std::span<const int32_t>(ids), {2, 5}), bytes, upload);
      loss += total.item();
      for (size_t i = 0; i < ids.size(); ++i)
        if (ids[i] == 0 || ids[i] == 2) byte_nats += static_cast<double>(nats.data<float>()[i]);
    }
    losses.send();
    StepLosses::Sums sums = losses.sums();
    EXPECT_EQ(sums.loss, loss);
    EXPECT_EQ(sums.byte_nats, byte_nats);
  }
}

TEST(PeakRate, IsMeasuredAgainWhereMfuIsAboveOne) {
  int calls = 0;
  PeakRate rate(100, [&] { return ++calls, 400.0; });
  EXPECT_EQ(rate.utilisation(50), 0.5);
  EXPECT_EQ(calls, 0);
  EXPECT_EQ(rate.utilisation(200), 0.5);
  EXPECT_EQ(calls, 1);
  EXPECT_NE(rate.note().find("measured again"), std::string::npos) << rate.note();
  EXPECT_EQ(rate.utilisation(200), 0.5);
  EXPECT_EQ(rate.note(), "");
}

TEST(PeakRate, SaysOnceThatItCannotBeTrusted) {
  int calls = 0;
  PeakRate rate(100, [&] { return ++calls, 90.0; });
  EXPECT_EQ(rate.utilisation(200), 2);
  EXPECT_EQ(calls, PeakRate::kMostMeasurements - 1);
  EXPECT_NE(rate.note().find("above 100 %"), std::string::npos) << rate.note();
  EXPECT_EQ(rate.utilisation(300), 3);
  EXPECT_EQ(calls, PeakRate::kMostMeasurements - 1);
  EXPECT_EQ(rate.note(), "");
  PeakRate failing(100, []() -> double { fail("out of memory", "use less"); });
  EXPECT_EQ(failing.utilisation(200), 2);
}

// The matrices that measure the peak rate are larger than the run's tensors, on whichever device.
TEST(Recorder, ThePeakOfARunLeavesOutMeasurementsWithinIt) {
  constexpr int64_t kMiB = 1 << 20;
  const test::TempFolder temporary;
  RunFolder folder(temporary / "run", config::test::load_string(config::test::kTiny).experiment, {});
  cli::Console console(cli::Verbosity::quiet, false);
  auto use = [](int64_t mebibytes) { Tensor::zeros({(mebibytes * kMiB - 64) / 4}, kF32); };  // less a guard
  int calls = 0;
  Recorder recorder(
      folder, console, {.context = 4, .micro_batch = 1, .rows_per_step = 1, .tokens_per_step = 4, .steps = 5}, {"all"},
      {.log_every = 1, .writes_events = false, .peak_flops = 1, .flops_per_token = 100, .measure_peak_flops = [&] {
         use(128);
         WEFT_CHECK(++calls == 1, "no memory for more", "use less");
         return 10.0;
       }});
  forget_peak(default_device());
  const int64_t before = allocator(default_device()).stats().current_bytes;
  int64_t step = 0;
  auto peak_of_step = [&](int64_t mebibytes) {
    use(mebibytes);
    recorder.step({.loss = 1}, ++step, std::vector<double>{0.1}, 1, 1, 0);
    for (const auto& [tag, value] : recorder.last("train")->values)
      if (tag == "memory/peak_gib") return value * 1024 - static_cast<double>(before) / kMiB;
    return 0.0;
  };
  EXPECT_NEAR(peak_of_step(32), 32, 0.1);
  EXPECT_NEAR(peak_of_step(8), 32, 0.1) << "the first step was larger";
  EXPECT_NEAR(peak_of_step(40), 40, 0.1);
  EXPECT_EQ(calls, 2);
}

// Of a stream with `documents` of ids: 6 ends one. The optimiser has momenta, decays and clips.
struct TinyRun {
  LanguageModel model;
  data::Loader loader;
  Trainer trainer;

  TinyRun(const std::vector<int32_t>& ids, int64_t micro_batch, int64_t rows,
          MixerMaker mixer = SoftmaxOptions{.heads = 2}, GuardOptions guard = {})
      : model({.vocab = 7, .dim = 8, .layers = 1, .context = 4, .mixers = {std::move(mixer)}, .ffn = {.hidden = 16}},
              Rng(3)),
        loader({{data::Dataset(ids), 1.0}},
               {.context = 4, .vocab = 7, .documents = data::DocumentRule::ends_with_id, .end_of_text = 6}, 1),
        trainer(model, loader,
                {.sizes = {.context = 4,
                           .micro_batch = micro_batch,
                           .rows_per_step = rows,
                           .micro_batches = rows / micro_batch,
                           .tokens_per_step = 4 * rows,
                           .steps = 10},
                 .groups = {{.algorithm = AdamWOptions{.lr = 0.01, .weight_decay = 0.1}}},
                 .schedule = {},
                 .clip_norm = 1,
                 .guard = guard,
                 .keeps_documents_apart = true,
                 .byte_lengths = {1, 1, 1, 1, 1, 1, 0}}) {}

  std::vector<float> weights() const {
    std::vector<float> all;
    for (const NamedParam& p : model.params())
      for (float x : p.param->value().to_vector<float>()) all.push_back(x);
    return all;
  }
};

// Ids whose rows of four are, with the given shares, whole documents or ends of documents alone.
std::vector<int32_t> ids_of(int whole, int ends) {
  std::vector<int32_t> ids;
  for (int i = 0; i < whole; ++i)
    for (int t = 0; t < 4; ++t) ids.push_back((i + t * t) % 6);
  ids.insert(ids.end(), static_cast<size_t>(4 * ends), 6);
  return ids;
}

TEST(Trainer, AStepWithoutTargetsHasLossZeroAndGradientsZero) {
  MoaOptions experts{.experts = 4, .active = 2};  // with an auxiliary loss of its routers
  const MixerMaker mixers[] = {SoftmaxOptions{.heads = 2}, experts};
  for (const MixerMaker& mixer : mixers) {
    TinyRun run(ids_of(0, 20), 2, 4, mixer, {.is_on = true, .window = 2});
    std::vector<float> before = run.weights();
    std::vector<Tensor> zeros;
    for (const NamedParam& p : run.model.params()) zeros.push_back(Tensor::zeros(p.param->value().shape()));
    TinyRun other(ids_of(0, 20), 2, 4, mixer);
    for (int step = 1; step <= 3; ++step) {
      StepResult result = run.trainer.step();
      EXPECT_EQ(result.loss, 0);
      EXPECT_EQ(result.grad_norm, 0);
      EXPECT_EQ(result.num_targets, 0);
      EXPECT_EQ(result.num_bytes, 0);
      EXPECT_FALSE(result.was_skipped);
      EXPECT_EQ(run.trainer.num_steps(), step);
      other.trainer.optimizer().step(zeros, result.lr_factor);
    }
    EXPECT_TRUE(run.weights() != before) << "weights decay by an update of zeros";
    EXPECT_TRUE(run.weights() == other.weights());
    EXPECT_TRUE(run.trainer.guard().window().empty()) << "no sample of the losses";
  }
}

TEST(Trainer, AMicroBatchWithoutTargetsAddsNothing) {
  const std::vector<int32_t> ids = ids_of(4, 8);  // at most five of the first eight rows have targets
  TinyRun one(ids, 8, 8), each(ids, 1, 8);
  StepResult a = one.trainer.step(), b = each.trainer.step();
  EXPECT_GT(a.num_targets, 0);
  EXPECT_LE(a.num_targets, 20);
  EXPECT_EQ(a.num_targets, b.num_targets);
  EXPECT_EQ(a.num_bytes, b.num_bytes);
  EXPECT_NEAR(a.loss, b.loss, 1e-6);
  EXPECT_NEAR(a.byte_nats, b.byte_nats, 1e-5);
  EXPECT_NEAR(a.grad_norm, b.grad_norm, 1e-6);
}

LanguageModel tiny_model() {
  return LanguageModel(
      {.vocab = 7, .dim = 8, .layers = 1, .context = 4, .mixers = {SoftmaxOptions{.heads = 2}}, .ffn = {.hidden = 16}},
      Rng(3));
}

// Two documents of 5 and 6 tokens that end with id 6, in windows of 4; the second goes on in the padded last window.
struct Windows {
  std::vector<int32_t> ids{1, 2, 3, 4, 6, 2, 2, 5, 1, 0, 6};
  data::ValidationWindows windows{
      data::Dataset(ids), {.context = 4, .vocab = 7, .documents = data::DocumentRule::ends_with_id, .end_of_text = 6}};
};

TEST(Evaluation, EqualsItsFormulasOverEveryTargetOnce) {
  LanguageModel model = tiny_model();
  Windows data;
  std::vector<int64_t> bytes{1, 1, 2, 3, 1, 1, 0};  // the end of text has no bytes: it counts in the loss, not per byte
  Evaluation got = evaluate(model, data.windows, {.batch = 2, .keeps_documents_apart = true, .byte_lengths = bytes});

  // By hand: each window alone, targets and documents written out.
  struct Target {
    int64_t window, position, id, document;
  };
  const Target targets[] = {{0, 0, 2, 0}, {0, 1, 3, 0}, {0, 2, 4, 0}, {0, 3, 6, 0}, {1, 1, 2, 2},
                            {1, 2, 5, 2}, {1, 3, 1, 2}, {2, 0, 0, 2}, {2, 1, 6, 2}};
  NoGrad no_grad;
  double nats = 0, byte_nats = 0;
  int64_t num_bytes = 0;
  std::map<int64_t, std::pair<double, double>> clusters;
  const std::vector<std::vector<int32_t>> inputs{{1, 2, 3, 4}, {6, 2, 2, 5}, {1, 0}};
  const std::vector<std::vector<int32_t>> documents{{0, 0, 0, 0}, {0, 1, 1, 1}, {0, 0}};
  for (int64_t w = 0; w < 3; ++w) {
    int64_t count = static_cast<int64_t>(inputs[static_cast<size_t>(w)].size());
    TokenData token_data = plain_tokens(1, count);
    token_data.documents = Tensor::from(std::span<const int32_t>(documents[static_cast<size_t>(w)]), {1, count});
    std::vector<int32_t> places(static_cast<size_t>(count));
    for (size_t t = 0, begin = 0; t < places.size(); ++t) {
      if (t > 0 && documents[static_cast<size_t>(w)][t] != documents[static_cast<size_t>(w)][t - 1]) begin = t;
      places[t] = static_cast<int32_t>(t - begin);
    }
    token_data.document_positions = Tensor::from(std::span<const int32_t>(places), {1, count});
    Tokens tokens(token_data);
    auto logits =
        model.logits(Tensor::from(std::span<const int32_t>(inputs[static_cast<size_t>(w)]), {1, count}), tokens)
            .to_vector<float>();
    for (const Target& t : targets) {
      if (t.window != w) continue;
      double sum = 0;
      for (int64_t v = 0; v < 7; ++v)
        sum += std::exp(static_cast<double>(logits[static_cast<size_t>(t.position * 7 + v)]));
      double loss = std::log(sum) - static_cast<double>(logits[static_cast<size_t>(t.position * 7 + t.id)]);
      nats += loss;
      num_bytes += bytes[static_cast<size_t>(t.id)];
      if (bytes[static_cast<size_t>(t.id)] > 0) byte_nats += loss;
      clusters[t.document].first += loss;
      clusters[t.document].second += 1;
    }
  }
  double residuals = 0, n = static_cast<double>(clusters.size());
  for (const auto& [document, sums] : clusters) residuals += std::pow(sums.first - nats / 9 * sums.second, 2);

  EXPECT_EQ(got.num_targets, 9);
  EXPECT_EQ(got.num_bytes, num_bytes);
  EXPECT_NEAR(got.loss(), nats / 9, 1e-5);
  EXPECT_NEAR(got.perplexity(), std::exp(nats / 9), 1e-4);
  EXPECT_NEAR(got.bits_per_byte(), byte_nats / (std::numbers::ln2 * static_cast<double>(num_bytes)), 1e-5);
  EXPECT_NEAR(got.standard_error, std::sqrt(n / (n - 1) * residuals) / 9, 1e-5);
}

TEST(Evaluation, LooksAtNoMoreTokensThanAskedAndReportsProgress) {
  LanguageModel model = tiny_model();
  Windows data;
  std::vector<std::pair<int64_t, int64_t>> progress;
  EvaluateOptions options{.max_tokens = 8,
                          .progress = [&](int64_t done, int64_t total) { progress.emplace_back(done, total); }};
  EXPECT_EQ(evaluate(model, data.windows, options).num_targets, 7);
  EXPECT_EQ(progress, (std::vector<std::pair<int64_t, int64_t>>{{1, 2}, {2, 2}}));
}

TEST(Evaluation, OfOneWindowHasNoStandardError) {
  LanguageModel model = tiny_model();
  Windows data;
  const Evaluation one = evaluate(model, data.windows, {.max_tokens = 4});
  EXPECT_TRUE(std::isnan(one.standard_error));
  EXPECT_EQ(one.text().find("+-"), std::string::npos) << one.text();
  EXPECT_NE(one.text().find(" nats per token"), std::string::npos);
  EXPECT_NE(validation_text(1, 0, 2, {}).find("1.0000 +- 0.0000 nats"), std::string::npos) << "an error of 0 is one";
}

TEST(Evaluation, WithoutTargetsSaysSoInsteadOfALoss) {
  LanguageModel model = tiny_model();
  data::ValidationWindows windows(
      data::Dataset(std::vector<int32_t>(9, 6)),
      {.context = 4, .vocab = 7, .documents = data::DocumentRule::ends_with_id, .end_of_text = 6});
  Evaluation got = evaluate(model, windows, {.batch = 2, .keeps_documents_apart = true});
  EXPECT_FALSE(got.has_targets());
  EXPECT_EQ(got.loss(), 0);
  EXPECT_TRUE(std::isnan(got.standard_error));
  EXPECT_EQ(got.bits_per_byte(), 0);
  EXPECT_EQ(got.text(), "no validation loss: none of the tokens has a target");
}

}  // namespace
}  // namespace weft::train
