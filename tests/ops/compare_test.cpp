// Comparisons, logic of bools, choices with numbers, clamp and powers against plain loops: every dtype, views, edges.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "tests/ops/isa.h"
#include "tests/reference/values.h"
#include "tests/support/errors.h"
#include "tests/support/random.h"
#include "weft/ops/elementwise.h"

namespace weft {
namespace {

using reference::make;
using reference::values;
using Numbers = std::vector<double>;

constexpr double kInf = std::numeric_limits<double>::infinity();
const double kNan = std::nan("");
constexpr DType kAll[] = {kF32, kBF16, kF64, kI64, kI32, kU8, kBool};
constexpr DType kFloating[] = {kF32, kBF16, kF64};

struct Row {
  const char* name;
  Tensor (*pair)(const Tensor&, const Tensor&);
  Tensor (*number)(const Tensor&, double);
  bool (*f)(double, double);
};
const Row kRows[] = {
    {"equal", ops::equal, ops::equal, [](double a, double b) { return a == b; }},
    {"not_equal", ops::not_equal, ops::not_equal, [](double a, double b) { return a != b; }},
    {"less", ops::less, ops::less, [](double a, double b) { return a < b; }},
    {"less_equal", ops::less_equal, ops::less_equal, [](double a, double b) { return a <= b; }},
    {"greater", ops::greater, ops::greater, [](double a, double b) { return a > b; }},
    {"greater_equal", ops::greater_equal, ops::greater_equal, [](double a, double b) { return a >= b; }},
};

// Whole numbers with many ties; for floating dtypes also NaN, infinities and both zeros.
Tensor few(const Shape& shape, DType dtype, const char* name) {
  Rng rng = Rng(test::seed())[name];
  const double specials[] = {kNan, kInf, -kInf, -0.0};
  Numbers numbers;
  for (int64_t i = 0; i < shape.num_elements(); ++i) {
    const uint64_t pick = rng.below(12, static_cast<uint64_t>(i));
    if (is_floating(dtype) && pick < 4) numbers.push_back(specials[pick]);
    else if (dtype == kBool) numbers.push_back(static_cast<double>(pick % 2));
    else numbers.push_back(static_cast<double>(pick) - (dtype == kU8 ? 0 : 8));
  }
  return make(shape, numbers, dtype);
}

TEST(Compare, EqualsLoopsOnEveryDtypeAndBroadcast) {
  for (const Row& row : kRows)
    for (DType dtype : kAll)
      for (auto [a, b, shape] : std::vector<std::array<Shape, 3>>{{Shape{}, Shape{}, Shape{}},
                                                                  {Shape{0}, Shape{1}, Shape{0}},
                                                                  {Shape{515}, Shape{515}, Shape{515}},
                                                                  {Shape{67, 13}, Shape{67, 1}, Shape{67, 13}},
                                                                  {Shape{3, 1, 5}, Shape{4, 1}, Shape{3, 4, 5}}}) {
        SCOPED_TRACE(str(row.name, " ", dtype, " ", a, " ", b));
        Tensor x = few(a, dtype, "x"), y = few(b, dtype, "y"), got = row.pair(x, y);
        EXPECT_TRUE(got.dtype() == kBool && got.shape() == shape && got.is_contiguous());
        auto f = [&](double p, double q) { return row.f(p, q) ? 1.0 : 0.0; };
        EXPECT_EQ(values(got), reference::broadcast(x, y, shape, f));
        for (double number : {0.0, 1.0, -3.0, 0.5, 300.0, -kInf, kInf, kNan}) {
          Numbers want = values(x);
          for (double& v : want) v = row.f(v, number) ? 1 : 0;
          EXPECT_EQ(values(row.number(x, number)), want) << number;
        }
      }
}

TEST(Compare, TakesStridedViews) {
  for (const Row& row : kRows)
    for (DType dtype : kAll) {
      SCOPED_TRACE(str(row.name, " ", dtype));
      Tensor a = few({90, 40}, dtype, "a").transpose(0, 1), b = few({40, 181}, dtype, "b").slice(1, 0, 180, 2);
      EXPECT_EQ(values(row.pair(a, b)), values(row.pair(ops::contiguous(a), ops::contiguous(b))));
      EXPECT_EQ(values(row.number(b, 1)), values(row.number(ops::contiguous(b), 1)));
    }
}

TEST(Compare, ANumberIsRoundedToAFloatingDtypeAndExactForAnInteger) {
  for (DType dtype : kFloating) {
    EXPECT_EQ(ops::equal(Tensor::full({1}, 0.1, dtype), 0.1).item(), 1) << to_string(dtype);
    EXPECT_EQ(ops::less(Tensor::full({1}, 0.1, dtype), 0.1).item(), 0) << to_string(dtype);
  }
  EXPECT_EQ(ops::equal(Tensor::full({1}, kInf), 1e300).item(), 0);
  EXPECT_EQ(ops::greater(Tensor::full({1}, kInf), 1e300).item(), 1);
  const int64_t big = (int64_t{1} << 53) + 1, most = std::numeric_limits<int64_t>::max(), least = -most - 1;
  Tensor x = Tensor::from<int64_t>({big, big - 1, most, least}, {4});
  EXPECT_EQ(values(ops::equal(x, 0x1p53)), (Numbers{0, 1, 0, 0}));
  EXPECT_EQ(values(ops::greater(x, 0x1p53)), (Numbers{1, 0, 1, 0}));
  EXPECT_EQ(values(ops::less(x, 0x1p63)), (Numbers{1, 1, 1, 1}));
  EXPECT_EQ(values(ops::less_equal(x, -0x1p63)), (Numbers{0, 0, 0, 1}));
  EXPECT_EQ(values(ops::less(x, -1e30)), (Numbers{0, 0, 0, 0}));
  EXPECT_EQ(values(ops::less(Tensor::from<int64_t>({2, 3, -2, -3}, {4}), 2.5)), (Numbers{1, 0, 1, 1}));
  EXPECT_EQ(values(ops::greater_equal(Tensor::from<int64_t>({-2, -3}, {2}), -2.5)), (Numbers{1, 0}));
  EXPECT_EQ(values(ops::less(Tensor::from<uint8_t>({255}, {1}), 300)), (Numbers{1}));
}

TEST(Compare, LogicOfBools) {
  Tensor a = Tensor::from({false, false, true, true}, {4}), b = Tensor::from({false, true, false, true}, {4});
  EXPECT_EQ(values(ops::logical_and(a, b)), (Numbers{0, 0, 0, 1}));
  EXPECT_EQ(values(ops::logical_or(a, b)), (Numbers{0, 1, 1, 1}));
  EXPECT_EQ(values(ops::logical_xor(a, b)), (Numbers{0, 1, 1, 0}));
  EXPECT_EQ(values(ops::logical_not(a)), (Numbers{1, 1, 0, 0}));
  EXPECT_EQ(ops::logical_or(a.reshape({4, 1}), b).shape(), Shape({4, 4}));
}

TEST(Compare, WhereTakesNumbersOnEitherSide) {
  Tensor mask = Tensor::from({true, false, true}, {3});
  for (DType dtype : kAll) {
    Tensor x = make({3}, {1, 1, 0}, dtype);
    EXPECT_EQ(values(ops::where(mask, x, 0)), (Numbers{1, 0, 0})) << to_string(dtype);
    EXPECT_EQ(values(ops::where(mask, 0, x)), (Numbers{0, 1, 0})) << to_string(dtype);
  }
  EXPECT_EQ(values(ops::where(mask, -kInf, make({2, 1}, {5, 6}, kBF16))), (Numbers{-kInf, 5, -kInf, -kInf, 6, -kInf}));
  EXPECT_EQ(ops::where(mask, Tensor::from<int64_t>({0}, {1}), 0x1p62).to_vector<int64_t>()[1], int64_t{1} << 62);
  EXPECT_EQ(ops::where(Tensor::zeros({0}, kBool), Tensor::zeros({1}), 3).shape(), Shape({0}));
}

TEST(Clamp, EqualsLoopsAndKeepsNan) {
  test::for_each_isa([] {
    for (DType dtype : kFloating) {
      Tensor x = test::random_normal({37, 70}, "x", dtype).transpose(0, 1);
      for (auto [low, high] : {std::pair{-0.5, 0.75}, {-kInf, 0.25}, {0.0, kInf}, {-kInf, kInf}, {0.5, 0.5}}) {
        Numbers want = values(x);
        for (double& v : want) v = std::min(std::max(v, low), high);
        EXPECT_EQ(values(ops::clamp(x, low, high)), want) << to_string(dtype) << " " << low << " " << high;
      }
      Numbers y = values(ops::clamp(make({3}, {kNan, kInf, -kInf}, dtype), -1, 2));
      EXPECT_TRUE(std::isnan(y[0]));
      EXPECT_EQ((Numbers{y[1], y[2]}), (Numbers{2, -1}));
      EXPECT_EQ(ops::clamp(Tensor::zeros({0, 3}, dtype), 0, 1).shape(), Shape({0, 3}));
      // The gradient passes between the bounds and on them; an infinite one is not multiplied by 0.
      Tensor dx = ops::clamp_backward(make({6}, {1, 2, 3, kInf, 5, 6}, dtype),
                                      make({6}, {-1, 2, 0, 3, -2, kNan}, dtype), -1, 2);
      y = values(dx);
      EXPECT_TRUE(std::isnan(y[5]));
      y.pop_back();
      EXPECT_EQ(y, (Numbers{1, 2, 3, 0, 0}));
    }
  });
  for (DType dtype : {kI64, kI32, kU8}) {
    EXPECT_EQ(values(ops::clamp(make({4}, {0, 1, 5, 9}, dtype), 1, 5)), (Numbers{1, 1, 5, 5}));
    EXPECT_EQ(values(ops::clamp(make({3}, {0, 1, 5}, dtype), -kInf, 1)), (Numbers{0, 1, 1}));
  }
}

TEST(Pow, EqualsLibmForNumbersAndTensors) {
  test::for_each_isa([] {
    for (DType dtype : kFloating) {
      const double error = dtype == kF64 ? 1e-14 : reference::epsilon(dtype) * 1.01 + (dtype == kF32 ? 0 : 1e-7);
      auto near = [&](const Tensor& got, const Numbers& want) {
        Numbers g = values(got);
        ASSERT_EQ(g.size(), want.size());
        for (size_t i = 0; i < g.size(); ++i) {
          if (g[i] == want[i] || (std::isnan(g[i]) && std::isnan(want[i]))) continue;
          ASSERT_LE(std::abs(g[i] - want[i]), error * std::abs(want[i])) << to_string(dtype) << " at " << i;
        }
      };
      Tensor x = ops::add_scalar(ops::abs(test::random_normal({5, 131}, "x", dtype)), 0.1);
      for (double exponent : {-2.5, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 12.5}) {
        Numbers want = values(x);
        for (double& v : want) v = std::pow(v, exponent);
        near(ops::pow(x, exponent), want);
      }
      Tensor b = test::random_normal({131}, "b", dtype);
      near(ops::pow(x, b), reference::broadcast(x, b, {5, 131}, [](double p, double q) { return std::pow(p, q); }));
      Tensor odd = make({7}, {0, -0.0, -2, kInf, -kInf, kNan, -8}, dtype);
      for (double exponent : {0.0, 1.0, 2.0, 3.0, 0.5, -1.0, -2.0, 1.5}) {
        Numbers want = values(odd);
        for (double& v : want) v = std::pow(v, exponent);
        near(ops::pow(odd, exponent), want);
      }
      EXPECT_EQ(ops::pow(Tensor::zeros({0, 2}, dtype), 2).shape(), Shape({0, 2}));
    }
  });
}

// The slopes of x^n at zero, for negative numbers and NaN are those of PyTorch.
TEST(Pow, GradientsAtZeroAndOfNegativeNumbers) {
  test::for_each_isa([] {
    for (DType dtype : kFloating) {
      auto slope = [&](double x, double exponent) {
        return ops::pow_backward(Tensor::full({}, 1, dtype), Tensor::full({}, x, dtype), exponent).item();
      };
      EXPECT_EQ(slope(0, 0), 0);
      EXPECT_EQ(slope(0, 1), 1);
      EXPECT_EQ(slope(0, 2), 0);
      EXPECT_EQ(slope(0, 0.5), kInf);
      EXPECT_EQ(slope(0, -1), -kInf);
      EXPECT_EQ(slope(-2, 2), -4);
      EXPECT_EQ(slope(-2, 3), 12);
      EXPECT_EQ(slope(-2, -1), -0.25);
      EXPECT_TRUE(std::isnan(slope(-2, 1.5)));
      EXPECT_EQ(slope(kNan, 0), 0);
      EXPECT_EQ(slope(kNan, 1), 1);
      EXPECT_TRUE(std::isnan(slope(kNan, 2)));
      auto slopes = [&](double a, double b) {
        auto [da, db] =
            ops::pow_backward(Tensor::full({1}, 1, dtype), Tensor::full({1}, a, dtype), Tensor::full({1}, b, dtype));
        return std::pair(da.item(), db.item());
      };
      EXPECT_EQ(slopes(0, 0), std::pair(0.0, 0.0));
      EXPECT_EQ(slopes(0, 2), std::pair(0.0, 0.0));
      EXPECT_EQ(slopes(0, -1), std::pair(-kInf, -kInf));
      EXPECT_EQ(slopes(-2, 0).first, 0);
      EXPECT_EQ(slopes(-2, 3).first, 12);
      EXPECT_TRUE(std::isnan(slopes(-2, 3).second));
      EXPECT_EQ(slopes(1, 5), std::pair(5.0, 0.0));
    }
  });
}

TEST(Compare, ErrorsSayWhatAndHowToFix) {
  Tensor f = Tensor::zeros({2, 3}), b = Tensor::zeros({2, 3}, kBF16), i = Tensor::zeros({2, 3}, kI32),
         u = Tensor::zeros({2}, kU8), mask = Tensor::zeros({2, 3}, kBool);
  auto error = [](const std::function<void()>& call, std::initializer_list<std::string_view> parts) {
    EXPECT_EQ("", test::error_of(call, parts));
  };
  error([&] { ops::less(f, b); }, {"less: a is [2, 3] f32 cpu, b is [2, 3] bf16 cpu", "cast"});
  error([&] { ops::greater(f, Tensor::zeros({2})); }, {"greater", "[2, 3]", "[2]"});
  error([&] { ops::equal(Tensor(), 1); }, {"equal: x is undefined"});
  error([&] { ops::logical_and(mask, f); }, {"logical_and: an input is [2, 3] f32 cpu", "not_equal(x, 0)"});
  error([&] { ops::logical_not(i); }, {"logical_not: an input is [2, 3] i32 cpu"});
  error([&] { ops::where(mask, i, 2.5); }, {"where: the number 2.5 is no i32, x is [2, 3] i32 cpu", "cast x"});
  error([&] { ops::where(mask, 1e300, f); }, {"where: the number 1e+300 is no f32"});
  error([&] { ops::where(f, f, 0); }, {"where: mask is [2, 3] f32 cpu", "bool"});
  error([&] { ops::where(mask, Tensor(), 0); }, {"where: x is undefined"});
  error([&] { ops::clamp(f, 1, 0); }, {"clamp: low is 1, high is 0", "infinity"});
  error([&] { ops::clamp(f, kNan, 0); }, {"clamp: low is nan"});
  error([&] { ops::clamp(u, 0, 300); }, {"clamp: the number 300 is no u8"});
  error([&] { ops::clamp(mask, 0, 1); }, {"clamp: a is [2, 3] bool cpu", "cast"});
  error([&] { ops::clamp_backward(f, Tensor::zeros({3}), 0, 1); }, {"clamp_backward: dy is [2, 3] f32 cpu, x is [3]"});
  error([&] { ops::pow(i, 2); }, {"pow: x is [2, 3] i32 cpu", "f32, bf16 or f64"});
  error([&] { ops::pow(f, b); }, {"pow: a is [2, 3] f32 cpu, b is [2, 3] bf16 cpu"});
  error([&] { ops::squared_error(f, Tensor::zeros({3})); }, {"squared_error: x is [2, 3] f32 cpu, the target is [3]"});
  error([&] { ops::bce_with_logits(f, b); }, {"bce_with_logits: logits is [2, 3] f32 cpu, the target is [2, 3] bf16"});
}

}  // namespace
}  // namespace weft
