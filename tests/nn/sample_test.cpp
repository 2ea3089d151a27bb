// Drawing tokens, and the loop that draws a text.
#include "weft/models/sample.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "tests/support/errors.h"
#include "weft/nn/mixers.h"

namespace weft {
namespace {

using test::error_of;

const std::array<float, 4> kLogits{std::log(0.1F), std::log(0.4F), std::log(0.2F),
                                   std::log(0.3F)};  // most likely: 1, 3, 2, 0

TEST(Draw, InvertsTheDistributionFromTheMostLikelyDown) {
  EXPECT_EQ(draw(kLogits, 1, 1, 0.0), 1);
  EXPECT_EQ(draw(kLogits, 1, 1, 0.39), 1);
  EXPECT_EQ(draw(kLogits, 1, 1, 0.41), 3);
  EXPECT_EQ(draw(kLogits, 1, 1, 0.69), 3);
  EXPECT_EQ(draw(kLogits, 1, 1, 0.71), 2);
  EXPECT_EQ(draw(kLogits, 1, 1, 0.91), 0);
  EXPECT_EQ(draw(kLogits, 1, 1, 0.9999999), 0);
}

TEST(Draw, TopPKeepsTheFewestThatReachIt) {
  EXPECT_EQ(draw(kLogits, 1, 0.69, 0.56), 1) << "1 and 3 stay: 0.4 / 0.7 of the mass is 1";
  EXPECT_EQ(draw(kLogits, 1, 0.69, 0.58), 3);
  EXPECT_EQ(draw(kLogits, 1, 0.69, 0.9999), 3);
  EXPECT_EQ(draw(kLogits, 1, 0.39, 0.9999), 1);
  EXPECT_EQ(draw(kLogits, 1, 1e-9, 0.9999), 1) << "one always stays";
}

TEST(Draw, TemperatureFlattensAndSharpens) {
  EXPECT_EQ(draw(kLogits, 0, 1, 0.9999), 1) << "0 is the most likely";
  // At temperature 1/2 the weights are the squares: 0.16, 0.09, 0.04, 0.01.
  EXPECT_EQ(draw(kLogits, 0.5, 1, 0.53), 1);
  EXPECT_EQ(draw(kLogits, 0.5, 1, 0.54), 3);
  EXPECT_EQ(draw(kLogits, 0.5, 1, 0.965), 2);
  EXPECT_EQ(draw(kLogits, 0.5, 1, 0.97), 0);
  const std::array<float, 2> far{1000, -1000};
  EXPECT_EQ(draw(far, 1e-3, 1, 0.5), 0) << "no overflow";
}

TEST(Draw, TiesGoToTheSmallerId) {
  const std::array<float, 3> equal{1, 1, 1};
  EXPECT_EQ(draw(equal, 0, 1, 0.5), 0);
  EXPECT_EQ(draw(equal, 1, 1, 0.34), 1);
}

TEST(Draw, RefusesNaN) {
  const std::array<float, 3> broken{1, NAN, 2};
  EXPECT_EQ(error_of([&] { draw(broken, 1, 1, 0.5); }, {"3 ids hold NaN"}), "");
}

LanguageModel tiny_model() {
  return LanguageModel(
      {.vocab = 9, .dim = 16, .layers = 1, .context = 8, .mixers = {SoftmaxOptions{.heads = 2}}, .ffn = {.hidden = 16}},
      Rng(4));
}

// The greedy continuation by full forward passes, for as long as it fits into the context.
TEST(Sample, GreedyEqualsTheArgmaxOfFullForwardPasses) {
  LanguageModel model = tiny_model();
  for (DType compute : {kF32, kF64}) {
    model.set_compute(compute);
    std::vector<int32_t> ids{1, 2, 3};
    std::vector<int32_t> made = sample(model, ids, {.tokens = 5, .temperature = 0});
    ASSERT_EQ(made.size(), 5u);
    NoGrad no_grad;
    for (int32_t id : made) {
      auto count = static_cast<int64_t>(ids.size());
      Tokens tokens(plain_tokens(1, count));
      const Tensor all = model.logits(Tensor::from(std::span<const int32_t>(ids), {1, count}), tokens);
      auto logits = cast(Var(all), kF64).value().to_vector<double>();
      auto last = logits.end() - 9;
      EXPECT_EQ(id, static_cast<int32_t>(std::max_element(last, logits.end()) - last));
      ids.push_back(id);
    }
  }
}

TEST(Sample, GoesOnBeyondTheContextFromItsLastHalf) {
  LanguageModel model = tiny_model();
  std::vector<int32_t> prompt{1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3};  // longer than the context: its last 8 are read
  std::vector<int32_t> made = sample(model, prompt, {.tokens = 30, .temperature = 0});
  ASSERT_EQ(made.size(), 30u);
  std::vector<int32_t> tail(prompt.end() - 8, prompt.end());
  EXPECT_EQ(sample(model, tail, {.tokens = 30, .temperature = 0}), made);
  // After the first new token the cache is full: it starts again from the last four ids.
  std::vector<int32_t> half{1, 2, 3, made[0]};
  std::vector<int32_t> rest = sample(model, half, {.tokens = 5, .temperature = 0});
  EXPECT_EQ(rest, std::vector<int32_t>(made.begin() + 1, made.begin() + 6));
}

// States and windows have no bound: each id is the argmax of a forward over all tokens before it. Other models go on from half of their context.
TEST(Sample, StatesAndWindowsOutgrowTheContext) {
  const auto is_unbounded = [](const MixerMaker& mixer, PositionKind position) {
    LanguageModel model({.vocab = 9,
                         .dim = 16,
                         .layers = 2,
                         .context = 8,
                         .position = position,
                         .mixers = {mixer},
                         .ffn = {.hidden = 16},
                         .std = 0.5},
                        Rng(4));
    model.set_compute(kF64);
    std::vector<int32_t> ids{1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3};
    const std::vector<int32_t> made = sample(model, ids, {.tokens = 30, .temperature = 0});
    EXPECT_EQ(made.size(), 30u);
    NoGrad no_grad;
    for (int32_t id : made) {
      const auto count = static_cast<int64_t>(ids.size());
      if (position == PositionKind::learned) return false;
      Tokens tokens(plain_tokens(1, count));
      const Tensor all = model.logits(Tensor::from(std::span<const int32_t>(ids), {1, count}), tokens);
      const auto logits = all.to_vector<double>();
      const auto last = logits.end() - 9;
      if (id != static_cast<int32_t>(std::max_element(last, logits.end()) - last)) return false;
      ids.push_back(id);
    }
    return true;
  };
  for (PositionKind position : {PositionKind::rotary, PositionKind::none}) {
    EXPECT_TRUE(is_unbounded(GlaOptions{.heads = 2}, position));
    EXPECT_TRUE(is_unbounded(DeltaOptions{.decay = DeltaDecay::head, .heads = 2}, position));
    EXPECT_TRUE(is_unbounded(SoftmaxOptions{.heads = 2, .window = 3}, position));
  }
  EXPECT_FALSE(is_unbounded(SoftmaxOptions{.heads = 2}, PositionKind::rotary));
  EXPECT_FALSE(is_unbounded(GlaOptions{.heads = 2}, PositionKind::learned));
}

TEST(Sample, RepeatsForASeedKeepsBelowVocabAndStopsAtTheEnd) {
  LanguageModel model = tiny_model();
  std::vector<int32_t> prompt{1};
  SampleOptions options{.tokens = 200, .temperature = 3, .seed = 5, .vocab = 4};
  std::vector<int32_t> made = sample(model, prompt, options);
  EXPECT_EQ(sample(model, prompt, options), made);
  for (int32_t id : made) EXPECT_LT(id, 4);
  options.seed = 6;
  EXPECT_NE(sample(model, prompt, options), made);
  options.seed = 5;
  options.end_of_text = made[7];
  std::vector<int32_t> until(made.begin(), std::find(made.begin(), made.end(), made[7]));
  EXPECT_EQ(sample(model, prompt, options), until);
}

TEST(Sample, RefusesBadOptions) {
  LanguageModel model = tiny_model();
  std::vector<int32_t> prompt{1};
  EXPECT_EQ(error_of([&] { sample(model, {}, {}); }, {"the prompt has no tokens"}), "");
  EXPECT_EQ(error_of([&] { sample(model, prompt, {.temperature = -1}); }, {"temperature -1"}), "");
  EXPECT_EQ(error_of([&] { sample(model, prompt, {.top_p = 0}); }, {"top_p 0"}), "");
  EXPECT_EQ(error_of([&] { sample(model, prompt, {.vocab = 10}); }, {"vocab 10", "9"}), "");
  std::vector<int32_t> foreign{9};
  EXPECT_EQ(error_of([&] { sample(model, foreign, {}); }, {"9"}), "");
}

}  // namespace
}  // namespace weft
