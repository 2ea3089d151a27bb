// Schedules against their table, groups, state, and each optimiser against a naive float64 version.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/errors.h"
#include "tests/support/random.h"
#include "weft/optim/optimizer.h"
#include "weft/optim/schedule.h"

namespace weft {
namespace {

using test::error_of;

TEST(Schedule, GivesThePublishedTable) {
  auto value = [](ScheduleOptions options, int64_t step) { return 1e-3 * schedule_factor(options, step, 100); };
  ScheduleOptions cosine{.kind = ScheduleKind::cosine, .warmup = 10, .floor = 0.1};
  ScheduleOptions wsd{.kind = ScheduleKind::wsd, .warmup = 10, .floor = 0.1};
  const std::pair<int64_t, double> cosine_rows[] = {
      {0, 1e-4}, {9, 1e-3}, {10, 1e-3}, {55, 5.5e-4}, {99, 1.00274128e-4}};
  const std::pair<int64_t, double> wsd_rows[] = {{0, 1e-4},  {9, 1e-3},           {50, 1e-3},
                                                 {80, 1e-3}, {90, 3.63603897e-4}, {99, 1.22788509e-4}};
  for (auto [step, expected] : cosine_rows) EXPECT_NEAR(value(cosine, step), expected, 1e-11) << step;
  for (auto [step, expected] : wsd_rows) EXPECT_NEAR(value(wsd, step), expected, 1e-11) << step;
  EXPECT_NEAR(value({.kind = ScheduleKind::linear, .warmup = 10, .floor = 0.1}, 55), 5.5e-4, 1e-12);
  EXPECT_NEAR(value({.kind = ScheduleKind::inverse_sqrt, .warmup = 25}, 99), 5e-4, 1e-12);
  EXPECT_NEAR(value({.kind = ScheduleKind::constant, .warmup = 4}, 1), 5e-4, 1e-12);
  EXPECT_NEAR(value({.kind = ScheduleKind::wsd, .tail = DecayTail::linear}, 90), 5e-4, 1e-12);
  EXPECT_NEAR(value({.kind = ScheduleKind::wsd, .tail = DecayTail::cosine}, 90), 5e-4, 1e-12);
}

TEST(Patterns, MatchWholeNames) {
  EXPECT_TRUE(matches_pattern("*", ""));
  EXPECT_TRUE(matches_pattern("layers.*.weight", "layers.3.mixer.q.weight"));
  EXPECT_FALSE(matches_pattern("layers.*.weight", "layers.3.mixer.q.bias"));
  EXPECT_TRUE(matches_pattern("l?yers.*q*", "layers.3.mixer.q.weight"));
  EXPECT_FALSE(matches_pattern("embedding", "embedding.weight"));
  EXPECT_FALSE(matches_pattern("?", ""));
}

TEST(Optimizer, AdamWEqualsItsDefinition) {
  Tensor value = test::random_normal({7, 5}, "w"), before = test::random_normal({7, 5}, "w");
  AdamWOptions o{.lr = 0.01, .beta1 = 0.8, .beta2 = 0.9, .eps = 1e-6, .weight_decay = 0.3};
  Optimizer optimizer({{.algorithm = o}}, {{"w", value}});
  std::vector<double> x, m(35), v(35);
  for (float f : before.to_vector<float>()) x.push_back(static_cast<double>(f));
  for (int step = 1; step <= 5; ++step) {
    Tensor grad = test::random_normal({7, 5}, str("g", step));
    optimizer.step({&grad, 1}, 0.5, 0.7);
    for (size_t i = 0; i < x.size(); ++i) {
      double g = 0.7 * static_cast<double>(grad.data<float>()[i]), lr = 0.5 * o.lr;
      m[i] = o.beta1 * m[i] + (1 - o.beta1) * g;
      v[i] = o.beta2 * v[i] + (1 - o.beta2) * g * g;
      double mean = m[i] / (1 - std::pow(o.beta1, step)), var = v[i] / (1 - std::pow(o.beta2, step));
      x[i] -= lr * (mean / (std::sqrt(var) + o.eps) + o.weight_decay * x[i]);
    }
  }
  for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(static_cast<double>(value.data<float>()[i]), x[i], 2e-6);
}

TEST(Optimizer, MuonMovesAlongAnOrthogonalMatrix) {
  Tensor value = Tensor::zeros({6, 9});
  Optimizer optimizer({{.algorithm = MuonOptions{.lr = 1, .momentum = 0.9}}}, {{"w", value}});
  Tensor grad = test::random_normal({6, 9}, "g");
  optimizer.step({&grad, 1}, 1);
  // Rows of the update are near orthonormal: singular values of five Newton-Schulz steps lie within about [0.68, 1.13].
  auto u = value.to_vector<float>();
  for (size_t i = 0; i < 6; ++i)
    for (size_t j = 0; j < 6; ++j) {
      double dot = 0;
      for (size_t k = 0; k < 9; ++k) dot += static_cast<double>(u[i * 9 + k]) * static_cast<double>(u[j * 9 + k]);
      if (i == j) EXPECT_NEAR(dot, 0.9, 0.45) << i;
      else EXPECT_NEAR(dot, 0, 0.35) << i << " " << j;
    }
}

TEST(Optimizer, WritesTheWorkingCopy) {
  Tensor value = test::random_normal({4, 4}, "w"), working = Tensor::zeros({4, 4}, kBF16),
         grad = test::random_normal({4, 4}, "g");
  Optimizer optimizer({{}}, {{"w", value, working}});
  optimizer.step({&grad, 1}, 1);
  for (int64_t i = 0; i < 16; ++i) EXPECT_EQ(working.data<BFloat16>()[i].bits, BFloat16(value.data<float>()[i]).bits);
}

TEST(Optimizer, StateMovesToAnotherOptimizerBitForBit) {
  auto make = [](Tensor matrix, Tensor vector) {
    return Optimizer({{.match = "m", .algorithm = MuonOptions{}}, {}}, {{"m", matrix}, {"v", vector}});
  };
  Tensor m1 = test::random_normal({4, 6}, "m"), v1 = test::random_normal({5}, "v");
  Optimizer a = make(m1, v1);
  std::vector<Tensor> grads{test::random_normal({4, 6}, "gm"), test::random_normal({5}, "gv")};
  a.step(grads, 1);
  Tensor m2 = Tensor::from(std::span<const float>(m1.to_vector<float>()), {4, 6}),
         v2 = Tensor::from(std::span<const float>(v1.to_vector<float>()), {5});
  Optimizer b = make(m2, v2);
  auto state = a.state();
  EXPECT_EQ(state.size(), 3u);
  b.load_state(state, a.num_steps());
  a.step(grads, 1);
  b.step(grads, 1);
  EXPECT_EQ(m1.to_vector<float>(), m2.to_vector<float>());
  EXPECT_EQ(v1.to_vector<float>(), v2.to_vector<float>());
  state.pop_back();
  EXPECT_EQ(error_of([&] { b.load_state(state, 1); }, {"the state has no v.moment2"}), "");
}

TEST(Optimizer, RefusesWhatItCannotTrain) {
  Tensor vector = Tensor::zeros({5});
  EXPECT_EQ(error_of([&] { Optimizer({{.match = "x*"}}, {{"w", vector}}); }, {"no group matches w [5] f32 cpu"}), "");
  EXPECT_EQ(error_of(
                [&] {
                  Optimizer({{.algorithm = MuonOptions{}}}, {{"w", vector}});
                },
                {"gives w [5] f32 cpu to Muon"}),
            "");
  Optimizer fine({{}}, {{"w", vector}});
  EXPECT_EQ(error_of([&] { fine.step({}, 1); }, {"0 gradients for 1 parameters"}), "");
}

TEST(Clipping, ScalesLargeNormsOnly) {
  std::vector<Tensor> grads{Tensor::full({4}, 3), Tensor(), Tensor::full({1, 7}, 2)};
  EXPECT_NEAR(global_norm(grads), 8, 1e-9);
  EXPECT_EQ(clip_factor(8, 2), 0.25);
  EXPECT_EQ(clip_factor(1, 2), 1);
  EXPECT_EQ(clip_factor(8, 0), 1);
}

}  // namespace
}  // namespace weft
