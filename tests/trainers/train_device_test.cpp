// The training step on a GPU: what it computes, how often the CPU waits for it, and what a profile of it says.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/support/errors.h"
#include "trainers/run/memory_estimate.h"
#include "trainers/run/trainer.h"
#include "weft/core/profile.h"
#include "weft/core/stream.h"

namespace weft::train {
namespace {

struct StepOptions {
  std::vector<MixerMaker> mixers = {SoftmaxOptions{.heads = 2}};
  int64_t micro_batches = 2;
  bool has_bytes = true;
  bool keeps_documents_apart = true;
  GuardOptions guard = {};
  Recompute recompute = Recompute::none;
};

constexpr int32_t kVocab = 13;

data::Loader loader_of(bool keeps_documents_apart) {
  std::vector<int32_t> ids;
  for (int i = 0; i < 900; ++i) ids.push_back(i % 5 == 4 ? kVocab - 1 : (i * i / 3 + i) % (kVocab - 1));
  data::RowOptions rows{.context = 12, .vocab = kVocab};
  if (keeps_documents_apart) rows.documents = data::DocumentRule::ends_with_id, rows.end_of_text = kVocab - 1;
  return data::Loader({{data::Dataset(ids), 1.0}}, rows, 3);
}

// A trainer with all that it refers to, on the default device.
struct Training {
  explicit Training(const StepOptions& o)
      : loader(loader_of(o.keeps_documents_apart)),
        model({.vocab = kVocab,
               .dim = 8,
               .layers = 2,
               .context = 12,
               .mixers = o.mixers,
               .ffn = {.hidden = 8},
               .recompute = o.recompute},
              Rng(5)),
        trainer(model, loader,
                {.sizes = {.context = 12,
                           .micro_batch = 2,
                           .rows_per_step = 2 * o.micro_batches,
                           .micro_batches = o.micro_batches,
                           .tokens_per_step = 24 * o.micro_batches,
                           .steps = 8},
                 .groups = {{.algorithm = AdamWOptions{.lr = 1e-2}}},
                 .schedule = {},
                 .clip_norm = 1,
                 .guard = o.guard,
                 .keeps_documents_apart = o.keeps_documents_apart,
                 .byte_lengths = byte_lengths(o.has_bytes)}) {}

  static std::vector<int64_t> byte_lengths(bool has_bytes) {
    std::vector<int64_t> lengths(has_bytes ? kVocab : 0, 2);
    if (has_bytes) lengths[kVocab - 1] = 0, lengths[3] = 0;
    return lengths;
  }

  data::Loader loader;
  LanguageModel model;
  Trainer trainer;
};

struct OnDevice {
  explicit OnDevice(Device device) { set_default_device(device); }
  ~OnDevice() { set_default_device(Device::cpu()); }
};

struct Steps {
  std::vector<StepResult> results;
  std::vector<int64_t> waits;
};

Steps steps_on(Device device, const StepOptions& options) {
  OnDevice on(device);
  Training training(options);
  Steps steps;
  for (int i = 0; i < 3; ++i) {
    const int64_t before = num_device_waits();
    steps.results.push_back(training.trainer.step());
    steps.waits.push_back(num_device_waits() - before);
  }
  return steps;
}

// The numbers of the CPU, and `waits` of them for a device in each step.
void expect_steps(const StepOptions& options, int64_t waits) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  Steps cpu = steps_on(Device::cpu(), options), gpu = steps_on(Device::cuda(), options);
  for (size_t i = 0; i < cpu.results.size(); ++i) {
    const StepResult &want = cpu.results[i], &got = gpu.results[i];
    EXPECT_NEAR(got.loss, want.loss, 1e-4) << "step " << i;
    EXPECT_NEAR(got.grad_norm, want.grad_norm, 1e-3 * want.grad_norm) << "step " << i;
    EXPECT_NEAR(got.byte_nats, want.byte_nats, 1e-3) << "step " << i;
    EXPECT_EQ(got.byte_nats > 0, options.has_bytes);
    EXPECT_EQ(got.num_bytes, want.num_bytes);
    EXPECT_EQ(gpu.waits[i], waits) << "step " << i;
    EXPECT_EQ(cpu.waits[i], 0);
  }
}

TEST(StepOnDevices, WaitsOnceForLossAndGradientNorm) {
  for (bool has_bytes : {false, true}) expect_steps({.has_bytes = has_bytes}, 1);
  expect_steps({.micro_batches = 3}, 1);
}

TEST(StepOnDevices, WaitsOnceWithoutDocumentsToo) { expect_steps({.keeps_documents_apart = false}, 1); }

TEST(StepOnDevices, WaitsForNoTokenShiftWithDocuments) {
  expect_steps({.mixers = {SoftmaxOptions{.heads = 2, .window = 3, .affine = {.is_on = true}}}}, 1);
}

TEST(StepOnDevices, WaitsForNoMaskOfPairs) { expect_steps({.mixers = {MultiTokenOptions{.heads = 2}}}, 1); }

TEST(StepOnDevices, WaitsForNoRunningLoad) {
  expect_steps(
      {.mixers = {SoftmaxOptions{
           .heads = 4,
           .head_mixture = {.active = 2, .path = HeadPath::dense, .balance_loss = 0.1, .has_running_load = true}}}},
      1);
}

TEST(StepOnDevices, WaitsForNoRouterNoise) {
  expect_steps({.mixers = {MoaOptions{.experts = 3, .active = 2, .has_noise = true, .is_dense = true}}}, 1);
}

// Each of two layers asks for its choice once in each of two micro-batches; recomputed, once more.
TEST(StepOnDevices, WaitsForTheChoiceOfGroupedHeadsOncePerLayer) {
  SoftmaxOptions grouped{.heads = 4, .head_mixture = {.active = 2, .path = HeadPath::grouped}};
  expect_steps({.mixers = {grouped}}, 1 + 4);
  expect_steps({.mixers = {grouped}, .recompute = Recompute::mixers}, 1 + 8);
}

void plant_nan(LanguageModel& model) {
  Param& norm = *model.params().back().param;
  norm.set_value(Tensor::full(norm.value().shape(), NAN, kF32));
}

TEST(StepOnDevices, RefusesWhatIsNotFinite) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  OnDevice on(Device::cuda());
  Training training({});
  training.trainer.step();
  plant_nan(training.model);
  EXPECT_EQ(test::error_of([&] { training.trainer.step(); }, {"step 1: loss nan", "gradient norm nan"}), "");

  Training guarded({.guard = {.is_on = true}});
  guarded.trainer.step();
  plant_nan(guarded.model);
  Tensor embedding = guarded.model.params().front().param->value();
  auto before = embedding.to_vector<float>();
  StepResult result = guarded.trainer.step();
  EXPECT_TRUE(result.was_skipped && std::isnan(result.loss));
  EXPECT_EQ(embedding.to_vector<float>(), before);
}

TEST(StepOnDevices, TrainsAModelThatWasMovedThere) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  auto losses_on = [](Device device) {
    LanguageModel model(
        {.vocab = kVocab,
         .dim = 8,
         .layers = 2,
         .context = 12,
         .mixers = {SoftmaxOptions{
             .heads = 4, .position = MixerPosition::alibi, .head_mixture = {.active = 2, .has_running_load = true}}},
         .ffn = {.hidden = 8}},
        Rng(5));
    OnDevice on(device);
    model.to(device);
    weft::Training training(model, {.groups = {{.algorithm = AdamWOptions{.lr = 1e-2}}}, .clip_norm = 1});
    const data::Loader loader = loader_of(false);
    std::vector<double> losses;
    for (int64_t step = 0; step < 3; ++step) losses.push_back(training.step(loader.batch(4 * step, 4)).loss);
    for (const NamedParam& p : model.params()) EXPECT_EQ(p.param->value().device(), device) << p.name;
    for (const NamedBuffer& b : model.buffers()) EXPECT_EQ(b.buffer->value().device(), device) << b.name;
    return losses;
  };
  const std::vector<double> want = losses_on(Device::cpu()), got = losses_on(Device::cuda());
  for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-4) << "step " << i;
}

TEST(StepOnDevices, HasProfilesOfBackwardByModule) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  OnDevice on(Device::cuda());
  Training training({});
  training.trainer.step();
  Profile profile(Device::cuda());
  training.trainer.step();
  std::vector<ProfileSpan> spans = profile.finish();
  auto of = [&](std::string_view path) {
    auto found = std::find_if(spans.begin(), spans.end(), [&](const ProfileSpan& s) { return s.path == path; });
    EXPECT_TRUE(found != spans.end()) << path;
    return found == spans.end() ? ProfileSpan() : *found;
  };
  const ProfileSpan backward = of("backward"), matmul = of("model.layers.1.mixer.q.linear");
  EXPECT_EQ(matmul.depth, backward.depth + 1);
  EXPECT_GE(matmul.begin_us, backward.begin_us);
  EXPECT_GT(matmul.device_duration_us, 0);
  EXPECT_LE(matmul.device_begin_us + matmul.device_duration_us, backward.device_begin_us + backward.device_duration_us);
}

// A dry run copies nothing to a device and back, and ranks that share rows tell each other where their tokens stand.
TEST(StepOnDevices, ADryRunKnowsTheTokensOfTheOtherRanks) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  for (const MixerMaker& mixer :
       {MixerMaker(SoftmaxOptions{.heads = 2}), MixerMaker(RatOptions{.heads = 2, .chunk = 4})}) {
    MemorySubject s{
        .model = {.vocab = 60, .dim = 16, .layers = 2, .context = 48, .mixers = {mixer}, .ffn = {.hidden = 24}},
        .groups = {{}},
        .rows_per_step = 2};
    s.parallel.context = 2;
    const int64_t on_cpu = MemoryEstimator(s).of(1).sent_bytes;
    OnDevice on(Device::cuda());
    EXPECT_EQ(MemoryEstimator(s).of(1).sent_bytes, on_cpu);
    EXPECT_GT(on_cpu, 0);
  }
}

}  // namespace
}  // namespace weft::train
