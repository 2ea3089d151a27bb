// The tape itself: accumulation, hooks, freeing, errors, recompute, anomaly mode.
#include <gtest/gtest.h>

#include <thread>

#include "tests/support/errors.h"
#include "tests/support/random.h"
#include "weft/autograd/functions.h"
#include "weft/autograd/recompute.h"
#include "weft/autograd/record.h"
#include "weft/core/scope.h"
#include "weft/ops/elementwise.h"

namespace weft {
namespace {

using test::error_of;
using Floats = std::vector<float>;

Var leaf(std::initializer_list<float> values) {
  return variable(Tensor::from<float>(values, {static_cast<int64_t>(values.size())}));
}

TEST(Tape, AddsUpAllPathsAndAllBackwards) {
  Var x = leaf({1, 2});
  backward(sum_all(x * x + x));
  EXPECT_EQ(x.grad().to_vector<float>(), (Floats{3, 5}));
  backward(sum_all(x * 2.0));
  EXPECT_EQ(x.grad().to_vector<float>(), (Floats{5, 7}));
}

TEST(Tape, ASharedGradientIsNotOverwritten) {
  Var x = leaf({1, 2}), y = leaf({3, 4});
  Var s = x + y;  // both get the same dy
  backward(sum_all(s) + sum_all(x) + sum_all(x));
  EXPECT_EQ(x.grad().to_vector<float>(), (Floats{3, 3}));
  EXPECT_EQ(y.grad().to_vector<float>(), (Floats{1, 1}));
  EXPECT_FALSE(x.grad().shares_memory_with(y.grad()));
}

TEST(Tape, ConstantsRecordNothing) {
  Var x = Tensor::zeros({2});
  EXPECT_FALSE((x * x).wants_grad());
  Var w = leaf({1, 2});
  NoGrad no_grad;
  EXPECT_FALSE((w * w).wants_grad());
  EXPECT_FALSE(w.detach().wants_grad());
}

TEST(Tape, FreesWhatNodesKeptAsItGoes) {
  Var x = variable(Tensor::zeros({1000}));
  int64_t before = allocator(Device::cpu()).stats().current_bytes;
  {
    Var y = x;
    for (int i = 0; i < 20; ++i) y = tanh(y);
    EXPECT_GT(allocator(Device::cpu()).stats().current_bytes, before + 20 * 4000 - 1);
    Var loss = sum_all(y);
    y = Var();
    backward(loss);
    EXPECT_LT(allocator(Device::cpu()).stats().current_bytes, before + 3 * 5000);
  }
  x.set_grad({});
  EXPECT_EQ(allocator(Device::cpu()).stats().current_bytes, before);
}

TEST(Tape, ALongChainIsFreedWithoutRecursion) {
  Var x = leaf({1});
  Var y = x;
  for (int i = 0; i < 200000; ++i) y = y + 0.0;
  y = Var();
  Var z = x;
  for (int i = 0; i < 50000; ++i) z = z + 0.0;
  backward(z);
  EXPECT_EQ(x.grad().item(), 1);
}

TEST(Tape, SecondBackwardIsAnErrorUnlessTheGraphIsKept) {
  Var x = leaf({2});
  Var y = square(x);
  backward(y, {}, {.keeps_graph = true});
  backward(y);
  EXPECT_EQ(x.grad().item(), 8);
  EXPECT_EQ(error_of([&] { backward(y); }, {"square was already differentiated", "keeps_graph"}), "");
}

TEST(Tape, ChangingAKeptTensorIsAnError) {
  Tensor value = Tensor::from<float>({1, 2}, {2});
  Var x = variable(value);
  Var y = sum_all(square(x));
  ops::scale_(value, 2);
  EXPECT_EQ(error_of([&] { backward(y); }, {"kept for backward was changed in place", "[2] f32 cpu", "ops::clone"}),
            "");
}

TEST(Tape, HooksSeeAndReplaceGradients) {
  Var x = leaf({1, 2});
  Var y = x * 3.0;
  int calls = 0;
  y.on_grad([&](Tensor& grad) {
    ++calls;
    grad = ops::scale(grad, 10);
  });
  x.on_grad([&](Tensor&) { ++calls; });
  backward(sum_all(y) + sum_all(y));
  EXPECT_EQ(calls, 2);
  EXPECT_EQ(x.grad().to_vector<float>(), (Floats{60, 60}));
}

TEST(Tape, AnErrorHalfWayLeavesNothingForTheNextBackward) {
  Var x = leaf({1, 2});
  Var y = x * 3.0;
  bool throws = true;
  y.on_grad([&](Tensor&) { WEFT_CHECK(!throws, "planted", "none"); });
  Var z = sum_all(y + square(x));
  EXPECT_EQ(error_of([&] { backward(z, {}, {.keeps_graph = true}); }, {"planted"}), "");
  EXPECT_FALSE(x.grad().defined());
  throws = false;
  backward(z);
  EXPECT_EQ(x.grad().to_vector<float>(), (Floats{5, 7}));
}

TEST(Tape, CastReturnsGradientsInTheDtypeOfItsInput) {
  Var x = variable(Tensor::from<double>({1, 2}, {2}));
  Var y = cast(x, kBF16);
  EXPECT_EQ(y.dtype(), kBF16);
  DType seen = kI32;
  x.on_grad([&](Tensor& grad) { seen = grad.dtype(); });
  backward(sum_all(y * y));
  EXPECT_EQ(seen, kF64);
  EXPECT_EQ(x.grad().to_vector<double>(), (std::vector<double>{2, 4}));
}

TEST(Tape, AHookThatWritesInPlaceChangesOnlyItsOwnBranch) {
  Var a = leaf({1}), b = leaf({1});
  Var x = a * 1.0;
  x.on_grad([](Tensor& grad) { ops::scale_(grad, 10); });
  backward(sum_all(x + b));
  EXPECT_EQ(a.grad().item(), 10);
  EXPECT_EQ(b.grad().item(), 1);
}

TEST(Tape, LeavesOfBf16CollectInF32) {
  Var w = variable(ops::cast(Tensor::from<float>({1, 2}, {2}), kBF16));
  backward(sum_all(w * w));
  EXPECT_EQ(w.grad().dtype(), kF32);
  EXPECT_EQ(w.grad().to_vector<float>(), (Floats{2, 4}));
}

// A user's own function, in full.
Var cube(const Var& x) {
  Tensor y = ops::mul(ops::square(x.value()), x.value());
  return record("cube", y, {x}, [x = Saved(x.value())](const Tensor& dy, Wants) {
    return Grads{ops::scale(ops::mul(dy, ops::square(x)), 3)};
  });
}

TEST(Tape, AUserFunctionTakesFiveLines) {
  Var x = leaf({2, -1});
  backward(sum_all(cube(x)));
  EXPECT_EQ(x.grad().to_vector<float>(), (Floats{12, 3}));
}

TEST(Tape, WrongGradientsOfAFunctionAreNamed) {
  auto bad_shape = [](const Var& x) {
    return record("bad", ops::square(x.value()), {x}, [](const Tensor&, Wants) { return Grads{Tensor::zeros({3})}; });
  };
  auto bad_count = [](const Var& x) {
    return record("bad", ops::square(x.value()), {x}, [](const Tensor& dy, Wants) {
      return Grads{Tensor(dy), Tensor(dy)};
    });
  };
  Var x = leaf({1, 2});
  EXPECT_EQ(error_of([&] { backward(sum_all(bad_shape(x))); },
                     {"bad returned a gradient [3] f32 cpu for input 0 of shape [2]"}),
            "");
  EXPECT_EQ(error_of([&] { backward(sum_all(bad_count(x))); }, {"bad returned 2 gradients for 1 inputs"}), "");
  EXPECT_EQ(error_of([&] { backward(x * 2.0); }, {"more than one element"}), "");
  EXPECT_EQ(error_of([&] { backward(Var(Tensor::zeros({}))); }, {"does not depend on a variable()"}), "");
  EXPECT_EQ(error_of([&] { variable(Tensor::zeros({2}, kI32)); }, {"f32, bf16 and f64 only"}), "");
  EXPECT_EQ(error_of([&] { (x * 2.0).grad(); }, {"is not a variable()"}), "");
}

TEST(Tape, SeveralOutputsGetTheirOwnGradients) {
  Var x = leaf({1, 2, 3, 4, 5});
  const int64_t sizes[] = {2, 3};
  auto parts = split(x, sizes, 0);
  backward(sum_all(parts[0] * 2.0) + sum_all(square(parts[1])));
  EXPECT_EQ(x.grad().to_vector<float>(), (Floats{2, 2, 6, 8, 10}));
}

TEST(Tape, ThreadsHaveTapesOfTheirOwn) {
  std::vector<std::thread> threads;
  std::array<float, 4> grads{};
  for (size_t r = 0; r < 4; ++r)
    threads.emplace_back([r, &grads] {
      Var x = leaf({static_cast<float>(r)});
      Var y = x;
      for (int i = 0; i < 100; ++i) y = y + x;
      backward(y);
      grads[r] = x.grad().to_vector<float>()[0];
    });
  for (auto& thread : threads) thread.join();
  for (float grad : grads) EXPECT_EQ(grad, 101);
}

TEST(Recompute, GivesTheSameBitsAndKeepsLess) {
  Tensor value = test::random_normal({64, 64}, "x");
  Var w = variable(test::random_normal({64, 64}, "w"));
  auto block = [&](std::span<const Var> in) {
    Var y = in[0];
    for (int i = 0; i < 8; ++i) y = tanh(y * w);
    return std::vector<Var>{y};
  };
  auto run = [&](bool recomputes) {
    Var x = variable(value);
    w.set_grad({});
    allocator(Device::cpu()).reset_peak();
    int64_t before = allocator(Device::cpu()).stats().current_bytes;
    Var y = recomputes ? recompute(block, {&x, 1})[0] : block({&x, 1})[0];
    int64_t kept = allocator(Device::cpu()).stats().current_bytes - before;
    backward(sum_all(y));
    return std::tuple(x.grad().to_vector<float>(), w.grad().to_vector<float>(), kept);
  };
  auto [dx, dw, kept] = run(false);
  auto [dx2, dw2, kept2] = run(true);
  EXPECT_EQ(dx, dx2);
  EXPECT_EQ(dw, dw2);
  EXPECT_LT(kept2 * 4, kept);
}

TEST(Anomaly, NamesTheFirstOpAndModule) {
  set_anomaly_mode(true);
  Scope model("model");
  Scope layer("layers.2");
  Var x = leaf({-1, 2});
  EXPECT_EQ(error_of([&] { exp(log(x)); }, {"log: output 0 [2] f32 cpu holds NaN", "model.layers.2"}), "");
  Var zero = leaf({0, 1});
  Var y = sqrt(zero);
  EXPECT_EQ(error_of([&] { backward(sum_all(y)); }, {"backward: sqrt in model.layers.2", "input 0"}), "");
  set_anomaly_mode(false);
}

}  // namespace
}  // namespace weft
