#include "weft/core/tensor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "tests/support/errors.h"

namespace weft {
namespace {

using test::error_of;

Tensor counting(const Shape& shape) {
  Tensor t = Tensor::empty(shape, kI64);
  std::iota(t.mutable_data<int64_t>(), t.mutable_data<int64_t>() + t.num_elements(), 0);
  return t;
}
using Ids = std::vector<int64_t>;

TEST(Tensor, FreshTensorsAreRowMajorAndNanUnderTest) {
  Tensor t = Tensor::empty({2, 3});
  EXPECT_EQ(t.strides(), (Shape{3, 1}));
  for (float x : t.to_vector<float>()) EXPECT_TRUE(std::isnan(x));
  EXPECT_EQ(Tensor::full({2}, 1.5, kBF16).to_vector<BFloat16>()[1], 1.5f);
}

TEST(Tensor, ViewsShareMemory) {
  Tensor t = counting({2, 3, 4});
  EXPECT_EQ(t.slice(1, 1, 3).select(0, 1).to_vector<int64_t>(), (Ids{16, 17, 18, 19, 20, 21, 22, 23}));
  EXPECT_EQ(t.slice(2, 0, 4, 2).select(0, 0).to_vector<int64_t>(), (Ids{0, 2, 4, 6, 8, 10}));
  EXPECT_EQ(t.permute({2, 0, 1}).shape(), (Shape{4, 2, 3}));
  EXPECT_EQ(t.permute({2, 0, 1}).select(0, 1).to_vector<int64_t>(), (Ids{1, 5, 9, 13, 17, 21}));
  EXPECT_EQ(t.transpose(-1, 0).select(0, 3).select(0, 2).to_vector<int64_t>(), (Ids{11, 23}));
  EXPECT_TRUE(t.permute({2, 0, 1}).shares_memory_with(t));
  Tensor last = t.slice(0, -1, 2);
  last.mutable_data<int64_t>()[0] = 99;
  EXPECT_EQ(t.data<int64_t>()[12], 99);
}

TEST(Tensor, ExpandRepeatsWithStrideZero) {
  Tensor t = counting({3, 1});
  EXPECT_EQ(t.expand({2, 3, 2}).to_vector<int64_t>(), (Ids{0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2}));
  EXPECT_FALSE(t.expand({3, 2}).is_contiguous());
}

TEST(Tensor, ReshapeMergesStridesWherePossible) {
  Tensor t = counting({2, 3, 4});
  EXPECT_EQ(t.reshape({6, -1}).shape(), (Shape{6, 4}));
  EXPECT_EQ(t.slice(0, 1, 2).reshape({12}).to_vector<int64_t>().front(), 12);
  EXPECT_EQ(t.slice(2, 0, 2).reshape({6, 2}).to_vector<int64_t>(), (Ids{0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21}));
  EXPECT_EQ(t.permute({1, 0, 2}).reshape({3, 2, 2, 2}).to_vector<int64_t>(), t.permute({1, 0, 2}).to_vector<int64_t>());
  EXPECT_EQ(Tensor::zeros({0, 3}).reshape({3, 0}).num_elements(), 0);
}

TEST(Tensor, SqueezeAndUnsqueezeAreInverse) {
  Tensor t = counting({2, 3});
  EXPECT_EQ(t.unsqueeze(0).shape(), (Shape{1, 2, 3}));
  EXPECT_EQ(t.unsqueeze(-1).shape(), (Shape{2, 3, 1}));
  EXPECT_EQ(t.unsqueeze(1).squeeze(1).to_vector<int64_t>(), t.to_vector<int64_t>());
}

TEST(Tensor, WritesRaiseTheVersion) {
  Tensor t = Tensor::zeros({4});
  uint64_t before = t.version();
  t.slice(0, 0, 1).mutable_data<float>()[0] = 1;
  EXPECT_GT(t.version(), before);
}

TEST(Tensor, BorrowKeepsItsOwnerAlive) {
  auto owner = std::make_shared<std::vector<float>>(std::vector<float>{1, 2, 3});
  std::weak_ptr<std::vector<float>> watch = owner;
  {
    Tensor t = Tensor::borrow(owner->data(), {3}, kF32, owner);
    owner.reset();
    EXPECT_EQ(t.slice(0, 1, 2).item(), 2);
  }
  EXPECT_TRUE(watch.expired());
}

TEST(Tensor, ErrorsNameValuesAndFix) {
  Tensor t = Tensor::zeros({2, 3});
  EXPECT_EQ(error_of([&] { t.reshape({4}); }, {"reshape", "[2, 3] f32 cpu", "[4]"}), "");
  EXPECT_EQ(error_of([&] { t.transpose(0, 1).reshape({6}); }, {"without a copy", "ops::contiguous"}), "");
  EXPECT_EQ(error_of([&] { t.slice(1, 2, 4); }, {"slice", "[2, 4)", "dimension 1", "end <= 3"}), "");
  EXPECT_EQ(error_of([&] { t.select(0, 2); }, {"select: index 2", "use 0 .. 1"}), "");
  EXPECT_EQ(error_of([&] { t.permute({0, 0}); }, {"permute: dimension 0 twice"}), "");
  EXPECT_EQ(error_of([&] { t.expand({2, 4}); }, {"expand", "[2, 4]"}), "");
  EXPECT_EQ(error_of([&] { t.item(); }, {"item", "[2, 3] f32 cpu", "one element"}), "");
  EXPECT_EQ(error_of([&] { t.data<double>(); }, {"[2, 3] f32 cpu", "asked for f64"}), "");
  EXPECT_EQ(error_of([&] { t.size(2); }, {"size: dimension 2 of a tensor with 2", "-2 .. 1"}), "");
  EXPECT_EQ(error_of([] { Tensor::zeros({-1}); }, {"negative size"}), "");
  EXPECT_EQ(error_of([] { Tensor::zeros({int64_t{1} << 40, int64_t{1} << 40}); }, {"more than 2^63"}), "");
  EXPECT_EQ(error_of([] { Tensor::from<float>({1, 2}, {3}); }, {"2 values", "[3]"}), "");
  EXPECT_EQ(error_of([] { Shape{1, 1, 1, 1, 1, 1, 1, 1, 1}; }, {"9 dimensions", "at most 8"}), "");
  EXPECT_EQ(error_of([] { broadcast_shapes({2, 3}, {4}, "add"); }, {"add: shapes [2, 3] and [4]"}), "");
}

TEST(BFloat16, RoundsToNearestEvenAndKeepsNan) {
  EXPECT_EQ(BFloat16(1.00390625f).bits, 0x3f80);  // half way: to even
  EXPECT_EQ(BFloat16(1.01171875f).bits, 0x3f82);
  EXPECT_EQ(BFloat16(std::numeric_limits<float>::infinity()).bits, 0x7f80);
  EXPECT_EQ(BFloat16(std::numeric_limits<float>::max()).bits, 0x7f80);
  EXPECT_TRUE(std::isnan(static_cast<float>(BFloat16(std::numeric_limits<float>::quiet_NaN()))));
  for (uint32_t bits = 0; bits < 0x10000; bits += 7) {
    BFloat16 x;
    x.bits = static_cast<uint16_t>(bits);
    if (std::isnan(static_cast<float>(x))) continue;
    EXPECT_EQ(BFloat16(static_cast<float>(x)).bits, bits);
  }
}

}  // namespace
}  // namespace weft
