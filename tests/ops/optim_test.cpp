// Optimiser kernels against float64 loops, over several steps.
#include "weft/ops/optim.h"

#include <gtest/gtest.h>

#include "tests/ops/isa.h"
#include "tests/reference/optim.h"
#include "tests/reference/values.h"
#include "tests/support/errors.h"
#include "tests/support/random.h"
#include "weft/ops/elementwise.h"

namespace weft {
namespace {

using reference::Numbers;
using reference::values;

void expect_near(const Tensor& got, const Numbers& want, double error) {
  Numbers g = values(got);
  ASSERT_EQ(g.size(), want.size());
  for (size_t i = 0; i < g.size(); ++i)
    ASSERT_NEAR(g[i], want[i], error * std::max(1.0, std::abs(want[i]))) << "at " << i;
}

void adamw(const Tensor& param, const Tensor& grad, const Tensor& m, const Tensor& v, const Tensor& working,
           const ops::AdamWStep& o) {
  ops::OptimTensors one{param, grad, m, v, working};
  ops::adamw_({&one, 1}, o);
}
void muon(const Tensor& param, const Tensor& grad, const Tensor& momentum, const Tensor& working,
          const ops::MuonStep& o) {
  ops::OptimTensors one{.param = param, .grad = grad, .moment1 = momentum, .working = working};
  ops::muon_({&one, 1}, o);
}

TEST(Optim, AdamWEqualsFloat64Loops) {
  test::for_each_isa([] {
    for (int64_t n : {0, 1, 7, 8, 33, 40001})
      for (bool has_working : {false, true}) {
        Tensor param = test::random_normal({n}, "param"), m = Tensor::zeros({n}), v = Tensor::zeros({n});
        Tensor working = has_working ? Tensor::empty({n}, kBF16) : Tensor();
        Numbers p = values(param), pm = values(m), pv = values(v);
        for (int64_t step = 1; step <= 4; ++step) {
          ops::AdamWStep o{.lr = 0.01,
                           .beta1 = 0.9,
                           .beta2 = 0.99,
                           .eps = 1e-8,
                           .weight_decay = 0.1,
                           .step = step,
                           .grad_scale = 0.5};
          Tensor grad = test::random_normal({n}, str("grad", step));
          adamw(param, grad, m, v, working, o);
          reference::adamw(p, values(grad), pm, pv, o);
        }
        expect_near(param, p, 1e-6);
        expect_near(m, pm, 1e-6);
        expect_near(v, pv, 1e-6);
        if (has_working) { EXPECT_EQ(values(working), values(ops::cast(param, kBF16))); }
      }
  });
}

// Three steps of sizes around a pack, with and without a working copy, on every instruction set. step(tensors, i) runs both.
template <class Step>
void expect_three_steps(Step&& step) {
  test::for_each_isa([&] {
    for (int64_t n : {0, 1, 7, 8, 33, 40001})
      for (bool has_working : {false, true}) {
        SCOPED_TRACE(str(n, " elements"));
        ops::OptimTensors t{.param = test::random_normal({n}, "param"), .grad = {}, .moment1 = Tensor::zeros({n})};
        if (has_working) t.working = Tensor::empty({n}, kBF16);
        Numbers p = values(t.param), m = values(t.moment1);
        for (int i = 0; i < 3; ++i) {
          t.grad = test::random_normal({n}, str("grad", i));
          step(t, p, m);
        }
        expect_near(t.param, p, 1e-6);
        expect_near(t.moment1, m, 1e-6);
        if (has_working) { EXPECT_EQ(values(t.working), values(ops::cast(t.param, kBF16))); }
      }
  });
}

TEST(Optim, LionEqualsFloat64Loops) {
  expect_three_steps([](ops::OptimTensors& t, Numbers& p, Numbers& m) {
    const ops::LionStep o{.lr = 0.01, .beta1 = 0.9, .beta2 = 0.99, .weight_decay = 0.1, .grad_scale = 0.5};
    ops::lion_({&t, 1}, o);
    reference::lion(p, values(t.grad), m, o);
  });
}

TEST(Optim, SgdEqualsFloat64Loops) {
  for (double momentum : {0.0, 0.9})
    for (bool is_nesterov : {false, true}) {
      if (is_nesterov && momentum == 0) continue;
      expect_three_steps([&](ops::OptimTensors& t, Numbers& p, Numbers& m) {
        const ops::SgdStep o{
            .lr = 0.1, .momentum = momentum, .weight_decay = 0.1, .is_nesterov = is_nesterov, .grad_scale = 0.5};
        ops::sgd_({&t, 1}, o);
        reference::sgd(p, values(t.grad), m, o);
      });
    }
}

TEST(Optim, ScheduleFreeAdamWEqualsFloat64Loops) {
  test::for_each_isa([] {
    for (int64_t n : {0, 1, 7, 8, 33, 40001})
      for (bool has_working : {false, true}) {
        Tensor param = test::random_normal({n}, "param");
        ops::OptimTensors t{.param = param,
                            .grad = {},
                            .moment1 = ops::contiguous(ops::scale(param, 1)),
                            .moment2 = Tensor::zeros({n}),
                            .working = has_working ? Tensor::empty({n}, kBF16) : Tensor()};
        Numbers x = values(param), y = x, z = x, v = values(t.moment2);
        for (int step = 1; step <= 4; ++step) {
          const ops::ScheduleFreeStep o{
              .lr = 0.01 * step, .beta2 = 0.99, .weight_decay = 0.1, .average = 1.0 / step, .grad_scale = 0.5};
          t.grad = test::random_normal({n}, str("grad", step));
          ops::schedule_free_adamw_({&t, 1}, o);
          reference::schedule_free_adamw(x, y, z, values(t.grad), v, o);
        }
        expect_near(t.param, y, 2e-6);
        expect_near(t.moment1, z, 2e-6);
        expect_near(t.moment2, v, 1e-6);
        expect_near(ops::schedule_free_average(t.param, t.moment1, 0.9), x, 4e-6);
        if (has_working) { EXPECT_EQ(values(t.working), values(ops::cast(t.param, kBF16))); }
      }
  });
}

TEST(Optim, LionMovesNothingWithoutADirectionAndShowsNaN) {
  Tensor param = Tensor::full({3}, 2), m = Tensor::zeros({3}), grad = Tensor::from({0.0f, NAN, -1.0f}, {3});
  ops::OptimTensors one{.param = param, .grad = grad, .moment1 = m};
  ops::lion_({&one, 1}, {.lr = 0.5});
  Numbers p = values(param);
  EXPECT_EQ(p[0], 2);
  EXPECT_TRUE(std::isnan(p[1]));
  EXPECT_EQ(p[2], 2.5);
}

TEST(Optim, AdamWOfZeroGradientsOnlyDecays) {
  Tensor param = Tensor::full({5}, 2), zero = Tensor::zeros({5}), m = Tensor::zeros({5}), v = Tensor::zeros({5}), none;
  adamw(param, zero, m, v, none, {.lr = 0.1, .weight_decay = 0.5, .step = 1});
  EXPECT_EQ(values(param), Numbers(5, 2 * static_cast<double>(static_cast<float>(0.95))));
}

TEST(Optim, MuonEqualsFloat64Loops) {
  test::for_each_isa([] {
    for (auto [rows, columns] : {std::pair<int64_t, int64_t>{1, 1}, {4, 4}, {7, 31}, {31, 7}, {1, 9}, {9, 1}, {0, 3}})
      for (bool is_nesterov : {false, true}) {
        SCOPED_TRACE(str(rows, " x ", columns));
        ops::MuonStep o{
            .lr = 0.02, .momentum = 0.9, .weight_decay = 0.1, .is_nesterov = is_nesterov, .grad_scale = 0.5};
        Tensor param = test::random_normal({rows, columns}, "param"), buffer = Tensor::zeros({rows, columns});
        Tensor working = Tensor::empty({rows, columns}, kBF16);
        Numbers p = values(param), b = values(buffer);
        for (int step = 0; step < 3; ++step) {
          Tensor grad = test::random_normal({rows, columns}, str("grad", step));
          muon(param, grad, buffer, working, o);
          reference::muon(p, values(grad), b, static_cast<size_t>(rows), static_cast<size_t>(columns), o);
        }
        expect_near(param, p, 1e-5);
        expect_near(buffer, b, 1e-6);
        EXPECT_EQ(values(working), values(ops::cast(param, kBF16)));
      }
  });
}

// So it does not matter which rank updates which of them.
TEST(Optim, MuonOfManyMatricesIsThatOfEach) {
  for (const Shape& shape :
       {Shape{128, 128}, Shape{384, 128}, Shape{64, 200}, Shape{5, 3}, Shape{512, 512}, Shape{2048, 64}}) {
    std::vector<ops::OptimTensors> group, each;
    for (int i = 0; i < (shape[0] >= 512 ? 2 : 7); ++i) {
      Tensor param = test::random_normal(shape, str("param", i)), grad = test::random_normal(shape, str("grad", i));
      group.push_back({ops::clone(param), grad, Tensor::zeros(shape)});
      each.push_back({param, grad, Tensor::zeros(shape)});
    }
    for (int step = 0; step < 2; ++step) {
      ops::muon_(group, {.lr = 0.02, .weight_decay = 0.1});
      for (ops::OptimTensors& one : each) ops::muon_({&one, 1}, {.lr = 0.02, .weight_decay = 0.1});
    }
    for (size_t i = 0; i < each.size(); ++i)
      EXPECT_EQ(values(group[i].param), values(each[i].param)) << str(shape, " ", i);
  }
}

TEST(Optim, NewtonSchulzBringsSingularValuesNearOne) {
  Tensor x = ops::newton_schulz(test::random_normal({16, 48}, "x"), 5);
  Numbers v = values(x);
  // The mean square of the singular values is the squared norm over the rank.
  double square = 0;
  for (double each : v) square += each * each;
  EXPECT_GT(square / 16, 0.6);
  EXPECT_LT(square / 16, 1.4);
  Tensor wide = test::random_normal({5, 12}, "wide", kF64), tall = ops::contiguous(wide.transpose(0, 1));
  expect_near(ops::newton_schulz(tall, 5).transpose(0, 1), values(ops::newton_schulz(wide, 5)), 1e-12);
  for (double each : values(ops::newton_schulz(Tensor::zeros({3, 4}), 5))) EXPECT_EQ(each, 0);
  EXPECT_EQ(ops::newton_schulz_flops(4, 3, 5), 5 * 2 * (3 * 4 * 3 + 3 * 3 * 3 + 4 * 3 * 3));
}

TEST(Optim, UpdatesOfF64EqualTheLoopsToTheLastDigits) {
  constexpr int64_t kRows = 7, kColumns = 5;
  auto make = [](const char* name) { return test::random_normal({kRows, kColumns}, name, kF64); };
  auto zeros = [] { return Tensor::zeros({kRows, kColumns}, kF64); };
  ops::OptimTensors a{.param = make("a"), .grad = {}, .moment1 = zeros(), .moment2 = zeros()};
  ops::OptimTensors f{.param = make("f"), .grad = {}, .moment1 = make("f"), .moment2 = zeros()};
  ops::OptimTensors m{.param = make("m"), .grad = {}, .moment1 = zeros()}, l = m, s = m;
  for (ops::OptimTensors* t : {&l, &s}) t->param = make("m"), t->moment1 = zeros();
  Numbers ap = values(a.param), am = values(a.moment1), av = am, fx = values(f.param), fy = fx, fz = fx, fv = am;
  Numbers mp = values(m.param), mm = am, lp = mp, lm = am, sp = mp, sm = am;
  for (int step = 1; step <= 4; ++step) {
    const Tensor grad = make(str("grad", step).c_str());
    const Numbers g = values(grad);
    for (ops::OptimTensors* t : {&a, &f, &m, &l, &s}) t->grad = grad;
    const ops::AdamWStep adam{.lr = 0.01, .weight_decay = 0.1, .step = step, .grad_scale = 0.5};
    const ops::ScheduleFreeStep free{
        .lr = 0.01 * step, .beta2 = 0.99, .weight_decay = 0.1, .average = 1.0 / step, .grad_scale = 0.5};
    const ops::MuonStep muon{.lr = 0.02, .weight_decay = 0.1, .is_nesterov = step % 2 == 0, .grad_scale = 0.5};
    const ops::LionStep lion{.lr = 0.01, .weight_decay = 0.1, .grad_scale = 0.5};
    const ops::SgdStep sgd{
        .lr = 0.1, .momentum = 0.9, .weight_decay = 0.1, .is_nesterov = step % 2 == 0, .grad_scale = 0.5};
    ops::adamw_({&a, 1}, adam);
    ops::schedule_free_adamw_({&f, 1}, free);
    ops::muon_({&m, 1}, muon);
    ops::lion_({&l, 1}, lion);
    ops::sgd_({&s, 1}, sgd);
    reference::adamw(ap, g, am, av, adam);
    reference::schedule_free_adamw(fx, fy, fz, g, fv, free);
    reference::muon(mp, g, mm, kRows, kColumns, muon);
    reference::lion(lp, g, lm, lion);
    reference::sgd(sp, g, sm, sgd);
  }
  const std::pair<const Tensor*, const Numbers*> rows[] = {
      {&a.param, &ap}, {&a.moment1, &am}, {&a.moment2, &av}, {&f.param, &fy},   {&f.moment1, &fz}, {&f.moment2, &fv},
      {&m.param, &mp}, {&m.moment1, &mm}, {&l.param, &lp},   {&l.moment1, &lm}, {&s.param, &sp},   {&s.moment1, &sm}};
  for (const auto& [got, want] : rows) expect_near(*got, *want, 1e-13);
}

TEST(Optim, ErrorsSayWhatAndHowToFix) {
  Tensor p = Tensor::zeros({2, 3}), m = Tensor::zeros({2, 3}), v = Tensor::zeros({2, 3}), wrong = Tensor::zeros({3, 2}),
         none;
  Tensor half = Tensor::zeros({2, 3}, kBF16), line = Tensor::zeros({6});
  EXPECT_EQ("", test::error_of([&] { adamw(p, wrong, m, v, none, {}); },
                               {"adamw_: param is [2, 3] f32 cpu, grad is [3, 2] f32 cpu"}));
  EXPECT_EQ("",
            test::error_of([&] { adamw(p, m, m, half, none, {}); }, {"moment2 is [2, 3] bf16 cpu", "moment2 is f32"}));
  EXPECT_EQ("", test::error_of([&] { adamw(p, m, m, v, m, {}); }, {"working is [2, 3] f32 cpu", "working is bf16"}));
  Tensor f64 = Tensor::zeros({2, 3}, kF64);
  EXPECT_EQ("", test::error_of([&] { adamw(f64, m, f64, f64, none, {}); }, {"grad is [2, 3] f32 cpu", "both are f64"}));
  EXPECT_EQ("",
            test::error_of([&] { adamw(f64, f64, f64, f64, half, {}); }, {"working is [2, 3] bf16", "param is f32"}));
  std::vector<ops::OptimTensors> mixed{{p, m, m}, {f64, f64, f64}};
  EXPECT_EQ("", test::error_of([&] { ops::lion_(mixed, {}); }, {"params are [2, 3] f32 cpu and [2, 3] f64 cpu"}));
  EXPECT_EQ("", test::error_of([&] { adamw(p, m, m, v, none, {.beta1 = 1}); }, {"adamw_: beta1 is 1", "[0, 1)"}));
  EXPECT_EQ("", test::error_of([&] { adamw(p, m, m, v, none, {.step = 0}); }, {"step 0", "at least 1"}));
  EXPECT_EQ("", test::error_of([&] { adamw(p, m, m, v, none, {.lr = -1}); }, {"adamw_: lr is -1"}));
  EXPECT_EQ("", test::error_of([&] { muon(line, line, line, none, {}); }, {"muon_: param is [6] f32 cpu", "adamw_"}));
  EXPECT_EQ("",
            test::error_of([&] { muon(p, wrong, m, none, {}); }, {"muon_: param is [2, 3] f32 cpu, grad is [3, 2]"}));
  EXPECT_EQ("", test::error_of([&] { muon(p, v, m, none, {.momentum = 1}); }, {"muon_: momentum is 1"}));
  auto lion = [&](const Tensor& grad, const ops::LionStep& o) {
    ops::OptimTensors one{.param = p, .grad = grad, .moment1 = m};
    ops::lion_({&one, 1}, o);
  };
  auto sgd = [&](const Tensor& moment, const ops::SgdStep& o) {
    ops::OptimTensors one{.param = p, .grad = v, .moment1 = moment};
    ops::sgd_({&one, 1}, o);
  };
  EXPECT_EQ("", test::error_of([&] { lion(wrong, {}); }, {"lion_: param is [2, 3] f32 cpu, grad is [3, 2]"}));
  EXPECT_EQ("", test::error_of([&] { lion(v, {.beta2 = 1}); }, {"lion_: beta1 is 0.9, beta2 1", "[0, 1)"}));
  EXPECT_EQ("", test::error_of([&] { lion(v, {.lr = INFINITY}); }, {"lion_: lr is inf", "finite"}));
  EXPECT_EQ("", test::error_of([&] { sgd(none, {.momentum = 0.9}); }, {"sgd_: param is [2, 3] f32 cpu, moment1 is"}));
  EXPECT_EQ("", test::error_of([&] { sgd(none, {.is_nesterov = true}); }, {"sgd_: nesterov without momentum"}));
  sgd(none, {.lr = 0.1});
  ops::OptimTensors free{.param = p, .grad = v, .moment1 = m, .moment2 = v};
  EXPECT_EQ("", test::error_of([&] { ops::schedule_free_adamw_({&free, 1}, {.beta1 = 0}); }, {"beta1 is 0", "(0, 1)"}));
  EXPECT_EQ("", test::error_of([&] { ops::schedule_free_adamw_({&free, 1}, {.average = 2}); }, {"average 2"}));
  EXPECT_EQ("", test::error_of([&] { ops::schedule_free_average(p, m, 0); }, {"beta1 is 0"}));
  EXPECT_EQ("", test::error_of([&] { ops::newton_schulz(half, 5); }, {"newton_schulz: matrix is [2, 3] bf16 cpu"}));
}

}  // namespace
}  // namespace weft
