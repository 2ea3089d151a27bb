// A training and a model in files.
#include <gtest/gtest.h>

#include "tests/io/temp_folder.h"
#include "tests/support/errors.h"
#include "tests/training/support.h"
#include "weft/models/sample.h"

namespace weft {
namespace {

using namespace test;

TrainingOptions options_of(DType compute) {
  return {.groups = {{.match = "layers.*.weight", .num_dims = 2, .algorithm = MuonOptions{}},
                     {.algorithm = AdamWOptions{.lr = 3e-3}}},
          .schedule = {.kind = ScheduleKind::cosine, .warmup = 2},
          .steps = 12,
          .clip_norm = 1,
          .compute = compute,
          .micro_batch = 2,
          .guard = {.is_on = true, .loss_z = 3, .grad_z = 3, .window = 2},
          .seed = 7};
}

LanguageModelOptions model_options() {
  LanguageModelOptions o = tiny_options();
  o.residual_dropout = 0.1;
  o.mixers = {SoftmaxOptions{.heads = 4, .head_mixture = {.active = 2, .has_running_load = true}}};
  return o;
}

TEST(TrainingCheckpoint, GoesOnBitForBit) {
  for (DType compute : {kF32, kBF16}) {
    TempFolder folder;
    const std::string path = folder / "checkpoints";
    LanguageModel a(model_options(), Rng(1)), b(model_options(), Rng(2));
    Training whole(a, options_of(compute)), rest(b, options_of(compute));
    auto step = [](Training& t) { return t.step(rows_from(t.num_samples(), 4)); };
    EXPECT_FALSE(rest.load(path)) << "there is none";
    for (int i = 0; i < 5; ++i) step(whole);
    EXPECT_EQ(whole.save(path), io::checkpoint_path(path, 5));
    ASSERT_TRUE(rest.load(path));
    EXPECT_EQ(rest.num_steps(), 5);
    EXPECT_EQ(rest.num_samples(), 20);
    EXPECT_EQ(rest.num_skipped(), whole.num_skipped());
    for (int i = 0; i < 5; ++i) {
      const StepResult want = step(whole), got = step(rest);
      EXPECT_EQ(got.loss, want.loss) << i;
      EXPECT_EQ(got.grad_norm, want.grad_norm) << i;
      EXPECT_EQ(got.lr_factor, want.lr_factor) << i;
      EXPECT_EQ(got.was_skipped, want.was_skipped) << i;
    }
    EXPECT_EQ(weights_of(a), weights_of(b));
    EXPECT_TRUE(working_copies_agree(b));
  }
}

// Also into a file and out of it, and what is sampled is the same.
TEST(TrainingCheckpoint, OfMixersAloneGoesOnBitForBit) {
  LanguageModelOptions o = model_options();
  o.has_ffn = false;
  o.mixers.push_back(DeltaOptions{.heads = 2});
  TempFolder folder;
  const std::string path = folder / "checkpoints", file = folder / "model.safetensors";
  LanguageModel a(o, Rng(1)), b(o, Rng(2)), c(o, Rng(3));
  Training whole(a, options_of(kF32)), rest(b, options_of(kF32));
  auto step = [](Training& t) { return t.step(rows_from(t.num_samples(), 4)); };
  const StepResult first = step(whole);
  for (int i = 0; i < 4; ++i) step(whole);
  whole.save(path);
  ASSERT_TRUE(rest.load(path));
  StepResult last;
  for (int i = 0; i < 5; ++i) {
    last = step(whole);
    EXPECT_EQ(step(rest).loss, last.loss) << i;
  }
  EXPECT_LT(last.loss, first.loss);
  EXPECT_EQ(weights_of(a), weights_of(b));
  save_model(a, file);
  load_model(c, file);
  EXPECT_EQ(weights_of(a), weights_of(c));
  a.set_compute(kF32);
  c.set_compute(kF32);
  const int32_t prompt[] = {1, 2};
  EXPECT_EQ(sample(a, prompt, {.tokens = 12}), sample(c, prompt, {.tokens = 12}));
  LanguageModelOptions other = o;
  other.has_ffn = true;
  LanguageModel wider(other, Rng(1));
  EXPECT_EQ(error_of([&] { load_model(wider, file); }, {"layers.0.ffn"}), "") << "weights of another kind of layer";
}

TEST(TrainingCheckpoint, OfAnotherModelOrOptimiserNamesWhatDoesNotFit) {
  TempFolder folder;
  const std::string path = folder / "checkpoints";
  LanguageModel model(tiny_options(), Rng(1));
  Training training(model, {});
  training.step(rows_from(0, 2));
  training.save(path);
  LanguageModelOptions wider = tiny_options();
  wider.ffn.hidden = 32;
  LanguageModel other(wider, Rng(1));
  Training of_other(other, {});
  const auto before = weights_of(other);
  EXPECT_EQ(error_of([&] { of_other.load(path); }, {"does not fit the model", "layers.0.ffn", "[16, 24]", "[16, 32]"}),
            "");
  EXPECT_EQ(weights_of(other), before);
  Training momenta(model, {.groups = {{.algorithm = LionOptions{}}}});
  EXPECT_EQ(error_of([&] { momenta.load(path); }, {"tensors in the state", "optimiser groups"}), "");
  training.save(path, "a state of the caller's");
  EXPECT_EQ(error_of([&] { training.load(path); }, {"state of checkpoint", "cannot be read"}), "");
}

TEST(TrainingCheckpoint, FallsBackOnTheNewestGoodOne) {
  TempFolder folder;
  const std::string path = folder / "checkpoints";
  LanguageModel model(tiny_options(), Rng(1));
  Training training(model, {});
  training.step(rows_from(0, 2));
  training.save(path);
  training.step(rows_from(2, 2));
  io::write_file_atomically(training.save(path) + "/state", "damaged");
  std::vector<std::string> messages;
  ASSERT_TRUE(training.load(path, &messages));
  EXPECT_EQ(training.num_steps(), 1);
  ASSERT_FALSE(messages.empty());
  EXPECT_NE(messages[0].find("step-00000002"), std::string::npos) << messages[0];
}

TEST(ModelFile, HoldsParametersAndBuffersAndRefreshesWorkingCopies) {
  TempFolder folder;
  LanguageModel a(model_options(), Rng(1)), b(model_options(), Rng(2));
  b.set_compute(kBF16);
  save_model(a, folder / "model.safetensors");
  load_model(b, folder / "model.safetensors");
  EXPECT_EQ(weights_of(a), weights_of(b));
  EXPECT_TRUE(working_copies_agree(b));
  EXPECT_EQ(model_tensors(a).size(), a.params().size() + a.buffers().size());
  LanguageModel other(tiny_options(), Rng(1));
  EXPECT_EQ(
      error_of([&] { load_model(other, folder / "model.safetensors"); }, {"unexpected in the file", "layers.0.mixer."}),
      "");
}

}  // namespace
}  // namespace weft
