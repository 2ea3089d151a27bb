// When gradients are final, who is told, and in which precision they are summed.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/support/errors.h"
#include "tests/support/random.h"
#include "weft/autograd/functions.h"
#include "weft/autograd/recompute.h"
#include "weft/autograd/record.h"
#include "weft/ops/elementwise.h"

namespace weft {
namespace {

using test::error_of;
using Floats = std::vector<float>;
using Events = std::vector<std::string>;

Var leaf(std::initializer_list<float> values) {
  return variable(Tensor::from<float>(values, {static_cast<int64_t>(values.size())}));
}

// Notes `name` and the gradient's first number when that of x is final.
GradHook note(Events& events, const Var& x, const std::string& name) {
  return x.on_grad([&events, name](Tensor& grad) {
    events.push_back(str(name, " ", ops::cast(grad, kF64).to_vector<double>()[0]));
  });
}

TEST(FinalGradient, ComesWhenTheLastUseHasRunNotAtTheEnd) {
  Events events;
  Var x = leaf({1}), w1 = leaf({2}), w2 = leaf({3}), w3 = leaf({5});
  Var h1 = x * w1, h2 = h1 * w2, y = h2 * w3;
  note(events, w1, "w1"), note(events, w2, "w2"), note(events, w3, "w3");
  note(events, h1, "h1"), note(events, h2, "h2");
  backward(sum_all(y));
  EXPECT_EQ(events, (Events{"w3 6", "h2 5", "w2 10", "h1 15", "w1 15"}));
}

TEST(FinalGradient, OfASharedParameterComesOnceWithTheWholeSum) {
  Events events;
  Var tied = leaf({2}), other = leaf({3});
  Var h = square(tied) * other;
  Var y = h * tied;  // 3 t^3: 9 t^2 = 36
  note(events, tied, "tied"), note(events, other, "other"), note(events, h, "h");
  backward(sum_all(y));
  EXPECT_EQ(events, (Events{"h 2", "other 8", "tied 36"}));
  EXPECT_EQ(tied.grad().to_vector<float>(), (Floats{36}));
}

TEST(FinalGradient, AUseWithoutAGradientHoldsNothingBack) {
  Events events;
  Var w = leaf({2}), v = leaf({1});
  auto no_gradient = [](const Var& x) {
    return record("step", ops::square(x.value()), {x}, [](const Tensor&, Wants) { return Grads{Tensor()}; });
  };
  Var lost = no_gradient(exp(w));  // exp never runs backward
  Var h = w * 3.0;
  note(events, w, "w"), note(events, v, "v");
  backward(sum_all((lost + h) * v));
  EXPECT_EQ(events, (Events{str("v ", lost.value().item() + 6), "w 3"}));
}

TEST(FinalGradient, OfAListedParameterThatIsNotUsedIsZeroAndFiresOnce) {
  Events events;
  Var used = leaf({2}), unused = leaf({3, 4}), silent = leaf({5});
  note(events, used, "used"), note(events, unused, "unused");
  const std::vector<Var> all{used, unused, silent};
  backward(sum_all(square(used)), {}, {.leaves = all});
  EXPECT_EQ(events, (Events{"unused 0", "used 4"}));
  EXPECT_EQ(unused.grad().to_vector<float>(), (Floats{0, 0}));
  EXPECT_FALSE(silent.grad().defined());  // nobody asked
  const std::vector<Var> bad{used * 2.0};
  EXPECT_EQ(error_of([&] { backward(sum_all(square(used)), {}, {.leaves = bad}); }, {"options.leaves", "variables"}),
            "");
}

TEST(FinalGradient, OfAStepIsTheSumOfItsMicroBatches) {
  Events steps, micros;
  Var w = leaf({2}), idle = leaf({1});
  note(micros, w, "w");
  auto note_step = [&](const Var& x, const std::string& name) {
    x.on_step_grad([&steps, name](Tensor& grad) { steps.push_back(str(name, " ", grad.to_vector<float>()[0])); });
  };
  note_step(w, "w"), note_step(idle, "idle");
  const std::vector<Var> all{w, idle};
  for (int i = 0; i < 3; ++i) backward(sum_all(w * (1.0 + i)), {}, {.ends_step = i == 2, .leaves = all});
  EXPECT_EQ(micros, (Events{"w 1", "w 2", "w 3"}));
  EXPECT_EQ(steps, (Events{"idle 0", "w 6"}));
  backward(sum_all(w * 4.0));
  EXPECT_EQ(steps.back(), "w 10");
}

TEST(FinalGradient, AHookReplacesWhatTheLeafGets) {
  Var w = leaf({2}), idle = leaf({1});
  w.on_grad([](Tensor& grad) { grad = ops::scale(grad, 10); });
  w.on_step_grad([](Tensor& grad) { ops::scale_(grad, 2); });
  idle.on_grad([](Tensor& grad) { ops::fill_(grad, 7); });  // as a reduction over ranks would
  const std::vector<Var> all{w, idle};
  backward(sum_all(w * 3.0), {}, {.leaves = all});
  EXPECT_EQ(w.grad().item(), 60);
  EXPECT_EQ(idle.grad().item(), 7);
  Var bad = leaf({1});
  bad.on_grad([](Tensor& grad) { grad = Tensor::zeros({2}); });
  EXPECT_EQ(error_of([&] { backward(bad * 2.0); }, {"a hook left [2] f32 cpu for a gradient of shape [1]"}), "");
}

TEST(GradHook, IsNotCalledAfterItWasRemoved) {
  Events events;
  Var w = leaf({2});
  GradHook first = note(events, w, "first"), second;
  note(events, w, "stays");  // dropping a handle leaves the hook
  second = w.on_grad([&](Tensor&) {
    events.push_back("once");
    second.remove();  // from inside
  });
  backward(sum_all(w * 2.0));
  first.remove();
  first.remove();
  backward(sum_all(w * 3.0));
  EXPECT_EQ(events, (Events{"first 2", "stays 2", "once", "stays 3"}));
}

TEST(GradHook, OutlivesItsVariable) {
  GradHook hook;
  auto held = std::make_shared<int>(0);
  {
    Var w = leaf({2});
    hook = w.on_grad([held](Tensor&) {});
  }
  EXPECT_EQ(held.use_count(), 2);
  hook.remove();
  EXPECT_EQ(held.use_count(), 1) << "what a hook holds goes with it";
}

// Two blocks, each with a parameter of its own and one in common.
struct Blocks {
  Var common = leaf({2}), a = leaf({3}), b = leaf({5}), x = leaf({1});

  Var forward(bool recomputes) {
    auto block = [&](const Var& own) {
      return [&common = common, own](std::span<const Var> in) { return std::vector<Var>{in[0] * common * own}; };
    };
    auto run = [&](const VarFunction& f, const Var& in) {
      return recomputes ? recompute(f, {&in, 1})[0] : f({&in, 1})[0];
    };
    return run(block(b), run(block(a), x));
  }
};

TEST(FinalGradient, OfParametersInsideRecomputeComesWhenTheirBlockHasRun) {
  Events events, plain;
  for (bool recomputes : {false, true}) {
    Blocks blocks;
    Events& to = recomputes ? events : plain;
    note(to, blocks.common, "common"), note(to, blocks.a, "a"), note(to, blocks.b, "b"), note(to, blocks.x, "x");
    backward(sum_all(blocks.forward(recomputes)));
    EXPECT_EQ(blocks.common.grad().item(), 60);
  }
  EXPECT_EQ(plain, (Events{"b 12", "a 20", "x 60", "common 60"}));
  EXPECT_EQ(events.front(), "b 12");  // before the first block's
  EXPECT_EQ(events.size(), 4u);
}

TEST(Recompute, InsideRecomputeCountsParametersOnce) {
  Events events;
  Var w = leaf({2}), x = leaf({1});
  auto inner = [&](std::span<const Var> in) { return std::vector<Var>{in[0] * w}; };
  auto outer = [&](std::span<const Var> in) {
    Var h = in[0] * w;
    return std::vector<Var>{recompute(inner, {&h, 1})[0] * w};
  };
  note(events, w, "w");
  backward(sum_all(recompute(outer, {&x, 1})[0] * w));  // w^4: 4 w^3
  EXPECT_EQ(events, (Events{"w 32"}));
  EXPECT_EQ(x.grad().item(), 16);
}

TEST(Recompute, PassesGradientsToRecordedValuesThatItCaptured) {
  Var w = leaf({2}), x = leaf({3});
  Var shared = square(w);  // not an input
  auto f = [&](std::span<const Var> in) { return std::vector<Var>{in[0] * shared, shared}; };
  std::vector<Var> y = recompute(f, {&x, 1});
  backward(sum_all(y[0] + y[1] * 10.0 + shared));  // x w^2 + 11 w^2
  EXPECT_EQ(w.grad().item(), 56);
  EXPECT_EQ(x.grad().item(), 4);
}

TEST(Recompute, OfConstantsAloneIsAConstant) {
  Tensor x = Tensor::zeros({2});
  auto f = [](std::span<const Var> in) { return std::vector<Var>{exp(in[0])}; };
  Var in = x;
  EXPECT_FALSE(recompute(f, {&in, 1})[0].wants_grad());
}

TEST(Recompute, ThatReadsAnotherVariableInBackwardIsAnError) {
  Var x = leaf({1}), a = leaf({2}), b = leaf({3});
  int calls = 0;
  auto f = [&](std::span<const Var> in) { return std::vector<Var>{in[0] * (calls++ ? b : a)}; };
  Var y = recompute(f, {&x, 1})[0];
  EXPECT_EQ(error_of([&] { backward(y); }, {"recompute", "did not read in forward"}), "");
}

TEST(GradientSums, OfOneBf16ValueAreRoundedOnce) {
  Var x = variable(ops::cast(Tensor::full({1}, 1), kBF16));
  Var y = x * 1.0;  // not a leaf: its gradient is bf16 when it is passed on
  Var sum;
  for (int i = 0; i < 300; ++i) sum = sum.defined() ? sum + cast(y, kF32) : cast(y, kF32);
  backward(sum_all(sum));
  EXPECT_EQ(x.grad().dtype(), kF32);
  EXPECT_EQ(x.grad().item(), 300);  // 256 if each addition rounded
}

TEST(GradientSums, TakeBf16AndF32InAnyOrder) {
  Tensor one = ops::cast(Tensor::full({1, 1}, 1), kBF16);
  for (bool linear_first : {true, false})
    for (bool is_leaf : {true, false}) {
      Var w = variable(one), used = is_leaf ? w : w * 1.0;
      Var x = one;
      Var a, b;
      if (linear_first) a = linear(x, used), b = used * 2.0;
      else b = used * 2.0, a = linear(x, used);
      backward(sum_all(a + b));
      EXPECT_EQ(w.grad().item(), 3) << linear_first << is_leaf;
    }
}

TEST(GradientSums, OfRecomputedBlocksAreRoundedOnceToo) {
  Var x = variable(ops::cast(Tensor::full({1}, 1), kBF16));
  Var y = x * 1.0;
  auto f = [](std::span<const Var> in) {
    Var sum;
    for (int i = 0; i < 300; ++i) sum = sum.defined() ? sum + cast(in[0], kF32) : cast(in[0], kF32);
    return std::vector<Var>{sum};
  };
  backward(sum_all(recompute(f, {&y, 1})[0]));
  EXPECT_EQ(x.grad().item(), 300);
}

TEST(GradientMemory, IsOneSetFromTheSecondMicroBatchOn) {
  constexpr int kLayers = 16;
  constexpr int64_t kSize = 128;
  std::vector<Var> weights;
  for (int i = 0; i < kLayers; ++i) weights.push_back(variable(test::random_normal({kSize, kSize}, str("w", i))));
  auto peak = [&](int micro_batches) {
    for (Var& w : weights) w.set_grad({});
    allocator(Device::cpu()).reset_peak();
    for (int i = 0; i < micro_batches; ++i) {
      Var h = test::random_normal({1, kSize}, "x");
      for (const Var& w : weights) h = linear(h, w);
      backward(sum_all(h));
    }
    return allocator(Device::cpu()).stats().peak_bytes;
  };
  const int64_t matrix_bytes = kSize * kSize * 4;
  const int64_t one = peak(1), two = peak(2), four = peak(4);
  EXPECT_EQ(four, two);
  EXPECT_LT(two - one, 2 * matrix_bytes);  // a second set would be 16
}

}  // namespace
}  // namespace weft
