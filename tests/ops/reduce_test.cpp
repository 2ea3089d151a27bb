// Reductions against float64 loops.
#include "weft/ops/reduce.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/ops/isa.h"
#include "tests/reference/values.h"
#include "tests/support/errors.h"
#include "tests/support/random.h"
#include "weft/core/parallel.h"
#include "weft/ops/elementwise.h"

namespace weft {
namespace {

using reference::make;
using reference::values;

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr DType kFloating[] = {kF32, kBF16, kF64};

// Sums, sums of sizes |x| and maxima over the dimensions in `dims`, in float64, and how many elements each has.
struct Reduced {
  std::vector<double> sum, size, max;
  double count = 1;
};
Reduced reduce(const Tensor& x, std::span<const int> dims) {
  Reduced r;
  unsigned bits = 0;
  int64_t n = 1;
  for (int d : dims) bits |= 1u << (d < 0 ? d + x.num_dims() : d);
  for (int d = 0; d < x.num_dims(); ++d)
    (bits >> d & 1u) ? void(r.count *= static_cast<double>(x.shape()[d])) : void(n *= x.shape()[d]);
  r.sum.resize(static_cast<size_t>(n));
  r.size = r.sum;
  r.max.assign(static_cast<size_t>(n), -kInf);
  std::vector<double> v = values(x);
  for (size_t flat = 0; flat < v.size(); ++flat) {
    size_t rest = flat, at = 0, stride = 1;
    for (int d = x.num_dims() - 1; d >= 0; --d) {
      auto size = static_cast<size_t>(x.shape()[d]);
      if (!(bits >> d & 1u)) {
        at += rest % size * stride;
        stride *= size;
      }
      rest /= size;
    }
    r.sum[at] += v[flat];
    r.size[at] += std::abs(v[flat]);
    r.max[at] = std::max(r.max[at], v[flat]);
  }
  return r;
}

// Error of a sum: a few roundings of the sum of sizes, and one of the result.
void expect_sums(const Tensor& got, const Reduced& want, double factor) {
  std::vector<double> g = values(got);
  ASSERT_EQ(g.size(), want.sum.size());
  double lane = got.dtype() == kF64 ? 0x1p-53 : 0x1p-24;
  for (size_t i = 0; i < g.size(); ++i)
    ASSERT_NEAR(
        g[i], want.sum[i] * factor,
        8 * lane * want.size[i] * factor + 1.01 * reference::epsilon(got.dtype()) * std::abs(want.sum[i] * factor))
        << "at " << i;
}

struct Case {
  Shape shape;
  std::vector<int> dims;
};
const Case kCases[] = {
    {{}, {}},
    {{1}, {0}},
    {{5}, {0}},
    {{1023}, {0}},
    {{1025}, {0}},
    {{40003}, {0}},
    {{3, 70}, {1}},
    {{3, 5000}, {1}},
    {{3, 70}, {0}},
    {{127, 7}, {0}},
    {{128, 8}, {0}},
    {{129, 9}, {0}},
    {{300, 1030}, {0}},
    {{2, 300, 17}, {1}},
    {{4, 5, 6}, {0, 1}},
    {{4, 5, 6}, {1, 2}},
    {{4, 5, 6}, {0, 2}},
    {{4, 5, 6}, {-1, -3}},
    {{4, 5, 6}, {0, 1, 2}},
    {{4, 5, 6}, {}},
    {{3, 1, 4, 1, 5}, {0, 2, 4}},
    {{3, 1, 4, 1, 5}, {1}},
    {{2, 3, 2, 3, 2, 3}, {1, 3, 5}},
    {{7, 1}, {0}},
    {{1, 7}, {0}},
};

TEST(Reduce, SumsAndMeansEqualFloat64Loops) {
  test::for_each_isa([] {
    for (DType dtype : kFloating)
      for (const Case& c : kCases) {
        SCOPED_TRACE(str(c.shape, " ", dtype, " over ", c.dims.size()));
        Tensor x = test::random_normal(c.shape, "x", dtype);
        Reduced want = reduce(x, c.dims);
        expect_sums(ops::sum(x, c.dims), want, 1);
        expect_sums(ops::mean(x, c.dims), want, 1 / want.count);
        Tensor kept = ops::sum(x, c.dims, true);
        EXPECT_EQ(kept.num_dims(), x.num_dims());
        expect_sums(kept, want, 1);
      }
  });
}

TEST(Reduce, TakesStridedViews) {
  test::for_each_isa([] {
    for (DType dtype : kFloating) {
      Tensor x = test::random_normal({6, 50, 40}, "x", dtype);
      for (const Tensor& view : {x.transpose(1, 2), x.permute({2, 0, 1}), x.slice(2, 3, 20), x.slice(2, 0, 40, 2),
                                 x.slice(1, 9, 11), x.select(2, 1).unsqueeze(1), x.slice(0, 2, 3).expand({4, 50, 40})})
        for (int dim : {0, 1, 2}) {
          int dims[] = {dim};
          Reduced want = reduce(view, dims);
          expect_sums(ops::sum(view, dim), want, 1);
          EXPECT_EQ(values(ops::max(view, dim)), want.max);
        }
    }
  });
}

TEST(Reduce, EmptyTensors) {
  for (DType dtype : kFloating) {
    Tensor x = Tensor::empty({3, 0, 2}, dtype);
    EXPECT_EQ(values(ops::sum(x, 1)), std::vector<double>(6, 0.0));
    for (double v : values(ops::mean(x, 1))) EXPECT_TRUE(std::isnan(v));
    EXPECT_EQ(ops::sum(x, 0).shape(), Shape({0, 2}));
    EXPECT_EQ(ops::sum_all(x).item(), 0);
    EXPECT_EQ(ops::sum_of_squares(x), 0);
    EXPECT_TRUE(ops::all_finite(x));
    EXPECT_EQ(ops::cumsum(x, 0).num_elements(), 0);
    EXPECT_EQ(ops::max(x, 0).shape(), Shape({0, 2}));
  }
}

TEST(Reduce, SumToUndoesBroadcasting) {
  Tensor x = test::random_normal({4, 3, 5, 2}, "x");
  for (Shape shape :
       {Shape{4, 3, 5, 2}, Shape{2}, Shape{}, Shape{5, 1}, Shape{3, 1, 2}, Shape{4, 1, 5, 1}, Shape{1, 1, 1, 1}}) {
    std::vector<int> dims;
    for (int d = 0; d < 4; ++d) {
      int shift = 4 - shape.num_dims();
      if (d < shift || shape[d - shift] == 1) dims.push_back(d);
    }
    Tensor y = ops::sum_to(x, shape);
    EXPECT_EQ(y.shape(), shape);
    expect_sums(y, reduce(x, dims), 1);
  }
}

TEST(Reduce, LongSumsStayAccurate) {
  test::for_each_isa([] {
    Tensor x = Tensor::full({3'000'001}, 0.1);
    EXPECT_NEAR(ops::sum_all(x).item() / (3'000'001 * static_cast<double>(0.1f)), 1, 6e-7);
    Tensor columns = Tensor::full({50'001, 3}, 0.1);
    for (double v : values(ops::sum(columns, 0))) EXPECT_NEAR(v / (50'001 * static_cast<double>(0.1f)), 1, 6e-7);
  });
}

TEST(Reduce, ResultsDoNotDependOnThreads) {
  test::for_each_isa([] {
    Tensor x = test::random_normal({700, 301}, "x");
    auto all = [&] {
      std::vector<double> out = values(ops::sum(x, 0)), rows = values(ops::sum(x, 1));
      out.insert(out.end(), rows.begin(), rows.end());
      out.push_back(ops::sum_all(x).item());
      out.push_back(ops::sum_of_squares(x));
      return out;
    };
    int before = num_threads();
    std::vector<double> results[3];
    for (int threads : {1, 2, 3}) {
      set_num_threads(threads);
      results[threads - 1] = all();
    }
    set_num_threads(before);
    EXPECT_EQ(results[0], results[1]);
    EXPECT_EQ(results[0], results[2]);
  });
}

TEST(Reduce, MaximaAndTheirPlaces) {
  test::for_each_isa([] {
    for (DType dtype : kFloating)
      for (const Case& c : kCases) {
        if (c.dims.size() != 1) continue;
        SCOPED_TRACE(str(c.shape, " ", dtype));
        Tensor x = test::random_normal(c.shape, "x", dtype);
        EXPECT_EQ(values(ops::max(x, c.dims[0])), reduce(x, c.dims).max);
        Tensor places = ops::argmax(x, c.dims[0]);
        EXPECT_EQ(places.dtype(), kI64);
        // The first of the largest: nothing before it is as large.
        Tensor rows = ops::contiguous(x.transpose(c.dims[0], -1));
        std::vector<double> at = values(places), v = values(rows);
        if (c.shape.num_dims() > 2) continue;
        size_t n = static_cast<size_t>(rows.size(-1));
        for (size_t r = 0; r < at.size(); ++r)
          EXPECT_EQ(
              std::max_element(v.begin() + static_cast<int64_t>(r * n), v.begin() + static_cast<int64_t>((r + 1) * n)) -
                  v.begin(),
              static_cast<int64_t>(r * n + static_cast<size_t>(at[r])));
      }
  });
}

TEST(Reduce, MinimaAreMaximaOfTheNegative) {
  const double nan = std::nan("");
  for (DType dtype : kFloating) {
    Tensor x = make({2, 4}, {3, -1, 2, -1, 5, nan, -kInf, nan}, dtype);
    std::vector<double> low = values(ops::min(x, 1, true));
    EXPECT_EQ(low[0], -1);
    EXPECT_TRUE(std::isnan(low[1]));
    EXPECT_EQ(values(ops::argmin(x, 1)), (std::vector<double>{1, 1}));  // the first of a tie, NaN before all numbers
    EXPECT_EQ(values(ops::min(x.transpose(0, 1).slice(0, 2, 3), -1)), (std::vector<double>{-kInf}));
    EXPECT_EQ(values(ops::argmin(make({3}, {kInf, kInf, kInf}, dtype), 0)), (std::vector<double>{0}));
    EXPECT_EQ(ops::min(Tensor::empty({3, 0, 2}, dtype), 0).shape(), Shape({0, 2}));
  }
}

TEST(Reduce, MaximumOfNanAndInfinity) {
  test::for_each_isa([] {
    double nan = std::nan("");
    for (DType dtype : kFloating)
      for (int64_t n : {3, 50}) {
        std::vector<double> row(static_cast<size_t>(n), 0.0);
        row[2] = nan;
        row[1] = kInf;
        EXPECT_TRUE(std::isnan(ops::max(make({n}, row, dtype), 0).item()));
        EXPECT_TRUE(std::isnan(ops::max(make({n, 1}, row, dtype).expand({n, 20}), 0).select(0, 19).item()));
        EXPECT_EQ(ops::argmax(make({n}, row, dtype), 0).item(), 2);
        EXPECT_EQ(ops::max(make({n}, std::vector<double>(static_cast<size_t>(n), -kInf), dtype), 0).item(), -kInf);
        EXPECT_EQ(ops::argmax(make({n}, std::vector<double>(static_cast<size_t>(n), -kInf), dtype), 0).item(), 0);
      }
  });
}

TEST(Reduce, SumOfSquaresAndFiniteness) {
  test::for_each_isa([] {
    for (DType dtype : kFloating)
      for (int64_t n : {1, 7, 16, 33, 70001}) {
        Tensor x = test::random_normal({n}, "x", dtype);
        double want = 0;
        for (double v : values(x)) want += v * v;
        EXPECT_NEAR(ops::sum_of_squares(x) / want, 1, 1e-13);
        EXPECT_TRUE(ops::all_finite(x));
        for (double bad : {kInf, -kInf, std::nan("")})
          for (int64_t at : {int64_t{0}, n / 2, n - 1}) {
            Tensor y = ops::clone(x), element = y.slice(0, at, at + 1);
            ops::fill_(element, bad);
            EXPECT_FALSE(ops::all_finite(y)) << bad << " at " << at << " of " << n;
          }
      }
    EXPECT_EQ(ops::sum_of_squares(make({2}, {1e30, 1e30})), 2 * std::pow(static_cast<double>(1e30f), 2));
    EXPECT_TRUE(ops::all_finite(make({2}, {3e38, -3e38})));
  });
}

TEST(Reduce, CumulativeSums) {
  for (DType dtype : kFloating)
    for (auto [shape, dim] :
         {std::pair{Shape{9}, 0}, {Shape{3, 200}, 1}, {Shape{31, 70}, 0}, {Shape{2, 5, 3}, 1}, {Shape{2, 5, 3}, -1}})
      for (bool reverse : {false, true})
        for (bool exclusive : {false, true}) {
          SCOPED_TRACE(str(shape, " ", dtype, " ", dim, reverse ? " reverse" : "", exclusive ? " exclusive" : ""));
          Tensor x = test::random_normal(shape, "x", dtype);
          Tensor rows = x.transpose(dim, -1), y = ops::cumsum(x, dim, {.reverse = reverse, .exclusive = exclusive});
          std::vector<double> v = values(rows), got = values(y.transpose(dim, -1));
          auto n = static_cast<size_t>(rows.size(-1));
          for (size_t row = 0; row < v.size(); row += n) {
            double sum = 0;
            for (size_t k = 0; k < n; ++k) {
              size_t at = row + (reverse ? n - 1 - k : k);
              double want = exclusive ? sum : sum + v[at];
              sum += v[at];
              ASSERT_NEAR(got[at], want, 1.01 * reference::epsilon(dtype) * std::abs(want) + 1e-14);
            }
          }
          EXPECT_EQ(values(ops::cumsum(rows, -1, {reverse, exclusive})), got);
        }
}

TEST(Reduce, CumulativeSumsRestartWithSegments) {
  Tensor x = Tensor::from<float>({1, 10, 2, 20, INFINITY, 30, 4, 40, 5, 50}, {1, 5, 2});
  Tensor segments = Tensor::from<int32_t>({3, 3, 3, -1, -1}, {1, 5});
  double inf = INFINITY;
  auto run = [&](bool reverse, bool exclusive) {
    return values(ops::cumsum(x, 1, {.reverse = reverse, .exclusive = exclusive, .segments = segments}));
  };
  EXPECT_EQ(run(false, false), (std::vector<double>{1, 10, 3, 30, inf, 60, 4, 40, 9, 90}));
  EXPECT_EQ(run(false, true), (std::vector<double>{0, 0, 1, 10, 3, 30, 0, 0, 4, 40}));
  EXPECT_EQ(run(true, false), (std::vector<double>{inf, 60, inf, 50, inf, 30, 9, 90, 5, 50}));
  EXPECT_EQ(run(true, true), (std::vector<double>{inf, 50, inf, 30, 0, 0, 5, 50, 0, 0}));
}

// Against a loop over the window, with segments or without, for blocks and windows of every relation of sizes.
TEST(Reduce, WindowedSumsAddTheWindowAlone) {
  for (DType dtype : kFloating)
    for (auto [shape, dim] : {std::pair{Shape{9}, 0}, {Shape{2, 70}, 1}, {Shape{3, 31, 70}, 1}, {Shape{2, 5, 3}, 1}})
      for (int64_t window : {1, 2, 3, 4, 5, 7, 30, 31, 69, 70, 1000})
        for (bool reverse : {false, true})
          for (bool has_segments : {false, true}) {
            SCOPED_TRACE(str(shape, " ", dtype, " window ", window, reverse ? " reverse" : "", " ", has_segments));
            Tensor x = test::random_normal(shape, "x", dtype), segments;
            const int64_t n = shape[dim];
            std::vector<int32_t> ids;
            for (int64_t i = 0; i < x.num_elements(); ++i) ids.push_back(static_cast<int32_t>(i % n * (i % n) / 40));
            Shape outer(std::span<const int64_t>(shape.begin(), static_cast<size_t>(dim) + 1));
            ids.resize(static_cast<size_t>(outer.num_elements()));
            if (has_segments) segments = Tensor::from(std::span<const int32_t>(ids), outer);
            Tensor y = ops::cumsum(x, dim, {.reverse = reverse, .segments = segments, .window = window});
            std::vector<double> v = values(x), got = values(y);
            const int64_t inner = x.num_elements() / outer.num_elements();
            for (int64_t i = 0; i < outer.num_elements(); ++i)
              for (int64_t c = 0; c < inner; ++c) {
                double want = 0, sizes = 0;
                for (int64_t back = 0; back < window; ++back) {
                  const int64_t at = reverse ? i + back : i - back;
                  if (at < 0 || at >= outer.num_elements() || at / n != i / n) break;
                  if (has_segments && ids[static_cast<size_t>(at)] != ids[static_cast<size_t>(i)]) break;
                  want += v[static_cast<size_t>(at * inner + c)];
                  sizes += std::abs(v[static_cast<size_t>(at * inner + c)]);
                }
                ASSERT_NEAR(got[static_cast<size_t>(i * inner + c)], want,
                            1.01 * reference::epsilon(dtype) * std::abs(want) + 1e-14 * sizes);
              }
          }
}

// What has left the window is gone: its size and an infinity too.
TEST(Reduce, WindowedSumsForgetWhatLeftTheWindow) {
  Tensor x = Tensor::from<float>({1e30f, 1, 2, INFINITY, 3, 4, 5, 6}, {8});
  EXPECT_EQ(values(ops::cumsum(x, 0, {.window = 2})),
            (std::vector<double>{1e30f, 1e30f, 3, INFINITY, INFINITY, 7, 9, 11}));
  EXPECT_EQ(values(ops::cumsum(x, 0, {.reverse = true, .window = 2})),
            (std::vector<double>{1e30f, 3, INFINITY, INFINITY, 7, 9, 11, 6}));
}

TEST(Reduce, ErrorsSayWhatAndHowToFix) {
  Tensor x = Tensor::zeros({2, 3}), i = Tensor::zeros({2}, kI64), none = Tensor::zeros({2, 0});
  const int twice[] = {0, -2};
  EXPECT_EQ("", test::error_of([&] { ops::sum(x, 2); }, {"sum", "2"}));
  EXPECT_EQ("", test::error_of([&] { ops::sum(x, twice); }, {"sum: dimension -2 twice for [2, 3] f32 cpu"}));
  EXPECT_EQ("", test::error_of([&] { ops::sum(i, 0); }, {"sum: x is [2] i64 cpu", "f32, bf16 or f64"}));
  EXPECT_EQ("", test::error_of([&] { ops::max(none, 1); }, {"max: dimension 1 of [2, 0] f32 cpu is empty"}));
  EXPECT_EQ("", test::error_of([&] { ops::argmax(none, -1); }, {"argmax: dimension -1 of [2, 0] f32 cpu is empty"}));
  EXPECT_EQ("", test::error_of([&] { ops::min(none, 1); }, {"min: dimension 1 of [2, 0] f32 cpu is empty"}));
  EXPECT_EQ("", test::error_of([&] { ops::argmin(i, 0); }, {"argmin: x is [2] i64 cpu"}));
  EXPECT_EQ("", test::error_of([&] { ops::cumsum(i, 0); }, {"cumsum: x is [2] i64 cpu"}));
  EXPECT_EQ("", test::error_of([&] { ops::cumsum(x, 1, {.window = -1}); }, {"cumsum: a window of -1", "positive"}));
  EXPECT_EQ("", test::error_of([&] { ops::cumsum(x, 1, {.exclusive = true, .window = 2}); },
                               {"cumsum: a window of 2 beside exclusive", "counts the element itself"}));
  EXPECT_EQ("", test::error_of([&] { ops::cumsum(x, 1, {.segments = Tensor::zeros({3}, kI32)}); },
                               {"cumsum: segments are [3] i32 cpu for dimension 1 of [2, 3] f32 cpu"}));
  EXPECT_EQ("", test::error_of([&] { ops::sum_of_squares(i); }, {"sum_of_squares: x is [2] i64 cpu"}));
  EXPECT_EQ("", test::error_of([&] { ops::all_finite(Tensor()); }, {"all_finite: x is undefined"}));
}

}  // namespace
}  // namespace weft
