// Models that learn recall tasks.
#include <gtest/gtest.h>

#include <algorithm>

#include "weft/core/parallel.h"
#include "weft/training/recall_score.h"
#include "weft/training/training.h"

namespace weft {
namespace {

using data::RecallTask;
using data::Split;

// Accuracy on test rows after so many steps of 64 rows.
double accuracy_after(const RecallTask& task, int64_t steps, int64_t layers) {
  set_num_threads(1);  // steps of a millisecond: several threads of two such tests at a time would wait for each other
  LanguageModel model({.vocab = task.vocab(),
                       .dim = 32,
                       .layers = layers,
                       .context = task.context(),
                       .mixers = {SoftmaxOptions{.heads = 2}},
                       .ffn = {.hidden = 32},
                       .std = 0.15},
                      Rng(1));
  auto lr = [steps](int64_t step) {
    const double left = 1 - static_cast<double>(step) / static_cast<double>(steps);
    return std::min({1.0, static_cast<double>(step + 1) / 30, 2 * left});
  };
  Training training(model, {.groups = {{.algorithm = AdamWOptions{.lr = 1e-2, .beta2 = 0.99, .weight_decay = 0}}},
                            .lr_factor = lr,
                            .clip_norm = 1});
  for (int64_t step = 0; step < steps; ++step) training.step(task.samples(Split::train), step * 64, 64);
  return score_recall(model, task, 256).all.share();
}

// A value stands behind its key, so that a head of one layer does not find it by the key. Two layers do.
TEST(RecallLearning, SoftmaxNeedsTwoLayersForMqar) {
  const RecallTask task(data::MqarOptions{.vocab = 16, .pairs = 3}, 14, 1);
  EXPECT_GT(accuracy_after(task, 1500, 2), 0.95);
  EXPECT_LT(accuracy_after(task, 1500, 1), 0.8);
}

TEST(RecallLearning, TwoLayersOfSoftmaxLearnInduction) {
  EXPECT_GT(accuracy_after(RecallTask(data::InductionOptions{.symbols = 8}, 16, 1), 500, 2), 0.9);
}

}  // namespace
}  // namespace weft
