// Generation in batches, against plain forwards and sample(), for every mixer.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/errors.h"
#include "tests/trainers/serve_support.h"
#include "weft/models/sample.h"

namespace weft {
namespace {

using namespace serve;
using Ids = std::vector<int32_t>;

class ServeGeneration : public ::testing::Test {
 protected:
  void SetUp() override { set_num_threads(1); }
};

Ids some_ids(int64_t count, int64_t vocab, uint64_t seed) {
  Ids ids;
  for (int64_t i = 0; i < count; ++i)
    ids.push_back(static_cast<int32_t>(Rng(seed).below(static_cast<uint64_t>(vocab), static_cast<uint64_t>(i))));
  return ids;
}

TEST_F(ServeGeneration, LogProbabilitiesOfABatchAreThoseOfPlainForwardsAndOfTheLoss) {
  for (const auto& mixers : {serve_test::softmax(), serve_test::windowed(), serve_test::hybrid()}) {
    LanguageModel model(serve_test::tiny(mixers, 19), Rng(3));
    std::vector<GenerationRow> rows;
    for (int64_t length : {7, 1, 20, 12})
      rows.push_back({.prompt = some_ids(length, 19, static_cast<uint64_t>(length)),
                      .max_tokens = 6,
                      .temperature = 0.7,
                      .scores_prompt = true,
                      .top = 3});
    const std::vector<Generation> made = generate(model, rows, {.vocab = 19});
    for (size_t b = 0; b < rows.size(); ++b) {
      Ids all = rows[b].prompt;
      all.insert(all.end(), made[b].ids.begin(), made[b].ids.end());
      ASSERT_EQ(made[b].ids.size(), 6u);
      const std::vector<double> expected = serve_test::plain_logprobs(model, all);
      ASSERT_EQ(made[b].prompt_scores.size() + made[b].scores.size(), expected.size());
      double sum = 0;
      for (size_t i = 0; i < expected.size(); ++i) {
        const size_t read = made[b].prompt_scores.size();
        const TokenScore& score = i < read ? made[b].prompt_scores[i] : made[b].scores[i - read];
        EXPECT_NEAR(score.logprob, expected[i], 1e-5) << b << " " << i;
        ASSERT_EQ(score.top.size(), 3u);
        EXPECT_GE(score.top[0].second, std::max(score.top[1].second, score.logprob));
        sum += score.logprob;
      }
      const auto T = static_cast<int64_t>(all.size()) - 1;
      Ids ids(all.begin(), all.end() - 1), targets(all.begin() + 1, all.end());
      Tokens tokens(plain_tokens(1, T));
      NoGrad no_grad;
      const Var loss = model
                           .loss(Tensor::from(std::span<const int32_t>(ids), {1, T}),
                                 Tensor::from(std::span<const int32_t>(targets), {1, T}), tokens, 1.0)
                           .loss;
      EXPECT_NEAR(-sum, loss.value().item(), 1e-5 * static_cast<double>(T));
    }
  }
}

TEST_F(ServeGeneration, EveryRowOfABatchIsWhatSampleGivesAlone) {
  for (const auto& mixers : {serve_test::softmax(), serve_test::windowed(), serve_test::hybrid()})
    for (double temperature : {0.0, 0.9}) {
      LanguageModel model(serve_test::tiny(mixers, 19), Rng(3));
      std::vector<GenerationRow> rows;
      for (int64_t length : {9, 2, 17})
        rows.push_back({.prompt = some_ids(length, 19, static_cast<uint64_t>(length)),
                        .max_tokens = 3 * length % 20 + 2,
                        .temperature = temperature,
                        .top_p = 0.9,
                        .seed = static_cast<uint64_t>(length)});
      const std::vector<Generation> made = generate(model, rows, {.vocab = 17, .end_of_text = 5});
      for (size_t b = 0; b < rows.size(); ++b) {
        const Ids alone = sample(model, rows[b].prompt,
                                 {.tokens = rows[b].max_tokens,
                                  .temperature = temperature,
                                  .top_p = 0.9,
                                  .seed = rows[b].seed,
                                  .vocab = 17,
                                  .end_of_text = 5});
        EXPECT_EQ(made[b].ids, alone) << b;
        EXPECT_EQ(made[b].ended, static_cast<int64_t>(alone.size()) < rows[b].max_tokens);
      }
    }
}

// In f64: padded rows differ from rows alone by the order of sums, which in f32 some recurrences amplify to 3e-5.
TEST_F(ServeGeneration, EveryMixerContinuesABatchAsItDoesEachPromptAlone) {
  for (const MixerRow& mixer : mixer_table()) {
    SCOPED_TRACE(mixer.name);
    LanguageModelOptions options =
        serve_test::tiny({[&](const MixerArgs& args, Rng rng) { return mixer(args, rng); }}, 19);
    options.fixed_text = some_ids(options.context, 19, 1);
    LanguageModel model(options, Rng(3));
    model.set_compute(kF64);
    std::vector<GenerationRow> rows;
    for (int64_t length : {9, 1, 17})
      rows.push_back({.prompt = some_ids(length, 19, static_cast<uint64_t>(length)),
                      .max_tokens = mixer.lacks.decode.empty() ? 9 - length / 3 : 1,
                      .temperature = 0,
                      .scores_prompt = true,
                      .top = 0});
    std::vector<Generation> alone;
    for (const GenerationRow& row : rows) alone.push_back(generate(model, std::span(&row, 1), {.vocab = 19})[0]);
    if (!mixer.lacks.documents.empty() || !mixer.lacks.order.empty()) {  // no padding between the tokens of a row
      EXPECT_EQ(test::error_of([&] { generate(model, rows, {.vocab = 19}); }, {mixer.name.substr(0, 5)}), "");
      continue;
    }
    const std::vector<Generation> made = generate(model, rows, {.vocab = 19});
    for (size_t b = 0; b < rows.size(); ++b) {
      EXPECT_EQ(made[b].ids, alone[b].ids) << b;
      auto same = [&](const std::vector<TokenScore>& x, const std::vector<TokenScore>& y) {
        ASSERT_EQ(x.size(), y.size());
        for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(x[i].logprob, y[i].logprob, 1e-5) << b << " " << i;
      };
      same(made[b].prompt_scores, alone[b].prompt_scores);
      same(made[b].scores, alone[b].scores);
    }
  }
}

TEST_F(ServeGeneration, ARowEndsAtTheEndOfTextOrWhereItIsTold) {
  LanguageModel model(serve_test::tiny(serve_test::softmax(), 19), Rng(3));
  GenerationRow row{.prompt = {1, 2, 3}, .max_tokens = 8, .temperature = 0, .top = 2};
  const Generation whole = generate(model, std::span(&row, 1), {.vocab = 19})[0];
  ASSERT_EQ(whole.ids.size(), 8u);
  EXPECT_FALSE(whole.ended);
  EXPECT_FALSE(whole.end_score);
  Ids seen;
  row.goes_on = [&](int32_t id) {
    seen.push_back(id);
    return seen.size() < 3;
  };
  const Generation told = generate(model, std::span(&row, 1), {.vocab = 19})[0];
  EXPECT_EQ(told.ids, seen);
  EXPECT_EQ(told.ids, Ids(whole.ids.begin(), whole.ids.begin() + 3));
  EXPECT_TRUE(told.ended);
  row.goes_on = {};
  const Generation first = generate(model, std::span(&row, 1), {.vocab = 19, .end_of_text = whole.ids[0]})[0];
  EXPECT_TRUE(first.ids.empty() && first.ended);
  ASSERT_TRUE(first.end_score);
  EXPECT_EQ(first.end_score->top[0].first, whole.ids[0]);
  EXPECT_EQ(first.end_score->logprob, whole.scores[0].logprob);
}

TEST_F(ServeGeneration, RefusesWeightsThatAreNotFinite) {
  LanguageModel model(serve_test::tiny(serve_test::softmax(), 19), Rng(3));
  for (const NamedParam& p : model.params())
    p.param->set_value(Tensor::full(p.param->value().shape(), NAN, p.param->value().dtype()));
  const GenerationRow scored{.prompt = {1, 2}, .scores_prompt = true, .top = 0}, drawn{.prompt = {1}, .max_tokens = 1};
  for (const GenerationRow& row : {scored, drawn})
    EXPECT_EQ(test::error_of([&] { generate(model, std::span(&row, 1), {.vocab = 19}); }, {"19 ids", "damaged"}), "");
}

}  // namespace
}  // namespace weft
