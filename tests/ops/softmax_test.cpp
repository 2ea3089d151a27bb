// Softmax and logsumexp against float64 loops.
#include "tests/reference/softmax.h"

#include <limits>

#include "tests/ops/row_check.h"
#include "weft/ops/elementwise.h"
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

// log_softmax of the last dimension, against the reference's logarithm.
void check_log(const Tensor& x, const std::string& what) {
  Tensor dy = random_normal(x.shape(), "dy", x.dtype()), y = ops::log_softmax(x);
  Numbers v = values(x), d = values(dy), want, dx;
  const auto width = static_cast<size_t>(x.shape().back());
  for (size_t row = 0; row < v.size(); row += width) {
    double top = -INFINITY, sum = 0, total = 0;
    for (size_t i = 0; i < width; ++i) top = std::max(top, v[row + i]);
    for (size_t i = 0; i < width; ++i) sum += std::exp(v[row + i] - top);
    for (size_t i = 0; i < width; ++i) want.push_back((v[row + i] - top) - std::log(sum)), total += d[row + i];
    for (size_t i = 0; i < width; ++i) dx.push_back(d[row + i] - std::exp(want[row + i]) * total);
  }
  expect_close(y, want, what + " log");
  expect_close(ops::log_softmax_backward(dy, y), dx, what + " dx of log", x.dtype() == kBF16 ? 4e-2 : 0);
}

TEST(LogSoftmax, EqualsReferenceForAllShapesDtypesAndInstructionSets) {
  for_each_isa([] {
    for (DType dtype : {kF32, kBF16, kF64}) {
      for (int64_t width : {1, 2, 7, 8, 16, 31, 64, 67, 130, 257})
        check_log(random_normal({3, 5, width}, "x", dtype), str(dtype, " ", width));
      check_log(fused_heads(2, 5, 3, 16, "x", dtype), "heads");
      check_log(random_normal({16, 7}, "x", dtype).transpose(0, 1), "transposed");
    }
    check_log(Tensor::from<float>({1e4f, -1e4f, 9999, 0}, {1, 4}), "large");
    check_log(Tensor::from<float>({-kInfinity, 1, 2, -kInfinity}, {1, 4}), "masked");
    Tensor none = Tensor::full({1, 9}, -kInfinity);
    for (double y : values(ops::log_softmax(none))) EXPECT_EQ(y, -INFINITY);
  });
}

// Over any dimension: what the rows give when that dimension is moved to the end.
TEST(Softmax, OverAnyDimensionEqualsThatOfItsRows) {
  for_each_isa([] {
    for (DType dtype : {kF32, kBF16, kF64})
      for (Shape shape : {Shape{5, 1}, Shape{7, 3}, Shape{33, 64}, Shape{2, 31, 65}, Shape{2, 3, 130, 1},
                          Shape{4, 1, 7}, Shape{300, 2, 3}, Shape{3, 0, 2}, Shape{0, 3, 2}})
        for (int64_t dim = 0; dim < shape.num_dims(); ++dim) {
          const std::string what = str(shape, " ", dtype, " dim ", dim);
          Tensor x = random_normal(shape, "x", dtype), dy = random_normal(shape, "dy", dtype);
          auto moved = [&](const Tensor& t) { return ops::contiguous(t.transpose(dim, -1)); };
          auto back = [&](const Tensor& t) { return values(t.transpose(dim, -1)); };
          Tensor y = ops::softmax(x, dim), log = ops::log_softmax(x, dim - shape.num_dims()),
                 l = ops::logsumexp(x, dim);
          EXPECT_TRUE(y.is_contiguous() && y.shape() == shape) << what;
          expect_close(y, back(ops::softmax(moved(x))), what);
          expect_close(log, back(ops::log_softmax(moved(x))), what + " log");
          expect_close(ops::softmax_backward(dy, y, dim), back(ops::softmax_backward(moved(dy), moved(y))),
                       what + " dx");
          expect_close(ops::log_softmax_backward(dy, log, dim), back(ops::log_softmax_backward(moved(dy), moved(log))),
                       what + " dx of log", dtype == kBF16 ? 4e-2 : 0);
          Tensor dl = random_normal(l.shape(), "dl", l.dtype()), rows = ops::logsumexp(moved(x));
          EXPECT_EQ(l.num_elements(), rows.num_elements());
          Tensor wide = dl.unsqueeze(dim).transpose(dim, -1).select(-1, 0);
          if (x.num_elements() > 0)
            expect_close(ops::logsumexp_backward(dl, x, l, dim), back(ops::logsumexp_backward(wide, moved(x), rows)),
                         what + " dx of logsumexp");
        }
  });
}

TEST(Softmax, OverColumnsIsSafeAtExtremes) {
  for_each_isa([] {
    const float f = kInfinity, nan = std::numeric_limits<float>::quiet_NaN();
    const Tensor rows =
        Tensor::from<float>({1e4f, -1e4f, 9999, 0, -f, 0, 1, -f, -f, -f, -f, -f, 0, nan, 1, 2, f, 1, 0, -f}, {5, 4});
    const Tensor columns = ops::contiguous(rows.transpose(0, 1));
    for (bool is_log : {false, true}) {
      Tensor want = is_log ? ops::log_softmax(rows) : ops::softmax(rows),
             got = is_log ? ops::log_softmax(columns, 0) : ops::softmax(columns, 0);
      Numbers a = values(got.transpose(0, 1)), b = values(want);
      for (size_t i = 0; i < b.size(); ++i)
        EXPECT_TRUE(std::isnan(b[i]) ? std::isnan(a[i]) : a[i] == b[i] || std::abs(a[i] - b[i]) < 1e-5)
            << i << ": " << a[i] << ", not " << b[i];
    }
    Numbers l = values(ops::logsumexp(columns, 0));
    EXPECT_NEAR(l[0], 1e4 + std::log1p(std::exp(-1)), 1e-3);
    EXPECT_EQ(l[2], -INFINITY);
    EXPECT_TRUE(std::isnan(l[3]));
    EXPECT_EQ(l[4], INFINITY);
    Tensor none = Tensor::full({3, 2}, -f), zero = Tensor::full({2}, -f);
    for (double d : values(ops::logsumexp_backward(Tensor::full({2}, 1), none, zero, 0))) EXPECT_EQ(d, 0);
  });
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
      {[&] { ops::softmax(x, 2); }, {"softmax", "2"}},
      {[&] { ops::log_softmax(Tensor::zeros({2}, kBool)); }, {"log_softmax: x is [2] bool"}},
      {[&] { ops::logsumexp_backward(Tensor::zeros({2}), x, Tensor::zeros({2}), 0); },
       {"logsumexp_backward: dl is [2]", "dim is 0"}},
  });
}

}  // namespace
}  // namespace weft::test
