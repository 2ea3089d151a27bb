// Copies, conversions and ops in place.
#include <gtest/gtest.h>

#include <cmath>
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

constexpr DType kAll[] = {kF32, kBF16, kF64, kI64, kI32, kU8, kBool};

std::vector<double> counting(int64_t n, double modulus) {
  std::vector<double> out;
  for (int64_t i = 0; i < n; ++i) out.push_back(std::fmod(static_cast<double>(i * 7 + 1), modulus));
  return out;
}

TEST(Copy, CastsBetweenAnyTwoDtypes) {
  test::for_each_isa([] {
    for (DType from : kAll)
      for (DType to : kAll) {
        SCOPED_TRACE(str(from, " to ", to));
        std::vector<double> numbers = counting(77, from == kBool ? 2 : 100);
        Tensor x = make({7, 11}, numbers, from), y = ops::cast(x, to);
        if (to == kBool)
          for (double& v : numbers) v = v != 0;
        EXPECT_EQ(y.dtype(), to);
        EXPECT_EQ(values(y), numbers);
        EXPECT_EQ(values(ops::cast(x.transpose(0, 1), to)), values(y.transpose(0, 1)));
      }
    Tensor x = Tensor::zeros({3});
    EXPECT_EQ(ops::cast(x, kF32).raw(), x.raw());
  });
}

TEST(Copy, FloatToBFloat16RoundsToNearestEvenAndKeepsNan) {
  test::for_each_isa([] {
    std::vector<float> numbers;
    Rng rng(test::seed());
    for (uint64_t i = 0; i < 4001; ++i) numbers.push_back(std::bit_cast<float>(rng.bits(i)[0]));
    for (float x : {1 + 0x1p-8f, 1 + 3 * 0x1p-8f, 0.0f, -0.0f, 3.4e38f, HUGE_VALF, -HUGE_VALF, NAN, 1e-45f})
      numbers.push_back(x);
    Tensor y = ops::cast(Tensor::from(std::span<const float>(numbers), {static_cast<int64_t>(numbers.size())}), kBF16);
    const BFloat16* got = y.data<BFloat16>();
    for (size_t i = 0; i < numbers.size(); ++i) EXPECT_EQ(got[i].bits, BFloat16(numbers[i]).bits) << numbers[i];
    EXPECT_EQ(got[4001].bits, 0x3f80);
    EXPECT_EQ(got[4002].bits, 0x3f82);
    Tensor back = ops::cast(y, kF32);
    for (size_t i = 0; i < numbers.size(); ++i)
      EXPECT_EQ(std::bit_cast<uint32_t>(back.data<float>()[i]), static_cast<uint32_t>(got[i].bits) << 16);
  });
}

TEST(Copy, FloatToIntegerTruncatesAndSaturates) {
  double inf = std::numeric_limits<double>::infinity();
  Tensor x = make({6}, {-1.9, 2.9, 1e30, -inf, std::nan(""), 255.5});
  EXPECT_EQ(ops::cast(x, kI32).to_vector<int32_t>(),
            (std::vector<int32_t>{-1, 2, 2147483647, -2147483647 - 1, 0, 255}));
  EXPECT_EQ(ops::cast(x, kU8).to_vector<uint8_t>(), (std::vector<uint8_t>{0, 2, 255, 0, 0, 255}));
  EXPECT_EQ(ops::cast(x, kI64).to_vector<int64_t>()[2], std::numeric_limits<int64_t>::max());
  EXPECT_EQ(ops::cast(x, kI64).to_vector<int64_t>()[3], std::numeric_limits<int64_t>::min());
}

TEST(Copy, EveryStridePatternOnEveryDtype) {
  for (DType dtype : kAll) {
    SCOPED_TRACE(std::string(to_string(dtype)));
    Tensor x = make({6, 70, 20}, counting(6 * 70 * 20, dtype == kBool ? 2 : 100), dtype);
    for (const Tensor& view : {x, x.transpose(0, 1), x.permute({2, 1, 0}), x.slice(2, 1, 18, 3), x.slice(1, 5, 6),
                               x.slice(0, 2, 2), x.select(0, 3).transpose(0, 1)}) {
      Tensor y = ops::clone(view);
      EXPECT_TRUE(y.is_contiguous() && !y.shares_memory_with(view));
      EXPECT_EQ(values(y), values(view));
      EXPECT_EQ(values(ops::contiguous(view)), values(view));
      Tensor z = Tensor::zeros({6, 70, 20}, dtype);  // into the same view of another tensor
      Tensor into = z.as_strided(view.shape(), view.strides(), 0);
      ops::copy_(into, view);
      EXPECT_EQ(values(into), values(view));
    }
    EXPECT_EQ(ops::contiguous(x).raw(), x.raw());
  }
}

TEST(Copy, BigTransposeAndHeads) {
  Tensor x = test::random_normal({300, 517}, "x"), y = ops::contiguous(x.transpose(0, 1));
  for (int64_t i : {0, 1, 299}) EXPECT_EQ(values(y.select(1, i)), values(x.select(0, i)));
  Tensor h = test::random_normal({2, 33, 5, 64}, "h");
  EXPECT_EQ(values(ops::contiguous(h.permute({0, 2, 1, 3})).permute({0, 2, 1, 3})), values(h));
}

TEST(Copy, InPlaceOpsBroadcastAndConvert) {
  test::for_each_isa([] {
    Tensor to = Tensor::zeros({3, 2, 40}, kF64);
    ops::copy_(to, make({2, 1}, {1, 2}, kI32));
    EXPECT_EQ(values(to.select(2, 39)), (std::vector<double>{1, 2, 1, 2, 1, 2}));
    Tensor x = Tensor::zeros({4, 5}, kF32), middle = x.slice(1, 1, 4);
    ops::fill_(middle, 2.5);
    EXPECT_EQ(values(x.select(0, 3)), (std::vector<double>{0, 2.5, 2.5, 2.5, 0}));
    ops::scale_(middle, 2);
    ops::add_(middle, make({3}, {1, 2, 3}), -1);
    EXPECT_EQ(values(x.select(0, 0)), (std::vector<double>{0, 4, 3, 2, 0}));
    for (DType dtype : kAll) {
      Tensor ones = Tensor::zeros({37}, dtype);
      ops::fill_(ones, 1);
      EXPECT_EQ(values(ones), std::vector<double>(37, 1.0));
    }
  });
}

TEST(Copy, AddTakesBFloat16IntoFloat32) {
  test::for_each_isa([] {
    for (auto [to_type, from_type] : {std::pair{kF32, kF32}, {kF32, kBF16}, {kBF16, kBF16}, {kF64, kF64}}) {
      Tensor to = test::random_normal({1003}, "to", to_type), from = test::random_normal({1003}, "from", from_type);
      std::vector<double> want = values(to), add = values(from);
      ops::add_(to, from, 0.5);
      std::vector<double> got = values(to);
      for (size_t i = 0; i < got.size(); ++i)
        EXPECT_NEAR(got[i], want[i] + 0.5 * add[i],
                    1.01 * reference::epsilon(to_type) * std::abs(want[i] + 0.5 * add[i]));
    }
  });
}

TEST(Copy, OverlappingViewsAreReadBeforeTheyAreWritten) {
  Tensor x = make({3, 3}, counting(9, 100));
  std::vector<double> transposed = values(x.transpose(0, 1)), before = values(x);
  Tensor y = ops::clone(x);
  ops::add_(y, y.transpose(0, 1));
  for (size_t i = 0; i < 9; ++i) EXPECT_EQ(values(y)[i], before[i] + transposed[i]);
  Tensor line = make({6}, {0, 1, 2, 3, 4, 5}), to = line.slice(0, 1, 6);
  ops::copy_(to, line.slice(0, 0, 5));
  EXPECT_EQ(values(line), (std::vector<double>{0, 0, 1, 2, 3, 4}));
  ops::add_(line, line);
  EXPECT_EQ(values(line), (std::vector<double>{0, 0, 2, 4, 6, 8}));
}

TEST(Copy, WritesAreSeenByTheVersion) {
  Tensor x = Tensor::zeros({3}), one = Tensor::full({}, 1);
  auto grows = [&](auto&& write) {
    uint64_t before = x.version();
    write();
    return x.version() > before;
  };
  EXPECT_TRUE(grows([&] { ops::fill_(x, 1); }));
  EXPECT_TRUE(grows([&] { ops::copy_(x, one); }));
  EXPECT_TRUE(grows([&] { ops::add_(x, one); }));
  EXPECT_TRUE(grows([&] { ops::scale_(x, 2); }));
  uint64_t before = x.version();
  ops::exp(x);
  EXPECT_EQ(x.version(), before);
}

TEST(Copy, ErrorsSayWhatAndHowToFix) {
  Tensor x = Tensor::zeros({2, 3}), i = Tensor::zeros({2, 3}, kI64), h = Tensor::zeros({2, 3}, kBF16), none;
  Tensor wide = Tensor::zeros({1}).expand({4});
  EXPECT_EQ("", test::error_of(
                    [&] {
                      ops::copy_(x, Tensor::zeros({4, 2, 3}));
                    },
                    {"copy_: to is [2, 3] f32 cpu, from is [4, 2, 3]"}));
  EXPECT_EQ("", test::error_of([&] { ops::copy_(x, none); }, {"copy_", "from is undefined"}));
  EXPECT_EQ("", test::error_of([&] { ops::fill_(wide, 1); }, {"fill_: to is [4] f32 cpu, an expanded view", "clone"}));
  EXPECT_EQ("",
            test::error_of([&] { ops::add_(h, x); }, {"add_: to is [2, 3] bf16 cpu, from is [2, 3] f32 cpu", "bf16"}));
  EXPECT_EQ("", test::error_of([&] { ops::add_(i, i); }, {"add_: to is [2, 3] i64 cpu", "floating"}));
  EXPECT_EQ("", test::error_of([&] { ops::scale_(i, 2); }, {"scale_: x is [2, 3] i64 cpu"}));
  EXPECT_EQ("", test::error_of([&] { ops::cast(none, kF32); }, {"cast: x is undefined"}));
  EXPECT_EQ("", test::error_of([&] { ops::clone(none); }, {"clone: x is undefined"}));
}

}  // namespace
}  // namespace weft
