// Random values on GPUs: those of weft::Rng and of the CPU, at odd sizes and addresses.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/ops/device_values.h"
#include "tests/reference/values.h"
#include "tests/support/random.h"
#include "weft/core/stream.h"
#include "weft/ops/elementwise.h"

namespace weft {
namespace {

using namespace test;
using reference::values;

constexpr DType kFloating[] = {kF32, kBF16, kF64};

// Calls fill(view) for views of n numbers that begin `offset` numbers behind an aligned address, and checks that their neighbours stay.
template <class Fill, class Check>
void for_each_place(Fill&& fill, Check&& check) {
  for (DType dtype : kFloating)
    for (int64_t n : {0, 1, 3, 1025})
      for (int64_t offset : {0, 1, 5}) {
        SCOPED_TRACE(str(dtype, " ", n, " numbers at ", offset));
        Tensor memory = Tensor::full({offset + n + 3}, 42, dtype, Device::cuda());
        Tensor x = memory.slice(0, offset, offset + n);
        fill(x);
        check(x);
        std::vector<double> all = values(memory);
        for (int64_t i = 0; i < offset + n + 3; ++i) {
          if (i >= offset && i < offset + n) continue;
          EXPECT_EQ(all[static_cast<size_t>(i)], 42) << i;
        }
      }
}

// Where the products are exact whatever is contracted: the same bits.
TEST(RandomOnDevices, UniformFillsAreTheCpus) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  Rng rng = Rng(seed())["uniform"];
  for (auto [low, high] : {std::array{0.0, 1.0}, {-1.0, 3.0}, {-0.5, 0.0}})
    for_each_place([&, low = low, high = high](Tensor& x) { ops::fill_uniform_(x, rng, low, high); },
                   [&, low = low, high = high](const Tensor& x) {
                     Tensor want = Tensor::empty(x.shape(), x.dtype());
                     ops::fill_uniform_(want, rng, low, high);
                     expect_same_values(x, want, "uniform");
                     std::vector<double> numbers, got = values(x);
                     for (uint64_t i = 0; i < got.size(); ++i)
                       numbers.push_back(low + (high - low) * double{rng.uniform(i)});
                     EXPECT_EQ(got, values(reference::make(x.shape(), numbers, x.dtype())));
                   });
}

TEST(RandomOnDevices, UniformFillsOfAnyRangeAreTheCpusToTheLastDigit) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  Rng rng = Rng(seed())["uniform"];
  constexpr double kLow = -0.3, kHigh = 1.6;
  for_each_place([&](Tensor& x) { ops::fill_uniform_(x, rng, kLow, kHigh); },
                 [&](const Tensor& x) {
                   std::vector<double> got = values(x);
                   for (uint64_t i = 0; i < got.size(); ++i)
                     ASSERT_NEAR(got[i], kLow + (kHigh - kLow) * double{rng.uniform(i)},
                                 2.01 * reference::epsilon(x.dtype()) * kHigh)
                         << i;
                 });
}

// Logarithm and cosine of a device may differ from the CPU's in the last digit of a double, so a float in its last digit.
TEST(RandomOnDevices, NormalFillsAreTheCpusToTheLastDigit) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  Rng rng = Rng(seed())["normal"];
  for (auto [mean, std] : {std::array{0.0, 1.0}, {0.5, 2.0}, {-3.0, 0.0}})
    for_each_place([&, mean = mean, std = std](Tensor& x) { ops::fill_normal_(x, rng, mean, std); },
                   [&, mean = mean, std = std](const Tensor& x) {
                     Tensor cpu = Tensor::empty(x.shape(), x.dtype());
                     ops::fill_normal_(cpu, rng, mean, std);
                     std::vector<double> got = values(x), want = values(cpu);
                     ASSERT_EQ(got.size(), want.size());
                     for (uint64_t i = 0; i < got.size(); ++i) {
                       const double z = double{rng.normal(i)}, size = std::abs(mean) + std * std::abs(z);
                       const double bound = 2.01 * size * (reference::epsilon(x.dtype()) + 0x1p-24);
                       ASSERT_NEAR(got[i], want[i], bound) << i;
                       ASSERT_NEAR(got[i], mean + std * z, bound) << i;
                     }
                   });
}

TEST(RandomOnDevices, FillsOfViewsCountTheirOwnElements) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  Rng rng = Rng(seed())["view"];
  for (DType dtype : kFloating) {
    Tensor whole = Tensor::zeros({35, 30}, dtype, Device::cuda()), view = whole.transpose(0, 1).slice(1, 1, 35, 2);
    Tensor line = Tensor::empty({30 * 17}, dtype, Device::cuda());
    ops::fill_normal_(view, rng, 0, 1);
    ops::fill_normal_(line, rng, 0, 1);
    EXPECT_EQ(values(view), values(line));
    ops::fill_uniform_(view, rng, 0, 1);
    ops::fill_uniform_(line, rng, 0, 1);
    EXPECT_EQ(values(view), values(line));
    for (double x : values(whole.slice(0, 0, 35, 2))) ASSERT_EQ(x, 0) << "beside the view";
  }
}

TEST(RandomOnDevices, MomentsOfFillsAreRight) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  constexpr int64_t n = 40000;
  Tensor x = Tensor::empty({n}, kF32, Device::cuda()), y = Tensor::empty({n}, kF32, Device::cuda());
  ops::fill_normal_(x, Rng(1)["moments"], 1, 2);
  ops::fill_uniform_(y, Rng(1)["moments"], -1, 1);
  double sum = 0, squares = 0, uniform = 0, uniform2 = 0;
  for (double z : values(x)) sum += z, squares += z * z;
  for (double u : values(y)) {
    ASSERT_TRUE(-1 <= u && u < 1);
    uniform += u, uniform2 += u * u;
  }
  EXPECT_NEAR(sum / n, 1, 0.05);
  EXPECT_NEAR(squares / n, 5, 0.15);
  EXPECT_NEAR(uniform / n, 0, 0.015);
  EXPECT_NEAR(uniform2 / n, 1.0 / 3, 0.01);
}

TEST(RandomOnDevices, DropoutIsTheCpus) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  Rng rng = Rng(seed())["dropout"];
  Tensor positions = Tensor::empty({3, 10}, kI32);
  for (int64_t i = 0; i < 30; ++i) positions.mutable_data<int32_t>()[i] = static_cast<int32_t>(5 + i * 7 % 23);
  for (DType dtype : kFloating)
    for (int64_t dim : {1, 3, 4, 37, 64})
      for (double p : {0.0, 0.25, 0.9}) {
        Tensor x = random_normal({3, 10, dim}, "x", dtype), there = ops::to(x, Device::cuda());
        Tensor at = ops::to(positions, Device::cuda());
        Tensor want = ops::dropout(x, positions, p, rng, 7), got = ops::dropout(there, at, p, rng, 7);
        expect_same_values(got, want, str("dropout ", p, " ", x));
        expect_same_values(ops::dropout(there.slice(1, 4, 10), at.slice(1, 4, 10), p, rng, 7), want.slice(1, 4, 10),
                           str("dropout of a part ", p, " ", x));
      }
}

}  // namespace
}  // namespace weft
