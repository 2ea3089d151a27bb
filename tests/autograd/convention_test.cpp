// What gradients are where no derivative exists, and what NaN, infinity and emptiness do: ties, bounds, zeros, masked values.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/errors.h"
#include "weft/autograd/functions.h"

namespace weft {
namespace {

using test::error_of;
using Floats = std::vector<float>;

constexpr float kInf = INFINITY;

Var leaf(std::initializer_list<float> numbers) {
  return variable(Tensor::from<float>(numbers, {static_cast<int64_t>(numbers.size())}));
}
Floats grad_of(const Var& x) { return x.grad().to_vector<float>(); }

TEST(Maximum, ATieSharesTheGradientInHalves) {
  for (bool is_max : {true, false}) {
    Var a = leaf({1, 2, 3}), b = leaf({2, 2, 2});
    backward(sum_all((is_max ? maximum(a, b) : minimum(a, b)) * 4.0));
    EXPECT_EQ(grad_of(a), (is_max ? Floats{0, 2, 4} : Floats{4, 2, 0}));
    EXPECT_EQ(grad_of(b), (is_max ? Floats{4, 2, 0} : Floats{0, 2, 4}));
  }
}

TEST(Maximum, OfANumberPassesTheGradientOnTheBound) {
  Var x = leaf({1, 2, 3});
  backward(sum_all(maximum(x, 2)));
  EXPECT_EQ(grad_of(x), (Floats{0, 1, 1}));
  x.set_grad({});
  backward(sum_all(minimum(x, 2)));
  EXPECT_EQ(grad_of(x), (Floats{1, 1, 0}));
}

TEST(Clamp, PassesTheGradientOnItsBounds) {
  Var x = leaf({-1, 0, 0.5, 1, 2});
  Var y = clamp(x, 0, 1);
  EXPECT_EQ(y.value().to_vector<float>(), (Floats{0, 0, 0.5, 1, 1}));
  backward(sum_all(y));
  EXPECT_EQ(grad_of(x), (Floats{0, 1, 1, 1, 0}));
}

TEST(Clamp, DoesNotMultiplyAnInfiniteGradientByZero) {
  Var x = leaf({-1, 4});
  backward(sum_all(sqrt(clamp_min(x, 0))));  // the slope of sqrt at 0 is infinite
  EXPECT_EQ(grad_of(x), (Floats{0, 0.25}));
}

TEST(Where, TheSideThatIsNotChosenGetsZeroAlsoOfInfiniteGradients) {
  Var x = leaf({0, 4});
  Var safe = where(greater(x, 0), x, 1);
  backward(sum_all(where(greater(x, 0), sqrt(safe), 0)));
  EXPECT_EQ(grad_of(x), (Floats{0, 0.25}));
  Var z = leaf({0, 4});
  backward(sum_all(masked_fill(z, less(z, 1), -kInf) * kInf));
  EXPECT_EQ(grad_of(z), (Floats{0, kInf}));
}

TEST(Where, BroadcastsTheMaskAndSumsTheGradient) {
  Var x = leaf({1, 2});
  Tensor mask = Tensor::from({true, false, true, true, false, false}, {3, 2});
  Var y = where(mask, x, 7);
  EXPECT_EQ(y.value().to_vector<float>(), (Floats{1, 7, 1, 2, 7, 7}));
  backward(sum_all(y));
  EXPECT_EQ(grad_of(x), (Floats{2, 1}));
}

TEST(Min, TheGradientGoesToTheLowestIndexOfATie) {
  Var x = leaf({3, 1, 1});
  backward(min(x, 0));
  EXPECT_EQ(grad_of(x), (Floats{0, 1, 0}));
}

TEST(Norm, OfZerosHasTheGradientZero) {
  Var x = variable(Tensor::from<float>({0, 0, 3, 4}, {2, 2}));
  Var y = norm(x, 1);
  EXPECT_EQ(y.value().to_vector<float>(), (Floats{0, 5}));
  backward(sum_all(y));
  EXPECT_EQ(grad_of(x), (Floats{0, 0, 0.6f, 0.8f}));
}

TEST(Pow, AtZeroHasTheGradientsOfItsLimits) {
  Var x = leaf({0, 0, -2}), b = leaf({0, 2, 2});
  backward(sum_all(pow(x, b)));
  EXPECT_EQ(grad_of(x), (Floats{0, 0, -4}));
  EXPECT_EQ(b.grad().to_vector<float>()[0], 0);
  EXPECT_EQ(b.grad().to_vector<float>()[1], 0);
  EXPECT_TRUE(std::isnan(b.grad().to_vector<float>()[2]));  // log of a negative number
}

TEST(Functions, TakeEmptyTensors) {
  Var x = variable(Tensor::zeros({0, 3}));
  backward(
      sum_all(clamp(x, 0, 1) + pow(x, 3) + maximum(x, x) + softmax(x, 0) + log_softmax(x) + where(less(x, 0), x, 1)));
  EXPECT_EQ(x.grad().shape(), Shape({0, 3}));
  const Var parts[] = {x, x};
  EXPECT_EQ(stack(parts, 1).shape(), Shape({0, 2, 3}));
  EXPECT_EQ(chunk(x, 2, 1)[0].shape(), Shape({0, 2}));
}

TEST(Functions, ComparisonsTakeVarsAndTensorsAndRecordNothing) {
  Var x = leaf({1, 2, 3});
  const Tensor t = x.value();
  EXPECT_EQ(less(x, t + Var(t)).to_vector<bool>(), (std::vector<bool>{true, true, true}));
  EXPECT_EQ(logical_and(greater_equal(x, 2), not_equal(t, 3)).to_vector<bool>(),
            (std::vector<bool>{false, true, false}));
  EXPECT_EQ(argmax(x, 0).item(), 2);
  EXPECT_EQ(argmin(x, 0).item(), 0);
}

// The lines of docs/cpp.md.
TEST(Functions, TheExampleOfTheDocsRuns) {
  Var x = leaf({1, 9}), y = leaf({2, 2}), student = leaf({1, 2}), teacher = leaf({2, 1});
  Tensor is_far = greater(abs(x - y), 3);
  Var loss = sum_all(where(is_far, 0, square(x - y)));
  Var distilled = kl_divergence(student, teacher.detach(), Reduction::mean);
  backward(loss + distilled);
  EXPECT_EQ(grad_of(x), (Floats{-2, 0}));
  EXPECT_NEAR(distilled.value().item(), std::tanh(0.5), 1e-6);  // (p - q) log(p / q) of two classes
  EXPECT_FALSE(teacher.grad().defined());
}

TEST(Functions, ErrorsSayWhatAndHowToFix) {
  Var x = leaf({1, 2}), y = leaf({1, 2, 3});
  const Var parts[] = {x, y}, one[] = {x};
  EXPECT_EQ("",
            error_of([&] { stack(parts, 0); }, {"stack: part 1 is [3] f32 cpu, part 0 is [2] f32 cpu", "concatenate"}));
  EXPECT_EQ("", error_of([&] { stack({}, 0); }, {"stack: no parts"}));
  EXPECT_EQ("", error_of([&] { stack(one, 2); }, {"stack", "2"}));
  EXPECT_EQ("", error_of([&] { chunk(x, 0, 0); }, {"chunk: count is 0", "[2] f32"}));
  EXPECT_EQ("", error_of([&] { variance(x, 0, 2); }, {"variance: correction is 2", "[2] f32"}));
  EXPECT_EQ("",
            error_of([&] { mse_loss(x, y, Reduction::mean); }, {"squared_error: x is [2] f32 cpu, the target is [3]"}));
  EXPECT_EQ("",
            error_of([&] { bce_with_logits(x, cast(x, kBF16), Reduction::mean); }, {"[2] f32 cpu", "[2] bf16 cpu"}));
}

}  // namespace
}  // namespace weft
