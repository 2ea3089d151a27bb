// Losses of ten training steps of a tiny model. They hold to 1e-4 on any CPU; a change that moves them changes the numbers of
// every run and has to say so.
#include <gtest/gtest.h>

#include "weft/core/stream.h"
#include "weft/ops/elementwise.h"
#include "weft/training/training.h"

namespace weft {
namespace {

LanguageModelOptions model_options() {
  return {.vocab = 61,
          .dim = 32,
          .layers = 2,
          .context = 24,
          .mixers = {SoftmaxOptions{.heads = 4, .kv_heads = 2, .qk_norm = QkNorm::rms, .window = 16}},
          .ffn = {.hidden = 48}};
}

data::Loader loader() {
  std::vector<int32_t> ids;
  for (int i = 0; i < 4000; ++i) ids.push_back((i * i / 7 + i % 5) % 61);
  return data::Loader({{data::Dataset(ids), 1.0}}, {.context = 24, .vocab = 61}, 3);
}

const std::vector<ParamGroup> kGroups = {{.match = "layers.*.weight", .num_dims = 2, .algorithm = MuonOptions{}},
                                         {.algorithm = AdamWOptions{.lr = 3e-3}}};
const ScheduleOptions kSchedule = {.kind = ScheduleKind::cosine, .warmup = 2};

// Written out, step by step.
std::vector<double> losses(DType compute, Device device = Device::cpu(), std::vector<int64_t>* waits = nullptr) {
  set_default_device(device);
  const data::Loader rows = loader();
  LanguageModel model(model_options(), Rng(3));
  model.set_compute(compute);
  Optimizer optimizer(kGroups, optimizer_params(model));
  std::vector<double> losses;
  for (int64_t step = 0; step < 10; ++step) {
    const int64_t waited = num_device_waits();
    data::Batch b = rows.batch(step * 4, 4);
    Tokens tokens({ops::to(b.positions, device)}, {.is_training = true, .rng = Rng(step)});
    Var loss = model.loss(ops::to(b.tokens, device), ops::to(b.targets, device), tokens, 1.0 / 96).loss;
    backward(loss);
    losses.push_back(loss.value().item());
    std::vector<Tensor> grads;
    for (const NamedParam& p : model.params()) grads.push_back(p.param->grad());
    optimizer.step(grads, schedule_factor(kSchedule, step, 10), clip_factor(global_norm(grads), 1));
    model.clear_grads();
    if (waits) waits->push_back(num_device_waits() - waited);
  }
  set_default_device(Device::cpu());
  return losses;
}

const double kExpected[] = {4.135367, 4.109627, 4.103985, 4.130754, 4.118342,
                            4.093783, 4.119906, 4.084484, 4.089096, 4.091913};

#ifdef WEFT_GOLDEN_DEVICES  // the same file as golden_device_test
TEST(GoldenOnDevices, LossesOfTenStepsStay) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  std::vector<int64_t> waits;
  std::vector<double> f32 = losses(kF32, Device::cuda(), &waits), bf16 = losses(kBF16, Device::cuda());
  for (size_t i = 0; i < f32.size(); ++i) {
    EXPECT_NEAR(f32[i], kExpected[i], 1e-4) << "step " << i;
    EXPECT_NEAR(bf16[i], kExpected[i], 0.05) << "step " << i;
    EXPECT_EQ(waits[i], 2) << "step " << i << " waits for its loss and its gradient norm";
  }
  EXPECT_TRUE(losses(kF32, Device::cuda()) == f32) << "two runs give the same bits";
}

#else

TEST(Golden, LossesOfTenStepsStay) {
  std::vector<double> actual = losses(kF32);
  for (size_t i = 0; i < actual.size(); ++i) EXPECT_NEAR(actual[i], kExpected[i], 1e-4) << "step " << i;
}

TEST(Golden, Bf16FollowsF32) {
  std::vector<double> f32 = losses(kF32), bf16 = losses(kBF16);
  for (size_t i = 0; i < f32.size(); ++i) EXPECT_NEAR(bf16[i], f32[i], 0.05) << "step " << i;
}

TEST(Golden, TwoRunsGiveTheSameBits) { EXPECT_TRUE(losses(kF32) == losses(kF32)); }

// The public step computes what the loop above writes out.
TEST(Golden, TheTrainingStepGivesTheSameBits) {
  for (DType compute : {kF32, kBF16}) {
    LanguageModel model(model_options(), Rng(3));
    Training training(model,
                      {.groups = kGroups, .schedule = kSchedule, .steps = 10, .clip_norm = 1, .compute = compute});
    const data::Loader rows = loader();
    std::vector<double> got;
    for (int64_t step = 0; step < 10; ++step) got.push_back(training.step(rows.batch(step * 4, 4)).loss);
    EXPECT_TRUE(got == losses(compute)) << str(compute);
  }
}

#endif

}  // namespace
}  // namespace weft
