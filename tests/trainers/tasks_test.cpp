// The synthetic sink tasks: what their rows hold, their exact solutions, and that a short training moves the right way.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "trainers/tasks/circuits.h"
#include "trainers/tasks/regression.h"
#include "weft/autograd/functions.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"
#include "weft/nn/mixers/softmax.h"

namespace weft::tasks {
namespace {

TEST(Backcopy, RowsFollowTheRule) {
  Bigram bigram = bigram_of_text("abcabcabdacbad eab abc abd acd dead bead cab");
  for (int64_t id = 1; id < bigram.ids; ++id)
    EXPECT_GE(bigram.first[static_cast<size_t>(id - 1)], bigram.first[static_cast<size_t>(id)]);
  const int64_t T = 40;
  Tensor rows = backcopy_rows(bigram, 3, 50, T, Rng(1));
  auto z = rows.to_vector<int32_t>();
  int64_t copies = 0;
  for (size_t r = 0; r < 50; ++r) {
    const int32_t* row = &z[r * (T + 1)];
    EXPECT_EQ(row[0], bigram.ids);
    EXPECT_GE(row[1], kTriggers);
    for (size_t t = 2; t <= T; ++t) {
      if (row[t - 1] < kTriggers) {
        EXPECT_EQ(row[t], row[t - 2]);
        ++copies;
      } else {
        EXPECT_GT(bigram.next[static_cast<size_t>(row[t - 1] * bigram.ids + row[t])], 0)
            << "a pair that the text has not";
      }
    }
  }
  EXPECT_GT(copies, 100);
  // Rows are a function of their index.
  auto alone = backcopy_rows(bigram, 7, 1, T, Rng(1)).to_vector<int32_t>();
  EXPECT_TRUE(std::equal(alone.begin(), alone.end(), z.begin() + 4 * (T + 1)));
  Bigram random = random_bigram(64, Rng(2));
  for (size_t i = 0; i < 64; ++i) {
    double sum = 0;
    for (size_t j = 0; j < 64; ++j) sum += random.next[i * 64 + j];
    EXPECT_NEAR(sum, 1, 1e-12);
  }
  EXPECT_THROW(bigram_of_text("aaab"), Error);
}

TEST(Trigger, RowsFollowTheRule) {
  const int64_t T = 10, W = 4;
  TriggerBatch batch = trigger_batch(0, 200, T, W, Rng(1));
  auto x = batch.x.to_vector<float>(), y = batch.y.to_vector<float>(), trigger = batch.trigger.to_vector<float>();
  int triggers = 0;
  for (size_t b = 0; b < 200; ++b) {
    std::vector<double> sum(W, 0.0);
    for (size_t t = 0; t < T; ++t) {
      const float* token = &x[(b * T + t) * (W + 3)];
      EXPECT_EQ(token[W], t == 0 ? 1 : 0);
      EXPECT_EQ(token[W + 1], trigger[b * T + t]);
      EXPECT_EQ(token[W + 2], 1);
      for (size_t c = 0; c < W; ++c) sum[c] += static_cast<double>(token[c]);
      for (size_t c = 0; c < W; ++c) {
        double target = trigger[b * T + t] > 0 ? sum[c] / static_cast<double>(t + 1) : 0;
        EXPECT_NEAR(static_cast<double>(y[(b * T + t) * W + c]), target, 1e-6);
      }
      triggers += trigger[b * T + t] > 0 ? 1 : 0;
    }
  }
  EXPECT_GT(triggers, 70);
  EXPECT_LT(triggers, 130);
}

// relu(s_ij) / i with s_ij the trigger flag of i: exact, and without a sink.
TEST(Trigger, ReluSolvesItExactly) {
  const int64_t T = 12, W = 6, D = W + 3;
  SoftmaxOptions rectified{.heads = 1, .head_dim = D, .position = MixerPosition::none};
  rectified.weights.kind = WeightKind::relu;
  auto mixer = rectified({.dim = D, .context = T, .rotary = std::nullopt}, Rng(1));
  for (const NamedParam& p : mixer->params()) {
    Tensor w = Tensor::zeros({D, D}, kF32, Device::cpu());
    if (p.name == "q.weight")
      w.mutable_data<float>()[W + 1] = static_cast<float>(std::sqrt(static_cast<double>(D)));  // row 0
    if (p.name == "k.weight") w.mutable_data<float>()[W + 2] = 1;
    if (p.name == "v.weight" || p.name == "out.weight")
      for (int64_t c = 0; c < W; ++c) w.mutable_data<float>()[c * D + c] = 1;
    p.param->set_value(to(w, default_device()).value());
  }
  TriggerBatch batch = trigger_batch(0, 32, T, W, Rng(3));
  NoGrad no_grad;
  Tokens tokens(plain_tokens(32, T));
  EXPECT_LT(trigger_loss(mixer->forward(batch.x, tokens), batch).value().item(), 1e-12);
}

// Some steps are enough to see the loss fall and the figures to be shares.
TEST(Tasks, TrainAndMeasure) {
  for (const Arm& arm : arms()) {
    Figures before = trigger(arm.make, {.steps = 1, .batch = 16, .seed = 1}),
            after = trigger(arm.make, {.steps = 300, .batch = 16, .seed = 1});
    EXPECT_LT(after[0].second, before[0].second) << arm.name;
    for (const auto& [name, value] : after) EXPECT_TRUE(std::isfinite(value)) << arm.name << " " << name;
    EXPECT_GE(after[2].second, 0);
    EXPECT_LE(after[2].second, 1 + 1e-6);
  }
  Bigram bigram = random_bigram(16, Rng(1));
  Figures figures = backcopy(arms()[0].make, bigram, {.steps = 30, .tokens = 16, .batch = 8, .seed = 1});
  ASSERT_EQ(figures.size(), 5u);
  EXPECT_GT(figures[1].second, 0);
  for (size_t i : {2u, 3u}) EXPECT_TRUE(figures[i].second > 0 && figures[i].second < 1) << figures[i].first;
}

// A mixer that writes down how far the training is.
class Watched final : public Mixer {
 public:
  Watched(std::unique_ptr<Mixer> inner, std::vector<double>& seen) : inner_(std::move(inner)), seen_(seen) {
    name_part({"inner", *inner_});
  }
  Var forward(const Var& x, Tokens& tokens) override {
    if (tokens.is_training()) seen_.push_back(tokens.progress());
    return inner_->forward(x, tokens);
  }
  double flops_per_token(double) const override { return 0; }

 private:
  std::unique_ptr<Mixer> inner_;
  std::vector<double>& seen_;
};

TEST(Tasks, LayersAreToldHowFarTheTrainingIs) {
  const Bigram bigram = random_bigram(16, Rng(1));
  const std::function<void(const MixerMaker&, const Options&)> tasks[] = {
      [](const MixerMaker& mixer, const Options& options) { trigger(mixer, options); },
      [&](const MixerMaker& mixer, const Options& options) { backcopy(mixer, bigram, options); },
      [](const MixerMaker& mixer, const Options& options) { regression(mixer, options); }};
  for (const auto& run : tasks) {
    std::vector<double> seen;
    run([&](const MixerArgs& args, Rng rng) { return std::make_unique<Watched>(arms()[0].make(args, rng), seen); },
        {.steps = 3, .tokens = 8, .batch = 2});
    EXPECT_EQ(seen, (std::vector<double>{0, 0.5, 1}));
  }
}

TEST(Regression, RowsFollowALinearMap) {
  const RegressionSizes sizes{.width = 3, .pairs = 9, .noise = 0};
  const RegressionBatch batch = regression_batch(5, 4, sizes, Rng(1));
  const auto tokens = batch.tokens.to_vector<float>(), x = batch.x.to_vector<float>(), y = batch.y.to_vector<float>();
  for (size_t i = 0; i < 36; ++i) {
    for (size_t c = 0; c < 3; ++c) {
      EXPECT_EQ(tokens[2 * i * 6 + c], x[i * 3 + c]);
      EXPECT_EQ(tokens[(2 * i + 1) * 6 + c], 0);
    }
    EXPECT_EQ(tokens[2 * i * 6 + 3], 0);
    EXPECT_EQ(tokens[(2 * i + 1) * 6 + 3], y[i]);
    EXPECT_EQ(tokens[2 * i * 6 + 4], 0);
    EXPECT_EQ(tokens[(2 * i + 1) * 6 + 4], 1);
    EXPECT_EQ(tokens[2 * i * 6 + 5], 1);
  }
  // Without noise three pairs tell the map, up to the prior, which ridge keeps.
  const std::vector<double> found = ridge(batch, sizes);
  for (size_t row = 0; row < 4; ++row)
    for (size_t i = 3; i < 9; ++i) EXPECT_NEAR(found[row * 9 + i], static_cast<double>(y[row * 9 + i]), 1e-3);
  const RegressionBatch alone = regression_batch(7, 1, sizes, Rng(1));
  EXPECT_EQ(alone.y.to_vector<float>(), batch.y.slice(0, 2, 3).to_vector<float>());
}

// Without noise: on each side of the plane the targets are one linear map of x, and the two maps differ.
TEST(Regression, PiecewiseRowsFollowALinearMapOnEachSideOfAPlane) {
  constexpr size_t kPairs = 400, kWidth = 2;
  const RegressionSizes sizes{.width = kWidth, .pairs = kPairs, .noise = 0, .is_piecewise = true};
  const RegressionBatch batch = regression_batch(2, 1, sizes, Rng(1));
  const auto x = batch.x.to_vector<float>(), y = batch.y.to_vector<float>();
  const Rng own = Rng(1)[uint64_t{2}];
  auto product = [&](size_t i, const char* weights) {
    double sum = 0;
    for (size_t c = 0; c < kWidth; ++c)
      sum += static_cast<double>(x[i * kWidth + c]) * static_cast<double>(own[weights].normal(c));
    return sum / std::sqrt(double{kWidth});
  };
  size_t behind = 0;
  for (size_t i = 0; i < kPairs; ++i) {
    const bool is_behind = product(i, "plane") < 0;
    behind += is_behind ? 1 : 0;
    EXPECT_NEAR(static_cast<double>(y[i]), product(i, is_behind ? "w behind" : "w"), 1e-5);
    EXPECT_NE(product(i, "w behind"), product(i, "w"));
  }
  EXPECT_GT(behind, kPairs / 3);
  EXPECT_LT(behind, 2 * kPairs / 3);
  const RegressionBatch linear = regression_batch(2, 1, {.width = kWidth, .pairs = kPairs, .noise = 0}, Rng(1));
  EXPECT_EQ(linear.x.to_vector<float>(), x);
  EXPECT_NE(linear.y.to_vector<float>(), y);
}

// The mean squared error of many rows against the expectation in closed form; and no other step is better.
TEST(Regression, TheGradientStepIsTheBestOne) {
  const RegressionSizes sizes{.width = 4, .pairs = 7, .noise = 0.5};
  constexpr int64_t kRows = 60000;
  const RegressionBatch batch = regression_batch(0, kRows, sizes, Rng(3));
  const auto y = batch.y.to_vector<float>();
  const std::vector<double> step = gradient_step(batch, sizes), best = ridge(batch, sizes);
  for (size_t i = 0; i < 7; ++i) {
    double error = 0, smaller = 0, larger = 0, of_ridge = 0;
    auto square = [](double x) { return x * x / static_cast<double>(kRows); };
    for (size_t r = 0; r < kRows; ++r) {
      const double target = static_cast<double>(y[r * 7 + i]), prediction = step[r * 7 + i];
      error += square(prediction - target);
      smaller += square(0.8 * prediction - target);
      larger += square(1.2 * prediction - target);
      of_ridge += square(best[r * 7 + i] - target);
    }
    EXPECT_NEAR(error, gradient_step_error(static_cast<int64_t>(i), sizes), 0.03) << i;
    EXPECT_LE(error, smaller + 1e-12);
    EXPECT_LE(error, larger + 1e-12);
    EXPECT_LE(of_ridge, error + 1e-12);
  }
}

TEST(Regression, AShortTrainingBeatsKnowingNothing) {
  set_num_threads(1);
  const Figures figures = regression(SoftmaxOptions{.heads = 4}, {.steps = 400, .tokens = 16, .layers = 2, .lr = 3e-3});
  std::map<std::string, double> by_name(figures.begin(), figures.end());
  EXPECT_LT(by_name["squared error"], 0.95);  // 1.01 is that of predicting 0
  EXPECT_GT(by_name["squared error"], by_name["of ridge"]);
  EXPECT_NEAR(by_name["gap to the step"], by_name["squared error"] - by_name["of a gradient step"], 1e-12);
  const std::array whole = {"squared error", "of a gradient step", "of ridge"},
                   last = {"last error", "last of a step", "last of ridge"};
  for (size_t which = 0; which < kAfter.size(); ++which) {
    double mean = 0;
    for (int pairs = 0; pairs < 8; ++pairs) {
      const std::string name = str(kAfter[which], pairs);
      ASSERT_TRUE(by_name.contains(name)) << name;
      mean += by_name[name] / 8;
    }
    EXPECT_FALSE(by_name.contains(str(kAfter[which], 8)));
    EXPECT_NEAR(mean, by_name[whole[which]], 1e-9);
    EXPECT_EQ(by_name[str(kAfter[which], 7)], by_name[last[which]]);
  }
  EXPECT_LT(by_name["error of ridge after 7"], by_name["error of ridge after 1"]);
}

// The equation of the patterns in plain loops.
TEST(Circuits, PatternsAreAllThatAPredictionNeeds) {
  constexpr int64_t kWidth = 3, kPairs = 5, kNumbers = kWidth + 1;
  PairHeads model(kWidth, 2, Rng(1));
  auto drawn = [](const Shape& shape, uint64_t seed) {
    Tensor x = Tensor::empty(shape, kF32, Device::cpu());
    for (int64_t i = 0; i < x.num_elements(); ++i)
      x.mutable_data<float>()[i] = Rng(seed).normal(static_cast<uint64_t>(i));
    return x;
  };
  for (const NamedParam& p : model.params()) p.param->set_value(drawn(p.param->value().shape(), 7 + p.name.size()));
  const Tensor pairs = drawn({2, kPairs, kNumbers}, 2), queries = drawn({2, 1, kNumbers}, 3);
  const auto got = model(pairs, queries).value().to_vector<float>(), z = pairs.to_vector<float>(),
             zq = queries.to_vector<float>();
  for (size_t b = 0; b < 2; ++b) {
    double expected = 0;
    for (const HeadPattern& head : model.patterns()) {
      double total = 0, sum = 0;
      for (size_t i = 0; i < kPairs; ++i) {
        double score = 0, value = 0;
        for (size_t r = 0; r < kNumbers; ++r) {
          const auto of_pair = static_cast<double>(z[(b * kPairs + i) * kNumbers + r]);
          value += head.ov[r] * of_pair;
          for (size_t c = 0; c < kNumbers; ++c)
            score += of_pair * head.kq[r * kNumbers + c] * static_cast<double>(zq[b * kNumbers + c]);
        }
        total += std::exp(score), sum += std::exp(score) * value;
      }
      expected += sum / total;
    }
    EXPECT_NEAR(static_cast<double>(got[b]), expected, 1e-4 * std::max(1.0, std::abs(expected)));
  }
}

TEST(Circuits, FiguresOfThePatternItself) {
  auto head = [](double omega, double mu, double beside) {
    HeadPattern h{std::vector<double>(9, beside), {beside, beside, mu}};
    h.kq[0] = h.kq[4] = omega;
    return h;
  };
  auto values = [](std::vector<HeadPattern> heads) {
    std::vector<double> found;
    for (const auto& [name, value] : pattern_figures(heads, 2)) found.push_back(value);
    return found;
  };
  EXPECT_EQ(values({head(0.5, 2, 0), head(-0.5, -2, 0)}), (std::vector<double>{1, 1, 0, 1}));
  const std::vector<double> off = values({head(0.5, 2, 1), head(-0.5, 1, 1)});
  EXPECT_NEAR(off[0], 1 / (1 + 8.0), 1e-12);  // 2 * 0.25 a head; beside it 1 in four of the six numbers that are read
  EXPECT_NEAR(off[1], 5 / 9.0, 1e-12);
  EXPECT_NEAR(off[2], 1, 1e-12);
  EXPECT_NEAR(off[3], 2 / 3.0, 1e-12);
}

TEST(Circuits, TwoHeadsLearnThePattern) {
  set_num_threads(1);
  const Figures figures = circuits(2, {.steps = 1500, .tokens = 16, .batch = 64, .lr = 3e-2});
  std::map<std::string, double> by_name(figures.begin(), figures.end());
  EXPECT_LT(by_name["gap to the step"], 0.1);
  EXPECT_GT(by_name["squared error"], by_name["of ridge"]);
  EXPECT_GT(by_name["KQ on the diagonal"], 0.9);
  EXPECT_GT(by_name["OV on y"], 0.9);
  EXPECT_LT(by_name["sum of OV"], 0.2);
  EXPECT_GT(by_name["signs agree"], 0.9);
}

}  // namespace
}  // namespace weft::tasks
