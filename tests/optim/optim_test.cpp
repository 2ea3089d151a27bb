// Schedules against their table, groups, state, and each optimiser against a naive float64 version.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "tests/support/errors.h"
#include "tests/support/random.h"
#include "weft/ops/elementwise.h"
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

TEST(Schedule, InverseSqrtBeginsAtThePeakWithoutWarmup) {
  for (int64_t warmup : {0, 1})
    for (int64_t step : {0, 1, 8, 99})
      EXPECT_DOUBLE_EQ(schedule_factor({.kind = ScheduleKind::inverse_sqrt, .warmup = warmup}, step, 100),
                       1 / std::sqrt(static_cast<double>(step) + 1));
}

TEST(Schedule, RefusesNumbersThatItWouldIgnoreOrCannotUse) {
  using enum ScheduleKind;
  auto refused = [](ScheduleOptions options, int64_t step, const char* text) {
    EXPECT_EQ(error_of([&] { schedule_factor(options, step, 10); }, {text}), "");
  };
  refused({.kind = constant, .floor = 0.1}, 0, "a floor of 0.1 for a schedule that has none");
  refused({.kind = inverse_sqrt, .floor = 0.1}, 0, "a floor of 0.1 for a schedule that has none");
  refused({.kind = cosine, .floor = NAN}, 0, "floor nan");
  refused({.kind = wsd, .decay_fraction = NAN}, 0, "decay_fraction nan");
  refused({.kind = linear, .floor = 1.5}, 0, "floor 1.5");
  refused({}, -1, "step -1");
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

// One parameter of an optimiser and the same in float64 over five steps of random gradients; naive(x, m, g, lr) is one update.
void expect_definition(const ParamGroup& group, const std::function<void(double&, double&, double, double)>& naive) {
  Tensor value = test::random_normal({7, 5}, "w");
  std::vector<double> x, m(35);
  for (float f : value.to_vector<float>()) x.push_back(static_cast<double>(f));
  Optimizer optimizer({group}, {{"w", value}});
  for (int step = 1; step <= 5; ++step) {
    Tensor grad = test::random_normal({7, 5}, str("g", step));
    optimizer.step({&grad, 1}, 0.5, 0.7);
    for (size_t i = 0; i < x.size(); ++i)
      naive(x[i], m[i], 0.7 * static_cast<double>(grad.data<float>()[i]), 0.5 * optimizer.lr(0));
  }
  for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(static_cast<double>(value.data<float>()[i]), x[i], 2e-6);
}

TEST(Optimizer, LionEqualsItsDefinition) {
  expect_definition({.algorithm = LionOptions{.lr = 0.01, .beta1 = 0.8, .beta2 = 0.95, .weight_decay = 0.3}},
                    [](double& x, double& m, double g, double lr) {
                      double u = 0.8 * m + 0.2 * g;
                      x -= lr * ((u > 0 ? 1.0 : -1.0) + 0.3 * x);
                      m = 0.95 * m + 0.05 * g;
                    });
}

TEST(Optimizer, SgdEqualsItsDefinition) {
  for (bool is_nesterov : {false, true})
    expect_definition(
        {.algorithm = SgdOptions{.lr = 0.1, .momentum = 0.8, .weight_decay = 0.3, .is_nesterov = is_nesterov}},
        [&](double& x, double& m, double g, double lr) {
          g += 0.3 * x;
          m = 0.8 * m + g;
          x -= lr * (is_nesterov ? g + 0.8 * m : m);
        });
  expect_definition({.algorithm = SgdOptions{.lr = 0.1, .momentum = 0, .weight_decay = 0.3}},
                    [](double& x, double&, double g, double lr) { x -= lr * (g + 0.3 * x); });
}

TEST(Optimizer, SgdWithoutMomentumKeepsNoState) {
  Tensor w = Tensor::zeros({3});
  EXPECT_EQ(Optimizer({{.algorithm = SgdOptions{.momentum = 0}}}, {{"w", w}}).state().size(), 0u);
  EXPECT_EQ(Optimizer({{.algorithm = SgdOptions{}}}, {{"w", w}}).state().size(), 1u);
}

TEST(Optimizer, AdamWCorrectsEachParameterByItsOwnUpdates) {
  Tensor early = Tensor::zeros({2}), late = Tensor::zeros({2});
  auto make = [](const Tensor& a, const Tensor& b) {
    return Optimizer({{.algorithm = AdamWOptions{.lr = 0.1}}}, {{"early", a}, {"late", b}});
  };
  Optimizer optimizer = make(early, late);
  Tensor grad = Tensor::full({2}, 0.5);
  for (int step = 0; step < 20; ++step) optimizer.step(std::vector<Tensor>{grad, Tensor()}, 1);
  auto state = optimizer.state();
  ASSERT_EQ(state.size(), 5u);
  EXPECT_EQ(state[4].first, "late.num_steps");
  Tensor early2 = Tensor::full({2}, early.to_vector<float>()[0]), late2 = Tensor::zeros({2});
  Optimizer resumed = make(early2, late2);
  resumed.load_state(state, optimizer.num_steps());
  for (Optimizer* each : {&optimizer, &resumed}) each->step(std::vector<Tensor>{grad, grad}, 1);
  // The first update of AdamW is lr in the direction of the gradient.
  EXPECT_NEAR(static_cast<double>(late.to_vector<float>()[0]), -0.1, 1e-6);
  EXPECT_EQ(late.to_vector<float>(), late2.to_vector<float>());
  EXPECT_EQ(early.to_vector<float>(), early2.to_vector<float>());
}

// Points, averages and bases as published, over steps with a warm-up; the average is seen, and then the point again to the bit.
TEST(Optimizer, ScheduleFreeAdamWEqualsItsDefinition) {
  Tensor value = test::random_normal({7, 5}, "w"), working = Tensor::zeros({7, 5}, kBF16);
  const ScheduleFreeOptions o{.lr = 0.02, .beta1 = 0.8, .beta2 = 0.95, .eps = 1e-6, .weight_decay = 0.3};
  Optimizer optimizer({{.algorithm = o}}, {{"w", value, working}});
  std::vector<double> x, v(35);
  for (float f : value.to_vector<float>()) x.push_back(static_cast<double>(f));
  std::vector<double> y = x, z = x;
  double rates = 0;
  for (int step = 1; step <= 6; ++step) {
    Tensor grad = test::random_normal({7, 5}, str("g", step));
    const double factor = std::min(1.0, step / 3.0), lr = o.lr * factor * std::sqrt(1 - std::pow(o.beta2, step));
    optimizer.step({&grad, 1}, factor, 0.7);
    rates += lr * lr;
    for (size_t i = 0; i < x.size(); ++i) {
      double g = 0.7 * static_cast<double>(grad.data<float>()[i]), c = lr * lr / rates;
      v[i] = o.beta2 * v[i] + (1 - o.beta2) * g * g;
      z[i] -= lr * (g / (std::sqrt(v[i]) + o.eps) + o.weight_decay * y[i]);
      x[i] = (1 - c) * x[i] + c * z[i];
      y[i] = (1 - o.beta1) * z[i] + o.beta1 * x[i];
    }
    auto expect = [&](const std::vector<double>& wanted) {
      for (size_t i = 0; i < x.size(); ++i) {
        EXPECT_NEAR(static_cast<double>(value.data<float>()[i]), wanted[i], 4e-6);
        EXPECT_EQ(working.data<BFloat16>()[i].bits, BFloat16(value.data<float>()[i]).bits);
      }
    };
    expect(y);
    const std::vector<float> before = value.to_vector<float>();
    {
      AveragedWeights average(optimizer), within(optimizer);
      expect(x);
      EXPECT_EQ(error_of([&] { optimizer.step({&grad, 1}, 1); }, {"while the parameters show their averages"}), "");
    }
    EXPECT_EQ(value.to_vector<float>(), before);
  }
}

TEST(Optimizer, ScheduleFreeStateMovesBitForBitThoughTheModelKeepsAverages) {
  auto make = [](const Tensor& w) { return Optimizer({{.algorithm = ScheduleFreeOptions{}}}, {{"w", w}}); };
  Tensor w = test::random_normal({9}, "w"), other = Tensor::zeros({9});
  Optimizer a = make(w), b = make(other);
  auto grad = [](int step) { return test::random_normal({9}, str("g", step)); };
  for (int step = 0; step < 3; ++step) a.step(std::vector<Tensor>{grad(step)}, 1);
  {
    AveragedWeights average(a);
    EXPECT_EQ(a.state().size(), 4u);
    b.load_state(a.state(), a.num_steps());
  }
  for (Optimizer* each : {&a, &b}) each->step(std::vector<Tensor>{grad(9)}, 1);
  EXPECT_EQ(w.to_vector<float>(), other.to_vector<float>());
  EXPECT_EQ(error_of(
                [&] {
                  Optimizer({{.algorithm = ScheduleFreeOptions{.beta1 = 0}}}, {{"w", w}});
                },
                {"schedule-free with beta1 0"}),
            "");
}

TEST(Optimizer, MuonScalesTallMatricesAsJordan) {
  auto norm = [](int64_t rows, int64_t columns) {
    Tensor value = Tensor::zeros({rows, columns}), grad = test::random_normal({rows, columns}, "g");
    Optimizer optimizer({{.algorithm = MuonOptions{.lr = 1}}}, {{"w", value}});
    optimizer.step({&grad, 1}, 1);
    return global_norm({&value, 1});
  };
  // Of 4 singular values near 0.9; a tall matrix is multiplied by sqrt(rows / columns).
  EXPECT_NEAR(norm(4, 64), 1.8, 0.5);
  EXPECT_NEAR(norm(64, 4), 4 * 1.8, 2);
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

// Two optimisers that update half of each vector and one matrix each do what one does with all, and read its state.
TEST(Optimizer, PartsOfParametersAreUpdatedAsTheWhole) {
  const std::vector<std::vector<ParamGroup>> optimizers = {
      {{.match = "m", .algorithm = MuonOptions{}}, {.algorithm = AdamWOptions{}}},
      {{.match = "m", .algorithm = LionOptions{}}, {.algorithm = ScheduleFreeOptions{}}},
      {{.match = "m", .algorithm = SgdOptions{}}, {.algorithm = SgdOptions{.momentum = 0}}}};
  for (const std::vector<ParamGroup>& groups : optimizers)
    for (DType dtype : {kF32, kF64}) {
      auto make = [&] {
        return std::vector<Tensor>{test::random_normal({4, 3}, "m", dtype), test::random_normal({5, 3}, "v", dtype)};
      };
      std::vector<Tensor> whole = make(), shared = make();
      Optimizer one(groups, {{"m", whole[0]}, {"v", whole[1]}});
      std::vector<Optimizer> ranks;
      int num_fetches = 0;
      for (int64_t r = 0; r < 2; ++r)
        ranks.emplace_back(
            groups,
            std::vector<OptimizerParam>{{.name = "m", .value = shared[0], .begin = 0, .end = r == 0 ? -1 : 0},
                                        {.name = "v", .value = shared[1], .begin = r * 7, .end = r == 0 ? 7 : 15}},
            [&] { ++num_fetches; });
      for (int step = 0; step < 4; ++step) {
        const std::vector<Tensor> grads = {test::random_normal({4, 3}, str("gm", step), dtype),
                                           test::random_normal({5, 3}, str("gv", step), dtype)};
        one.step(grads, 1, 0.5);
        ranks[0].step(grads, 1, 0.5);
        // Only the part that is updated here is known here.
        ranks[1].step(std::vector<Tensor>{Tensor::zeros({0}), grads[1].reshape({15}).slice(0, 7, 15)}, 1, 0.5);
        for (size_t p = 0; p < 2; ++p)
          EXPECT_EQ(ops::cast(shared[p], kF64).to_vector<double>(), ops::cast(whole[p], kF64).to_vector<double>());
        if (step == 1)
          for (Optimizer& rank : ranks) rank.load_state(one.state(), one.num_steps());
      }
      EXPECT_EQ(num_fetches, 8);
      for (const auto& [name, tensor] : ranks[1].state()) {
        if (name.starts_with("m.")) ADD_FAILURE() << name << " is of the other rank";
        if (name.starts_with("v.moment")) { EXPECT_EQ(tensor.shape(), Shape{8}); }
      }
    }
  Tensor matrix = Tensor::zeros({4, 3});
  EXPECT_EQ(
      error_of(
          [&] { Optimizer({{.algorithm = MuonOptions{}}}, {{.name = "m", .value = matrix, .begin = 0, .end = 6}}); },
          {"Muon is given elements 0 to 6 of m [4, 3]", "the whole matrix to one rank"}),
      "");
}

TEST(Optimizer, RefusesWhatItCannotTrain) {
  Tensor vector = Tensor::zeros({5});
  EXPECT_EQ(error_of([&] { Optimizer({{.match = "x*"}}, {{"w", vector}}); }, {"no group matches w [5] f32 cpu"}), "");
  EXPECT_EQ(error_of(
                [&] {
                  Optimizer({{.algorithm = MuonOptions{}}}, {{"w", vector}});
                },
                {"gives w [5] f32 cpu to Muon", "num_dims to 2", "rank: 2 in a config"}),
            "");
  Optimizer fine({{}}, {{"w", vector}});
  EXPECT_EQ(error_of([&] { fine.step({}, 1); }, {"0 gradients for 1 parameters"}), "");
  Tensor grad = Tensor::full({5}, 1);
  EXPECT_EQ(error_of([&] { fine.step({&grad, 1}, NAN); }, {"optimizer: lr_factor is nan"}), "");
  EXPECT_EQ(error_of([&] { fine.step({&grad, 1}, INFINITY); }, {"optimizer: lr_factor is inf"}), "");
  EXPECT_EQ(error_of([&] { fine.step({&grad, 1}, 1, INFINITY); }, {"grad_factor inf"}), "");
  EXPECT_EQ(fine.num_steps(), 0);
  EXPECT_EQ(vector.to_vector<float>(), std::vector<float>(5)) << "nothing was written";
}

TEST(Clipping, ScalesLargeNormsOnly) {
  std::vector<Tensor> grads{Tensor::full({4}, 3), Tensor(), Tensor::full({1, 7}, 2)};
  EXPECT_NEAR(global_norm(grads), 8, 1e-9);
  EXPECT_EQ(clip_factor(8, 2), 0.25);
  EXPECT_EQ(clip_factor(1, 2), 1);
  EXPECT_EQ(clip_factor(8, 0), 1);
  EXPECT_EQ(clip_factor(0, 1), 1) << "gradients of zeros are no reason to divide";
  EXPECT_EQ(clip_factor(8, INFINITY), 1);
}

TEST(Clipping, RefusesNormsThatNoFactorMends) {
  for (double norm : {static_cast<double>(INFINITY), static_cast<double>(NAN), -1.0})
    for (double max_norm : {0.0, 1.0})
      EXPECT_EQ(error_of([&] { clip_factor(norm, max_norm); }, {"clip_factor: the norm is ", "skip this update"}), "");
  EXPECT_EQ(error_of([] { clip_factor(1, -1); }, {"max_norm is -1"}), "");
  EXPECT_EQ(error_of([] { clip_factor(1, NAN); }, {"max_norm is nan"}), "");
}

}  // namespace
}  // namespace weft
