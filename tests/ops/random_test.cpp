// Random fills and dropout: values are functions of (rng, global index) only.
#include "tests/support/random.h"

#include <gtest/gtest.h>

#include "tests/ops/isa.h"
#include "tests/reference/values.h"
#include "tests/support/errors.h"
#include "weft/ops/elementwise.h"

namespace weft {
namespace {

using reference::values;

constexpr DType kFloating[] = {kF32, kBF16, kF64};

TEST(Random, FillsGiveTheValuesOfTheRng) {
  Rng rng = Rng(test::seed())["fill"];
  for (DType dtype : kFloating)
    for (int64_t n : {0, 1, 7, 9001}) {
      Tensor x = Tensor::empty({n}, dtype), y = Tensor::empty({n}, dtype);
      ops::fill_normal_(x, rng, 0.5, 2);
      ops::fill_uniform_(y, rng, -1, 3);
      std::vector<double> normal, uniform;
      for (int64_t i = 0; i < n; ++i) {
        normal.push_back(0.5 + 2 * static_cast<double>(rng.normal(static_cast<uint64_t>(i))));
        uniform.push_back(-1 + 4 * static_cast<double>(rng.uniform(static_cast<uint64_t>(i))));
      }
      EXPECT_EQ(values(x), values(reference::make({n}, normal, dtype)));
      EXPECT_EQ(values(y), values(reference::make({n}, uniform, dtype)));
    }
  // A view counts its own elements.
  Tensor whole = Tensor::zeros({4, 6}), view = whole.transpose(0, 1), line = Tensor::empty({24});
  ops::fill_normal_(view, rng, 0, 1);
  ops::fill_normal_(line, rng, 0, 1);
  EXPECT_EQ(values(view), values(line));
}

Tensor positions_of(int64_t rows, int64_t tokens, int64_t first) {
  Tensor t = Tensor::empty({rows, tokens}, kI32);
  for (int64_t i = 0; i < rows * tokens; ++i) t.mutable_data<int32_t>()[i] = static_cast<int32_t>(first + i % tokens);
  return t;
}

TEST(Random, DropoutIsKeyedByRowPositionAndChannel) {
  test::for_each_isa([] {
    Rng rng = Rng(test::seed())["dropout"];
    for (DType dtype : kFloating)
      for (int64_t dim : {1, 3, 4, 37, 64}) {
        SCOPED_TRACE(str(dtype, " ", dim));
        Tensor x = test::random_normal({3, 10, dim}, "x", dtype);
        Tensor y = ops::dropout(x, positions_of(3, 10, 5), 0.25, rng, 7);
        std::vector<double> in = values(x), out = values(y), want;
        for (int64_t row = 0; row < 3; ++row)
          for (int64_t token = 0; token < 10; ++token)
            for (int64_t d = 0; d < dim; ++d) {
              auto words = rng.bits(static_cast<uint64_t>(token + 5) << 32 | static_cast<uint64_t>(d / 4),
                                    static_cast<uint64_t>(row + 7));
              bool is_kept = uniform_from_bits(words[static_cast<size_t>(d % 4)]) >= 0.25f;
              double value = in[static_cast<size_t>((row * 10 + token) * dim + d)];
              want.push_back(
                  is_kept ? value * (dtype == kF64 ? 1 / 0.75 : static_cast<double>(static_cast<float>(1 / 0.75))) : 0);
            }
        for (size_t i = 0; i < out.size(); ++i)
          ASSERT_NEAR(out[i], want[i], 1.01 * reference::epsilon(dtype) * std::abs(want[i]));
        // Shards see what the whole sees.
        EXPECT_EQ(values(ops::dropout(x.slice(1, 4, 10), positions_of(3, 6, 9), 0.25, rng, 7)),
                  values(y.slice(1, 4, 10)));
        EXPECT_EQ(values(ops::dropout(x.slice(0, 2, 3), positions_of(1, 10, 5), 0.25, rng, 9)),
                  values(y.slice(0, 2, 3)));
      }
  });
}

TEST(Random, DropoutKeepsItsShareAndNothingMore) {
  Rng rng = Rng(test::seed())["share"];
  Tensor ones = Tensor::full({2, 100, 500}, 1), y = ops::dropout(ones, positions_of(2, 100, 0), 0.1, rng);
  double kept = 0;
  for (double v : values(y)) {
    EXPECT_TRUE(v == 0 || v == static_cast<double>(static_cast<float>(1 / 0.9)));
    kept += v != 0;
  }
  EXPECT_NEAR(kept / 1e5, 0.9, 0.005);
  EXPECT_EQ(values(ops::dropout(ones, positions_of(2, 100, 0), 0, rng)), values(ones));
  EXPECT_EQ(ops::dropout(Tensor::zeros({2, 0, 4}), positions_of(2, 0, 0), 0.5, rng).num_elements(), 0);
}

TEST(Random, ErrorsSayWhatAndHowToFix) {
  Tensor x = Tensor::zeros({2, 3, 4}), ints = Tensor::zeros({2}, kI64), at = positions_of(2, 3, 0);
  EXPECT_EQ("", test::error_of([&] { ops::fill_normal_(ints, Rng(), 0, 1); }, {"fill_normal_: x is [2] i64 cpu"}));
  EXPECT_EQ("", test::error_of([&] { ops::fill_normal_(x, Rng(), 0, -1); }, {"fill_normal_", "std -1"}));
  EXPECT_EQ("", test::error_of([&] { ops::fill_uniform_(x, Rng(), 1, 0); }, {"fill_uniform_", "low 1, high 0"}));
  EXPECT_EQ("", test::error_of([&] { ops::dropout(x, at, 1, Rng()); }, {"dropout: p is 1", "0 <= p < 1"}));
  EXPECT_EQ("", test::error_of([&] { ops::dropout(x, ints, 0.5, Rng()); },
                               {"dropout: x is [2, 3, 4] f32 cpu, positions are [2] i64 cpu"}));
  EXPECT_EQ("",
            test::error_of([&] { ops::dropout(x.select(0, 0), at, 0.5, Rng()); }, {"dropout: x is [3, 4] f32 cpu"}));
  EXPECT_EQ("", test::error_of([&] { ops::dropout(x, at, 0.5, Rng(), -1); }, {"dropout: first_row is -1"}));
}

}  // namespace
}  // namespace weft
