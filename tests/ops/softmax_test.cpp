// Softmax and logsumexp against float64 loops.
#include "tests/reference/softmax.h"

#include <limits>

#include "tests/ops/row_check.h"
#include "weft/ops/norm.h"

namespace weft::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void check(const Tensor& x, const Tensor& dy, const std::string& what) {
  Shape lead = x.shape();
  lead.erase(lead.num_dims() - 1);
  Tensor dl = random_normal(lead, "dl", x.dtype() == kF64 ? kF64 : kF32);
  // The backward sees the rounded y, and so does its reference: rounding of y itself is checked with y.
  reference::Softmax want =
      reference::softmax(values(x), static_cast<size_t>(x.shape().back()), values(dy), values(dl));
  Tensor y = ops::softmax(x), l = ops::logsumexp(x);
  expect_close(y, want.y, what + " y");
  expect_close(l, want.lse, what + " logsumexp");
  expect_close(ops::softmax_backward(dy, y), want.dx, what + " dx", x.dtype() == kBF16 ? 2e-2 : 0);
  // l in f32 has a relative error of 6e-8, which exp(x - l) turns into an absolute one.
  double allowed =
      x.dtype() == kF32 ? 2e-5 + 1e-7 * std::abs(want.lse.empty() || std::isinf(want.lse[0]) ? 0 : want.lse[0]) : 0;
  expect_close(ops::logsumexp_backward(dl, x, l), want.dx_lse, what + " dx of logsumexp", allowed);
}

TEST(Softmax, EqualsReferenceForAllShapesDtypesAndInstructionSets) {
  for_each_isa([] {
    for (DType dtype : {kF32, kBF16, kF64}) {
      for (int64_t width : {1, 2, 7, 8, 16, 31, 64, 67, 130, 257}) {
        Tensor x = random_normal({3, 5, width}, "x", dtype);
        check(x, random_normal({3, 5, width}, "dy", dtype), str(x));
      }
      for (Shape shape : {Shape{0, 5}, Shape{4, 0}, Shape{9}, Shape{333, 33}})
        check(random_normal(shape, "x", dtype), random_normal(shape, "dy", dtype), str(shape));
    }
  });
}

TEST(Softmax, ReadsStridedViews) {
  for (DType dtype : {kF32, kBF16, kF64}) {
    check(fused_heads(2, 5, 3, 16, "x", dtype), fused_heads(2, 5, 3, 16, "dy", dtype), "heads");
    check(random_normal({16, 7}, "x", dtype).transpose(0, 1), random_normal({7, 16}, "dy", dtype), "transposed");
    check(random_normal({1, 16}, "x", dtype).expand({4, 16}), random_normal({1, 16}, "dy", dtype).expand({4, 16}),
          "expanded");
  }
}

TEST(Softmax, IsSafeAtExtremes) {
  for_each_isa([] {
    const float f = kInfinity;
    std::vector<std::vector<float>> rows = {
        {1e4f, -1e4f, 9999, 0, 1e4f, 3, 2, 1, 0}, {-1e4f, -1e4f, -1e4f, -1e4f, -1e4f, -1e4f, -1e4f, -1e4f, -1e4f},
        {-f, 0, 1, -f, 2, -f, -f, -f, -f},        {-f, -f, -f, -f, -f, -f, -f, -f, -f},
        {3e38f, -3e38f, 0, 0, 0, 0, 0, 0, 0},     {7, 7, 7, 7, 7, 7, 7, 7, 7}};
    for (const std::vector<float>& row : rows) {
      Tensor x = Tensor::from(std::span<const float>(row), {1, 9});
      check(x, random_normal({1, 9}, "dy"), str(describe(x)));
    }
  });
}

TEST(Softmax, PassesNanOn) {
  float nan = std::numeric_limits<float>::quiet_NaN();
  for (std::vector<float> row : {std::vector<float>{0, nan, 1}, {-kInfinity, nan, -kInfinity}}) {
    Tensor x = Tensor::from(std::span<const float>(row), {3});
    EXPECT_TRUE(std::isnan(ops::logsumexp(x).item()));
    for (double y : values(ops::softmax(x))) EXPECT_TRUE(std::isnan(y));
  }
}

TEST(Softmax, GradientEqualsCentralDifferences) {
  Tensor x = random_normal({3, 5}, "x", kF64), dy = random_normal({3, 5}, "dy", kF64),
         dl = random_normal({3}, "dl", kF64);
  expect_close(ops::softmax_backward(dy, ops::softmax(x)),
               central_differences(x, [&] { return dot(ops::softmax(x), dy); }), "softmax", 1e-8);
  expect_close(ops::logsumexp_backward(dl, x, ops::logsumexp(x)),
               central_differences(x, [&] { return dot(ops::logsumexp(x), dl); }), "logsumexp", 1e-8);
}

TEST(Softmax, RepeatsBitForBitWithAnyThreadCount) {
  Tensor x = random_normal({1501, 67}, "x"), dy = random_normal({1501, 67}, "dy"), dl = random_normal({1501}, "dl");
  expect_same_for_all_threads([&]() -> std::vector<Tensor> {
    Tensor y = ops::softmax(x), l = ops::logsumexp(x);
    return {y, l, ops::softmax_backward(dy, y), ops::logsumexp_backward(dl, x, l)};
  });
}

TEST(Softmax, SaysWhatIsWrong) {
  Tensor x = Tensor::zeros({2, 8});
  expect_errors({
      {[&] {
         ops::softmax(Tensor::zeros({2, 8}, kI32));
       },
       {"softmax: x is [2, 8] i32", "f32, bf16 or f64"}},
      {[&] { ops::logsumexp(Tensor::zeros({}, kF32)); }, {"logsumexp: x is [] f32", "[..., D]"}},
      {[&] {
         ops::softmax_backward(Tensor::zeros({2, 7}), x);
       },
       {"softmax_backward: dy is [2, 7]", "y is [2, 8]"}},
      {[&] { ops::logsumexp_backward(Tensor::zeros({3}), x, Tensor::zeros({2})); },
       {"logsumexp_backward: dl is [3]", "x is [2, 8]"}},
      {[&] { ops::logsumexp_backward(Tensor::zeros({2}), x, Tensor()); }, {"logsumexp_backward: l is"}},
  });
}

}  // namespace
}  // namespace weft::test
