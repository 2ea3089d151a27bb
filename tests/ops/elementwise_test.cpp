// Elementwise ops against float64 loops: a row per op, on every dtype, shape edge, stride pattern and instruction set.
#include "weft/ops/elementwise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/ops/isa.h"
#include "tests/reference/values.h"
#include "tests/support/errors.h"
#include "tests/support/random.h"

namespace weft {
namespace {

using reference::make;
using reference::values;

constexpr double kInf = std::numeric_limits<double>::infinity();
const double kNan = std::nan("");

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }
double cdf(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }
double gelu_tanh(double x) { return x * sigmoid(2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)); }
Tensor softcap2(const Tensor& x) { return ops::softcap(x, 2); }
Tensor softcap2_backward(const Tensor& dy, const Tensor& y) { return ops::softcap_backward(dy, y, 2); }

template <int twice>
Tensor power(const Tensor& x) {
  return ops::pow(x, twice / 2.0);
}
template <int twice>
Tensor power_backward(const Tensor& dy, const Tensor& x) {
  return ops::pow_backward(dy, x, twice / 2.0);
}

enum class Keeps { x, y };

// `ulp` bounds the relative error of f32 in units of 2^-23 over [low, high]. at_low and at_high are the values at -inf and inf.
struct Row {
  const char* name;
  Tensor (*op)(const Tensor&);
  Tensor (*backward)(const Tensor&, const Tensor&);
  Keeps keeps;
  double (*f)(double);
  double low, high, ulp, at_low, at_high;
};

const Row kRows[] = {
    {"neg", ops::neg, nullptr, Keeps::x, [](double x) { return -x; }, -9, 9, 0.5, kInf, -kInf},
    {"abs", ops::abs, ops::abs_backward, Keeps::x, [](double x) { return std::abs(x); }, -9, 9, 0.5, kInf, kInf},
    {"square", ops::square, ops::square_backward, Keeps::x, [](double x) { return x * x; }, -9, 9, 0.5, kInf, kInf},
    {"sqrt", ops::sqrt, ops::sqrt_backward, Keeps::y, [](double x) { return std::sqrt(x); }, 0.01, 9, 0.5, kNan, kInf},
    {"rsqrt", ops::rsqrt, ops::rsqrt_backward, Keeps::y, [](double x) { return 1 / std::sqrt(x); }, 0.01, 9, 1, kNan,
     0},
    {"exp", ops::exp, ops::exp_backward, Keeps::y, [](double x) { return std::exp(x); }, -87, 88, 1, 0, kInf},
    {"log", ops::log, ops::log_backward, Keeps::x, [](double x) { return std::log(x); }, 0.02, 9, 1, kNan, kInf},
    {"sin", ops::sin, ops::sin_backward, Keeps::x, [](double x) { return std::sin(x); }, -50, 50, 1.5, kNan, kNan},
    {"cos", ops::cos, ops::cos_backward, Keeps::x, [](double x) { return std::cos(x); }, -50, 50, 1.5, kNan, kNan},
    {"tanh", ops::tanh, ops::tanh_backward, Keeps::y, [](double x) { return std::tanh(x); }, -5, 5, 1.5, -1, 1},
    {"sigmoid", ops::sigmoid, ops::sigmoid_backward, Keeps::y, sigmoid, -80, 10, 2, 0, 1},
    {"log_sigmoid", ops::log_sigmoid, ops::log_sigmoid_backward, Keeps::x, [](double x) { return -softplus(-x); }, -9,
     80, 2, -kInf, 0},
    {"softplus", ops::softplus, ops::softplus_backward, Keeps::x, softplus, -80, 9, 2, 0, kInf},
    {"relu", ops::relu, ops::relu_backward, Keeps::y, [](double x) { return std::max(x, 0.0); }, -9, 9, 0.5, 0, kInf},
    {"elu", ops::elu, ops::elu_backward, Keeps::y, [](double x) { return x > 0 ? x : std::expm1(x); }, -9, 9, 1, -1,
     kInf},
    {"silu", ops::silu, ops::silu_backward, Keeps::x, [](double x) { return x * sigmoid(x); }, -80, 9, 2, 0, kInf},
    {"gelu", ops::gelu, ops::gelu_backward, Keeps::x, [](double x) { return x * cdf(x); }, -5, 9, 8, 0, kInf},
    {"gelu_tanh", ops::gelu_tanh, ops::gelu_tanh_backward, Keeps::x, gelu_tanh, -5, 9, 24, 0, kInf},
    {"softcap", softcap2, softcap2_backward, Keeps::y, [](double x) { return 2 * std::tanh(x / 2); }, -9, 9, 1.5, -2,
     2},
    {"pow_3", power<6>, power_backward<6>, Keeps::x, [](double x) { return x * x * x; }, -9, 9, 0.5, -kInf, kInf},
    {"pow_-1.5", power<-3>, power_backward<-3>, Keeps::x, [](double x) { return std::pow(x, -1.5); }, 0.5, 9, 0.5, 0,
     0},
};

Tensor uniform(const Shape& shape, const char* name, double low, double high, DType dtype) {
  Rng rng = Rng(test::seed())[name];
  std::vector<double> numbers;
  for (int64_t i = 0; i < shape.num_elements(); ++i) {
    double x = low + (high - low) * static_cast<double>(rng.uniform(static_cast<uint64_t>(i)));
    numbers.push_back(std::abs(x) < 0.01 ? x + 0.02 : x);  // off the kinks at 0
  }
  return make(shape, numbers, dtype);
}

// Views with the strides that kernels meet: row-major, transposed, every second column, a middle dimension cut.
std::vector<Tensor> views(const char* name, double low, double high, DType dtype) {
  std::vector<Tensor> out;
  for (Shape shape : {Shape{}, Shape{0}, Shape{1}, Shape{7}, Shape{8}, Shape{33}, Shape{3, 0, 2}, Shape{13, 77}})
    out.push_back(uniform(shape, name, low, high, dtype));
  out.push_back(uniform({37, 70}, name, low, high, dtype).transpose(0, 1));
  out.push_back(uniform({5, 301}, name, low, high, dtype).slice(1, 1, 300, 2));
  out.push_back(uniform({3, 9, 130}, name, low, high, dtype).slice(1, 2, 5));
  out.push_back(uniform({4, 5, 3}, name, low, high, dtype).permute({2, 0, 1}));
  out.push_back(uniform({1, 600}, name, low, high, dtype).expand({3, 600}));
  return out;
}

void expect_close(const Tensor& got, const std::vector<double>& want, double relative, double absolute) {
  std::vector<double> g = values(got);
  ASSERT_EQ(g.size(), want.size());
  for (size_t i = 0; i < g.size(); ++i) {
    if (g[i] == want[i] || (std::isnan(g[i]) && std::isnan(want[i]))) continue;
    ASSERT_LE(std::abs(g[i] - want[i]), relative * std::abs(want[i]) + absolute)
        << "at " << i << ": " << g[i] << ", not " << want[i];
  }
}

constexpr DType kFloating[] = {kF32, kBF16, kF64};

TEST(Elementwise, UnaryOpsEqualFloat64Loops) {
  test::for_each_isa([] {
    for (const Row& row : kRows)
      for (DType dtype : kFloating) {
        SCOPED_TRACE(str(row.name, " ", dtype));
        double error = dtype == kF64 ? 1e-13 : row.ulp * 0x1p-23 + (dtype == kBF16 ? 0x1p-8 : 0);
        for (const Tensor& x : views(row.name, row.low, row.high, dtype)) {
          Tensor y = row.op(x);
          EXPECT_TRUE(y.is_contiguous() && y.shape() == x.shape() && y.dtype() == dtype);
          std::vector<double> want = values(x);
          for (double& v : want) v = row.f(v);
          expect_close(y, want, error, 1e-37);
        }
      }
  });
}

TEST(Elementwise, BackwardsEqualFloat64Derivatives) {
  test::for_each_isa([] {
    for (const Row& row : kRows)
      for (DType dtype : kFloating) {
        if (!row.backward) continue;
        SCOPED_TRACE(str(row.name, "_backward ", dtype));
        double error = dtype == kF64 ? 1e-7 : dtype == kF32 ? 4e-6 : 0x1p-6;  // bf16: y is rounded too
        double low = std::max(row.low, -6.0), high = std::min(row.high, 4.0);
        for (const Tensor& x : views(row.name, low, high, dtype)) {
          Tensor dy = test::random_normal(x.shape(), "dy", dtype);
          Tensor dx = row.backward(dy, row.keeps == Keeps::x ? x : row.op(x));
          std::vector<double> at = values(x), want = values(dy);
          constexpr double h = 1e-6;
          double largest = 0;
          for (double v : want) largest = std::max(largest, std::abs(v));
          for (size_t i = 0; i < want.size(); ++i) want[i] *= (row.f(at[i] + h) - row.f(at[i] - h)) / (2 * h);
          expect_close(dx, want, error, error * largest);
        }
      }
  });
}

TEST(Elementwise, InfinitiesGiveLimitsAndNanStaysNan) {
  test::for_each_isa([] {
    for (const Row& row : kRows)
      for (DType dtype : kFloating) {
        SCOPED_TRACE(str(row.name, " ", dtype));
        std::vector<double> y = values(row.op(make({3}, {-kInf, kInf, kNan}, dtype)));
        auto same = [](double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); };
        EXPECT_PRED2(same, y[0], row.at_low);
        EXPECT_PRED2(same, y[1], row.at_high);
        EXPECT_TRUE(std::isnan(y[2]));
        if (!row.backward) continue;
        Tensor kept = make({1}, {kNan}, dtype);
        EXPECT_TRUE(std::isnan(row.backward(make({1}, {1.0}, dtype), kept).item()));
      }
    for (auto backward : {ops::silu_backward, ops::gelu_backward, ops::gelu_tanh_backward, ops::softplus_backward})
      EXPECT_EQ(values(backward(make({2}, {1, 1}), make({2}, {-kInf, kInf}))), (std::vector<double>{0, 1}));
    EXPECT_EQ(values(ops::softplus(make({2}, {1000, -1000}))), (std::vector<double>{1000, 0}));
    EXPECT_EQ(values(ops::exp(make({3}, {-104, 89, 88.5}))),
              (std::vector<double>{0, kInf, static_cast<float>(std::exp(88.5))}));
    EXPECT_NEAR(ops::exp(make({}, {-95})).item() / std::exp(-95.0), 1, 1e-3);  // gradual underflow
    EXPECT_EQ(values(ops::log(make({2}, {0, -1})))[0], -kInf);
    EXPECT_NEAR(ops::log(make({}, {1e-41})).item(), std::log(static_cast<double>(1e-41f)), 1e-5);
  });
}

TEST(Elementwise, LargeAnglesKeepTheirAccuracy) {
  test::for_each_isa([] {
    Tensor x = uniform({2000}, "angles", -1e6, 1e6, kF32);
    std::vector<double> sines = values(x), cosines = sines;
    for (double& v : sines) v = std::sin(v);
    for (double& v : cosines) v = std::cos(v);
    expect_close(ops::sin(x), sines, 1.5 * 0x1p-23, 0);
    expect_close(ops::cos(x), cosines, 1.5 * 0x1p-23, 0);
    EXPECT_EQ(ops::sin(make({}, {3e10})).item(), static_cast<float>(std::sin(static_cast<double>(3e10f))));
  });
}

struct PairRow {
  const char* name;
  Tensor (*op)(const Tensor&, const Tensor&);
  double (*f)(double, double);
  bool on_integers, on_bool;
};

const PairRow kPairRows[] = {
    {"add", ops::add, [](double a, double b) { return a + b; }, true, false},
    {"sub", ops::sub, [](double a, double b) { return a - b; }, true, false},
    {"mul", ops::mul, [](double a, double b) { return a * b; }, true, true},
    {"div", ops::div, [](double a, double b) { return a / b; }, false, false},
    {"maximum", ops::maximum, [](double a, double b) { return std::max(a, b); }, true, true},
    {"minimum", ops::minimum, [](double a, double b) { return std::min(a, b); }, true, true},
};

// Shapes that broadcast in every way the loop distinguishes.
struct PairShapes {
  Shape a, b, y;
};
const PairShapes kPairShapes[] = {
    {{}, {}, {}},
    {{5}, {5}, {5}},
    {{0}, {1}, {0}},
    {{67, 131}, {67, 131}, {67, 131}},
    {{67, 131}, {}, {67, 131}},
    {{1}, {67, 131}, {67, 131}},  // a number
    {{67, 131}, {131}, {67, 131}},
    {{67, 13}, {13}, {67, 13}},  // a row, long and short
    {{67, 131}, {67, 1}, {67, 131}},
    {{67, 1}, {67, 3}, {67, 3}},  // a column
    {{67, 1}, {1, 131}, {67, 131}},
    {{2, 1, 5, 1}, {3, 1, 7}, {2, 3, 5, 7}},  // both
    {{4, 3, 5, 2}, {4, 1, 5, 1}, {4, 3, 5, 2}},
    {{1, 700}, {3, 700}, {3, 700}},
    {{2, 0, 3}, {1, 3}, {2, 0, 3}},
    {{300, 150}, {1, 150}, {300, 150}},  // more than one thread's grain
};

TEST(Elementwise, BinaryOpsBroadcastOnEveryDtype) {
  test::for_each_isa([] {
    for (const PairRow& row : kPairRows)
      for (DType dtype : {kF32, kBF16, kF64, kI64, kI32, kU8, kBool})
        for (const PairShapes& shapes : kPairShapes) {
          if ((dtype == kBool && !row.on_bool) || (!is_floating(dtype) && !row.on_integers)) continue;
          SCOPED_TRACE(str(row.name, " ", dtype, " ", shapes.a, " ", shapes.b));
          double high = dtype == kU8 ? 15 : dtype == kBool ? 1.5 : 9, low = dtype == kU8 ? 9 : dtype == kBool ? 0 : -9;
          Tensor a = uniform(shapes.a, "a", low, high, dtype);
          Tensor b = uniform(shapes.b, "b", low, dtype == kU8 ? 9 : high, dtype);
          Tensor y = row.op(a, b);
          EXPECT_TRUE(y.is_contiguous() && y.shape() == shapes.y && y.dtype() == dtype);
          expect_close(y, reference::broadcast(a, b, shapes.y, row.f), reference::epsilon(dtype) * 1.001, 0);
        }
  });
}

TEST(Elementwise, BinaryOpsTakeStridedViews) {
  test::for_each_isa([] {
    for (const PairRow& row : kPairRows)
      for (DType dtype : kFloating) {
        SCOPED_TRACE(str(row.name, " ", dtype));
        Tensor a = uniform({90, 40}, "a", -9, 9, dtype).transpose(0, 1),
               b = uniform({40, 181}, "b", -9, 9, dtype).slice(1, 0, 180, 2);
        expect_close(row.op(a, b), reference::broadcast(a, b, {40, 90}, row.f), reference::epsilon(dtype) * 1.001, 0);
        Tensor c = uniform({3, 4, 5}, "c", -9, 9, dtype).permute({1, 2, 0}),
               d = uniform({9, 3}, "d", -9, 9, dtype).slice(0, 2, 7);
        expect_close(row.op(c, d), reference::broadcast(c, d, {4, 5, 3}, row.f), reference::epsilon(dtype) * 1.001, 0);
      }
  });
}

TEST(Elementwise, MaximumAndMinimumPassNanOn) {
  test::for_each_isa([] {
    Tensor a = make({3}, {kNan, 1, kNan}), b = make({3}, {1, kNan, kNan});
    for (auto op : {ops::maximum, ops::minimum})
      for (double y : values(op(a, b))) EXPECT_TRUE(std::isnan(y));
    EXPECT_EQ(values(ops::maximum(make({2}, {-kInf, 3}), make({2}, {2, kInf}))), (std::vector<double>{2, kInf}));
  });
}

TEST(Elementwise, IntegersWrapAround) {
  Tensor big = Tensor::from({std::numeric_limits<int64_t>::max()}, {1}), one = Tensor::from({int64_t{1}}, {1});
  EXPECT_EQ(ops::add(big, one).to_vector<int64_t>()[0], std::numeric_limits<int64_t>::min());
  EXPECT_EQ(ops::mul(Tensor::from({int32_t{1} << 30}, {1}), Tensor::from({int32_t{4}}, {1})).to_vector<int32_t>()[0],
            0);
}

TEST(Elementwise, WhereSelectsOnEveryDtype) {
  Tensor mask = Tensor::from({true, false, false, true, false, true}, {2, 3});
  for (DType dtype : {kF32, kBF16, kF64, kI64, kI32, kU8, kBool}) {
    Tensor a = make({2, 1}, {1, 0}, dtype), b = make({3}, {0, 1, 1}, dtype);
    EXPECT_EQ(values(ops::where(mask, a, b)), (std::vector<double>{1, 1, 1, 0, 1, 0})) << to_string(dtype);
    EXPECT_EQ(values(ops::where(mask.transpose(0, 1), b.reshape({3, 1}), a.reshape({2}))),
              (std::vector<double>{0, 0, 1, 0, 1, 1}));
  }
}

TEST(Elementwise, ScaleAndAddScalar) {
  test::for_each_isa([] {
    for (DType dtype : kFloating)
      for (const Tensor& x : views("scale", -9, 9, dtype)) {
        std::vector<double> scaled = values(x), moved = scaled;
        for (double& v : scaled) v *= 0.75;
        for (double& v : moved) v += 0.75;
        expect_close(ops::scale(x, 0.75), scaled, reference::epsilon(dtype) * 1.001, 0);
        expect_close(ops::add_scalar(x, 0.75), moved, reference::epsilon(dtype) * 1.001, 0);
      }
  });
}

TEST(Elementwise, SwigluAndItsGradients) {
  test::for_each_isa([] {
    for (DType dtype : kFloating)
      for (Shape shape : {Shape{}, Shape{0}, Shape{19}, Shape{6, 130}}) {
        Tensor gate = uniform(shape, "gate", -9, 9, dtype), up = uniform(shape, "up", -9, 9, dtype);
        Tensor dy = uniform(shape, "dy", -2, 2, dtype);
        std::vector<double> g = values(gate), u = values(up), d = values(dy), y, dgate, dup;
        for (size_t i = 0; i < g.size(); ++i) {
          double s = sigmoid(g[i]);
          y.push_back(g[i] * s * u[i]);
          dup.push_back(d[i] * g[i] * s);
          dgate.push_back(d[i] * u[i] * s * (1 + g[i] * (1 - s)));
        }
        double error = dtype == kF64 ? 1e-14 : 3e-7 + (dtype == kBF16 ? 0x1p-8 : 0);
        expect_close(ops::swiglu(gate, up), y, error, 0);
        auto [got_gate, got_up] = ops::swiglu_backward(dy, gate, up);
        expect_close(got_gate, dgate, error, 20 * (error - (dtype == kBF16 ? 0x1p-8 : 0)));
        expect_close(got_up, dup, error, 0);
      }
    EXPECT_EQ(ops::swiglu(make({}, {-kInf}), make({}, {2})).item(), 0);
  });
}

// The value of an element must not depend on where it stands: alignment, tail or the thread that computes it.
TEST(Elementwise, ValuesDoNotDependOnPlacement) {
  test::for_each_isa([] {
    Tensor x = uniform({100003}, "place", -5, 5, kF32), whole = ops::gelu(x);
    for (int64_t begin : {1, 3, 17, 33000, 99999}) {
      Tensor part = ops::gelu(x.slice(0, begin, 100003));
      EXPECT_EQ(part.to_vector<float>(), whole.slice(0, begin, 100003).to_vector<float>());
    }
  });
}

TEST(Elementwise, ErrorsSayWhatAndHowToFix) {
  Tensor f = Tensor::zeros({2, 3}), b = Tensor::zeros({2, 3}, kBF16), i = Tensor::zeros({2, 3}, kI64);
  Tensor mask = Tensor::zeros({2, 3}, kBool);
  EXPECT_EQ("", test::error_of([&] { ops::add(f, b); }, {"add: a is [2, 3] f32 cpu, b is [2, 3] bf16 cpu", "cast"}));
  EXPECT_EQ("", test::error_of([&] { ops::mul(f, Tensor::zeros({2})); }, {"mul", "[2, 3]", "[2]"}));
  EXPECT_EQ("", test::error_of([&] { ops::add(mask, mask); }, {"add: a is [2, 3] bool cpu", "cast"}));
  EXPECT_EQ("", test::error_of([&] { ops::div(i, i); }, {"div: x is [2, 3] i64 cpu", "f32, bf16 or f64"}));
  EXPECT_EQ("", test::error_of([&] { ops::exp(i); }, {"exp: x is [2, 3] i64 cpu", "f32, bf16 or f64"}));
  EXPECT_EQ("", test::error_of([&] { ops::exp(Tensor()); }, {"exp: x is undefined"}));
  EXPECT_EQ("", test::error_of([&] { ops::add(f, Tensor()); }, {"add: a is [2, 3] f32 cpu, b is undefined"}));
  EXPECT_EQ("", test::error_of([&] { ops::where(f, f, f); }, {"where: mask is [2, 3] f32 cpu", "bool"}));
  EXPECT_EQ("", test::error_of([&] { ops::softcap(f, 0); }, {"softcap: cap is 0", "leave softcap out"}));
  EXPECT_EQ("", test::error_of([&] { ops::gelu_backward(f, Tensor::zeros({3})); },
                               {"gelu_backward: dy is [2, 3] f32 cpu", "[3] f32 cpu"}));
  EXPECT_EQ("", test::error_of([&] { ops::swiglu(f, Tensor::zeros({3})); }, {"swiglu: gate is [2, 3]", "up is [3]"}));
  EXPECT_EQ("", test::error_of([&] { ops::swiglu_backward(f, f, b); },
                               {"swiglu_backward: dy is [2, 3] f32", "up is [2, 3] bf16"}));
  EXPECT_EQ("", test::error_of([&] { ops::sum_to(f, {4, 3}); }, {"sum_to: x is [2, 3] f32 cpu, shape is [4, 3]"}));
}

}  // namespace
}  // namespace weft
