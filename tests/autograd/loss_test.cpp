// Losses against float64 loops: reductions, ignored targets, extreme logits, bf16.
#include "weft/autograd/loss.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/reference/loss.h"
#include "tests/reference/values.h"
#include "tests/support/random.h"
#include "weft/autograd/functions.h"
#include "weft/ops/elementwise.h"

namespace weft {
namespace {

using reference::make;
using reference::values;
using Numbers = std::vector<double>;

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr DType kFloating[] = {kF32, kBF16, kF64};

double tolerance(DType dtype) { return dtype == kF64 ? 1e-12 : dtype == kF32 ? 2e-6 : 8e-3; }

void expect_near(const Tensor& got, const Numbers& want, double allowed, const std::string& what) {
  Numbers g = values(got);
  ASSERT_EQ(g.size(), want.size()) << what;
  for (size_t i = 0; i < g.size(); ++i) {
    if (g[i] == want[i]) continue;
    ASSERT_LE(std::abs(g[i] - want[i]), allowed * (1 + std::abs(want[i]))) << what << " at " << i << ": " << g[i];
  }
}

double total(const Numbers& x) {
  double sum = 0;
  for (double v : x) sum += v;
  return sum;
}

// The loss under every reduction against the losses of each element, and the gradient of the mean against `slopes`.
void expect_reductions(const std::function<Var(Reduction)>& loss, const Numbers& each, DType dtype) {
  const DType wide = dtype == kF64 ? kF64 : kF32;
  Var none = loss(Reduction::none), sum = loss(Reduction::sum), mean = loss(Reduction::mean);
  EXPECT_EQ(none.dtype(), wide);
  expect_near(none.value(), each, tolerance(wide), "none");
  EXPECT_EQ(sum.shape(), Shape());
  expect_near(sum.value(), {total(each)}, tolerance(wide), "sum");
  expect_near(mean.value(), {total(each) / static_cast<double>(each.size())}, tolerance(wide), "mean");
}

TEST(MseLoss, EqualsLoopsAndDifferentiatesBoth) {
  for (DType dtype : kFloating) {
    Var x = variable(test::random_normal({3, 5}, "x", dtype)), y = variable(test::random_normal({3, 5}, "y", dtype));
    Numbers a = values(x.value()), b = values(y.value()), each, dx, dy;
    for (size_t i = 0; i < a.size(); ++i) {
      each.push_back((a[i] - b[i]) * (a[i] - b[i]));
      dx.push_back(2 * (a[i] - b[i]) / 15), dy.push_back(-dx.back());
    }
    auto loss = [&](Reduction r) { return mse_loss(x, y, r); };
    expect_reductions(loss, each, dtype);
    backward(loss(Reduction::mean));
    expect_near(x.grad(), dx, tolerance(dtype), "dx");
    expect_near(y.grad(), dy, tolerance(dtype), "dy");
  }
}

TEST(BceWithLogits, EqualsLoopsAndDifferentiatesBoth) {
  for (DType dtype : kFloating) {
    Tensor targets = ops::cast(make({12}, {0, 1, 0.25, 0.5, 0, 1, 0, 1, 0, 1, 0.75, 1}, kF64), dtype);
    Tensor logits = make({12}, {0.5, 0.5, -1, 2, 30, 30, -30, -30, 3, -3, 0, 8}, dtype);
    Var x = variable(logits), y = variable(targets);
    Numbers a = values(logits), b = values(targets), each, dx, dy;
    for (size_t i = 0; i < a.size(); ++i) {
      auto softplus = [](double v) { return std::max(v, 0.0) + std::log1p(std::exp(-std::abs(v))); };
      each.push_back(b[i] * softplus(-a[i]) + (1 - b[i]) * softplus(a[i]));
      dx.push_back((1 - b[i]) / (1 + std::exp(-a[i])) - b[i] / (1 + std::exp(a[i]))), dy.push_back(-a[i]);
    }
    auto loss = [&](Reduction r) { return bce_with_logits(x, y, r); };
    expect_reductions(loss, each, dtype);
    backward(loss(Reduction::sum));
    expect_near(x.grad(), dx, tolerance(dtype), "dx");
    expect_near(y.grad(), dy, tolerance(dtype), "dy");
    // A certain and right prediction keeps its small loss.
    EXPECT_NEAR(values(loss(Reduction::none).value())[5] / std::exp(-30.0), 1, 1e-5);
  }
}

TEST(BceWithLogits, IsSafeAtExtremes) {
  for (DType dtype : kFloating) {
    Var x = variable(make({8}, {1e4, 1e4, -1e4, -1e4, kInf, -kInf, kInf, -kInf}, dtype));
    Tensor y = make({8}, {1, 0, 1, 0, 1, 0, 0, 1}, dtype);
    const double large = values(x.value())[0];
    EXPECT_EQ(values(bce_with_logits(x, y, Reduction::none).value()), (Numbers{0, large, large, 0, 0, 0, kInf, kInf}));
    backward(bce_with_logits(x, y, Reduction::sum));
    EXPECT_EQ(values(x.grad()), (Numbers{0, 1, -1, 0, 0, 0, 1, -1}));
  }
}

TEST(CrossEntropy, ItsMeanIsOverTheTargetsThatCount) {
  for (DType dtype : kFloating)
    for (double smoothing : {0.0, 0.1})
      for (bool has_weights : {false, true}) {
        Var logits = variable(test::random_normal({5, 7}, "z", dtype));
        Tensor targets = Tensor::from<int32_t>({3, -1, 0, 6, -100}, {5});
        const DType wide = dtype == kF64 ? kF64 : kF32;
        const Numbers w = has_weights ? Numbers{1, 2, 0.5, 3, 0, 1, 0.25} : Numbers(7, 1.0);
        CrossEntropyOptions options{.label_smoothing = smoothing};
        if (has_weights) options.class_weights = make({7}, w, wide);
        const double divisor = w[3] + w[0] + w[6];
        reference::CrossEntropy want = reference::softened_cross_entropy(values(logits.value()), 7, {3, -1, 0, 6, -100},
                                                                         Numbers(5, 1 / divisor), smoothing, w);
        expect_near(cross_entropy(logits, targets, options).value(), want.losses, tolerance(wide), "none");
        options.reduction = Reduction::sum;
        expect_near(cross_entropy(logits, targets, options).value(), {total(want.losses)}, tolerance(wide), "sum");
        options.reduction = Reduction::mean;
        Var mean = cross_entropy(logits, targets, options);
        expect_near(mean.value(), {total(want.losses) / divisor}, tolerance(wide), "mean");
        backward(mean);
        expect_near(logits.grad(), want.dlogits, tolerance(dtype), "dlogits");
      }
}

TEST(CrossEntropy, TheMeanOfNoTargetIsNan) {
  Var logits = Tensor::zeros({2, 3});
  Tensor none = Tensor::full({2}, -1, kI32);
  EXPECT_TRUE(std::isnan(cross_entropy(logits, none, {.reduction = Reduction::mean}).value().item()));
  EXPECT_EQ(cross_entropy(logits, none, {.reduction = Reduction::sum}).value().item(), 0);
  EXPECT_EQ(cross_entropy(logits, none).shape(), Shape({2}));
}

TEST(KlDivergence, ReducesOverRowsAndLeavesADetachedTeacherAlone) {
  for (DType dtype : kFloating) {
    Var student = variable(test::random_normal({2, 3, 7}, "s", dtype)),
        teacher = variable(test::random_normal({2, 3, 7}, "t", dtype));
    reference::Kl want =
        reference::kl_divergence(values(student.value()), values(teacher.value()), 7, Numbers(6, 1.0 / 6));
    expect_reductions([&](Reduction r) { return kl_divergence(student, teacher, r); }, want.losses, dtype);
    backward(kl_divergence(student, teacher.detach(), Reduction::mean));
    expect_near(student.grad(), want.dlogits, tolerance(dtype), "student");
    EXPECT_FALSE(teacher.grad().defined());
    backward(kl_divergence(student.detach(), teacher, Reduction::mean));
    expect_near(teacher.grad(), want.dtarget, tolerance(dtype), "teacher");
    // Log-probabilities are logits.
    Var same = kl_divergence(log_softmax(student), log_softmax(teacher), Reduction::none);
    expect_near(same.value(), want.losses, 20 * tolerance(dtype), "of log-probabilities");
  }
}

}  // namespace
}  // namespace weft
