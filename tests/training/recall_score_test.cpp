// Scores of recall tasks, and losses by position.
#include "weft/training/recall_score.h"

#include <gtest/gtest.h>

#include <cmath>

#include "weft/training/evaluate.h"

namespace weft {
namespace {

using data::RecallTask;
using data::Split;

LanguageModelOptions options_for(const RecallTask& task) {
  return {.vocab = task.vocab(),
          .dim = 64,
          .layers = 2,
          .context = task.context(),
          .mixers = {SoftmaxOptions{.heads = 2}},
          .ffn = {.hidden = 64}};
}

// The same counts from the logits of one row at a time, each with the argmax of the library.
TEST(RecallScore, CountsTheMostLikelyIds) {
  const RecallTask task(data::MqarOptions{.vocab = 16, .pairs = 3, .updates = 1}, 20, 1);
  LanguageModelOptions o = options_for(task);
  o.std = 0.3;
  LanguageModel model(o, Rng(4));
  constexpr int64_t kRows = 40;
  int64_t hits = 0, targets = 0, whole = 0;
  double nats = 0;
  std::vector<HitCount> groups(2);
  for (int64_t r = 0; r < kRows; ++r) {
    const data::RecallRows row = task.rows(Split::test, r, 1);
    Tokens tokens(plain_tokens(1, 20));
    const Tensor logits = model.logits(row.batch.tokens, tokens);
    const auto best = ops::argmax(logits, -1).to_vector<int64_t>();
    const auto values = logits.to_vector<float>();
    const auto wanted = row.batch.targets.to_vector<int32_t>(), group = row.groups.to_vector<int32_t>();
    int64_t missed = 0;
    for (size_t t = 0; t < 20; ++t) {
      if (wanted[t] < 0) continue;
      const bool is_hit = best[t] == wanted[t];
      double sum = 0;
      for (size_t v = 0; v < 16; ++v) sum += std::exp(static_cast<double>(values[t * 16 + v]));
      nats += std::log(sum) - static_cast<double>(values[t * 16 + static_cast<size_t>(wanted[t])]);
      ++targets, hits += is_hit, missed += !is_hit;
      ++groups[static_cast<size_t>(group[t])].targets, groups[static_cast<size_t>(group[t])].hits += is_hit;
    }
    whole += missed == 0;
  }
  const RecallScore score = score_recall(model, task, kRows, 7);
  EXPECT_EQ(score.all.hits, hits);
  EXPECT_EQ(score.all.targets, targets);
  EXPECT_EQ(score.whole_rows, whole);
  EXPECT_EQ(score.rows, kRows);
  EXPECT_NEAR(score.nats, nats / static_cast<double>(targets), 1e-5);
  ASSERT_EQ(score.groups.size(), 2u);
  for (size_t g = 0; g < 2; ++g) {
    EXPECT_EQ(score.groups[g].second.hits, groups[g].hits);
    EXPECT_EQ(score.groups[g].second.targets, groups[g].targets);
  }
  EXPECT_EQ(score.groups[1].first, "updated");
  model.set_compute(kF64);
  const RecallScore in_f64 = score_recall(model, task, kRows, 7);
  EXPECT_EQ(in_f64.all.hits, hits);
  EXPECT_NEAR(in_f64.nats, score.nats, 1e-6);
}

// Of two ids one is the target half of the time: a model whose logits are NaN or infinite has none of them.
TEST(RecallScore, LogitsThatAreNotFiniteAreNoHits) {
  const RecallTask task(data::StateOptions{.size = 2}, 12, 1);
  for (double weight : {std::nan(""), HUGE_VAL}) {
    LanguageModel model(options_for(task), Rng(4));
    for (const NamedParam& p : model.params()) p.param->set_value(Tensor::full(p.param->value().shape(), weight));
    const RecallScore score = score_recall(model, task, 8);
    EXPECT_EQ(score.all.targets, 8 * 12);
    EXPECT_EQ(score.all.hits, 0);
    EXPECT_EQ(score.whole_rows, 0);
    EXPECT_TRUE(std::isnan(score.nats));
  }
}

TEST(RecallScore, RefusesAModelWithFewerIds) {
  const RecallTask small(data::MqarOptions{.vocab = 16, .pairs = 3}, 16, 1), large(data::MqarOptions{}, 64, 1);
  LanguageModel model(options_for(small), Rng(1));
  try {
    score_recall(model, large, 1);
    FAIL() << "no error";
  } catch (const Error& error) { EXPECT_EQ(error.problem(), "recall: mqar has 256 ids, and the model 16"); }
}

// Rows of a document of two tokens and one of four: the place within the document counts.
TEST(EvaluateByPosition, CountsTheTokensThatTheModelHasSeen) {
  const RecallTask task(data::StateOptions{.size = 5}, 6, 1);
  LanguageModel model(options_for(task), Rng(2));
  const data::SampleSource samples = [&](int64_t first, int64_t count) {
    data::Batch batch = task.rows(Split::train, first, count).batch;
    for (int64_t i = 0; i < count * 6; ++i) {
      const int64_t t = i % 6;
      batch.documents.mutable_data<int32_t>()[i] = t < 2 ? 0 : 1;
      batch.document_positions.mutable_data<int32_t>()[i] = static_cast<int32_t>(t < 2 ? t : t - 2);
    }
    return batch;
  };
  const Evaluation apart =
      evaluate(token_loss(model), samples, 3, {.batch = 2, .keeps_documents_apart = true, .by_position = true});
  const Evaluation whole = evaluate(token_loss(model), samples, 3, {.by_position = true});
  ASSERT_EQ(apart.positions.size(), 4u);
  ASSERT_EQ(whole.positions.size(), 6u);
  double sum = 0;
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(apart.positions[i].targets, i < 2 ? 6 : 3);
    sum += apart.positions[i].nats;
  }
  EXPECT_NEAR(sum, apart.nats, 1e-9);
  double last = 0;
  Upload upload(default_device());
  const data::Batch batch = samples(0, 3);
  Tokens tokens(token_data(batch, true, 0, upload));
  const auto losses = model.loss(batch.tokens, batch.targets, tokens, 1).losses.to_vector<float>();
  for (size_t row = 0; row < 3; ++row) last += static_cast<double>(losses[row * 6 + 5]);
  EXPECT_NEAR(apart.positions[3].nats, last, 1e-4);
  EXPECT_TRUE(evaluate(token_loss(model), samples, 3, {}).positions.empty());
}

}  // namespace
}  // namespace weft
