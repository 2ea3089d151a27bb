// Matrix products against float64 loops: shapes at the edges of tiles, all transposes, views, batches, dtypes.
#include "weft/ops/matmul.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <functional>

#include "ops/cpu/gemm.h"
#include "ops/cpu/isa.h"
#include "ops/cpu/onednn_gemm.h"
#include "tests/reference/matmul.h"
#include "tests/support/random.h"
#include "weft/core/allocator.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"

namespace weft::test {
namespace {

using ops::MatmulOptions;

double rounding(DType dtype) { return dtype == kF64 ? 0x1p-53 : dtype == kF32 ? 0x1p-24 : 0x1p-8; }

// Products are summed in f32 (f64), then rounded once to the result's dtype.
void expect_close(const Tensor& y, const reference::Product& want, DType in, const std::string& name) {
  ASSERT_EQ(to_string(y.shape()), to_string(want.shape)) << name;
  ASSERT_TRUE(y.is_contiguous()) << name;
  std::vector<double> got = reference::to_doubles(y);
  double sum_error = 8 * (in == kF64 ? 0x1p-53 : 0x1p-24);
  for (size_t i = 0; i < got.size(); ++i) {
    double k_error = sum_error * want.magnitudes[i] * 4;
    ASSERT_NEAR(got[i], want.values[i], k_error + 1.01 * rounding(y.dtype()) * std::abs(want.values[i]))
        << name << " element " << i;
  }
}

Tensor transposed_storage(const Tensor& x) {  // equal values, stored as the transpose
  Shape shape = x.shape();
  std::swap(shape[x.num_dims() - 1], shape[x.num_dims() - 2]);
  Tensor copy = Tensor::empty(shape, x.dtype()).transpose(-1, -2);
  auto bytes = size_of(x.dtype());
  int64_t rows = x.size(-2), cols = x.size(-1), count = x.num_elements() / std::max<int64_t>(rows * cols, 1);
  auto* to = static_cast<char*>(copy.mutable_raw());
  const auto* from = static_cast<const char*>(x.raw());
  for (int64_t i = 0; i < count; ++i)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c)
        std::memcpy(to + static_cast<size_t>((i * cols + c) * rows + r) * bytes,
                    from + static_cast<size_t>((i * rows + r) * cols + c) * bytes, bytes);
  return copy;
}

// Values in [-1, 1) that every dtype holds exactly: cheaper than normal ones where there are millions.
Tensor many_values(const Shape& shape, uint32_t state, DType dtype) {
  Tensor t = Tensor::empty(shape, dtype);
  with_type<float, BFloat16, double>(dtype, "many_values", [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* x = t.mutable_data<T>();
    for (int64_t i = 0; i < t.num_elements(); ++i) {
      state = state * 1664525u + 1013904223u;
      x[i] = T(static_cast<float>(state >> 25) / 64 - 1);
    }
  });
  return t;
}

struct Case {
  Shape a, b;
};

const Case kCases[] = {
    {{1, 1}, {1, 1}},
    {{1, 7}, {7, 1}},
    {{5, 1}, {1, 3}},
    {{1, 64}, {64, 33}},
    {{31, 17}, {17, 1}},
    {{16, 16}, {16, 16}},
    {{33, 65}, {65, 31}},
    {{63, 64}, {64, 65}},
    {{97, 129}, {129, 47}},
    {{0, 4}, {4, 3}},
    {{3, 4}, {4, 0}},
    {{3, 0}, {0, 4}},
    {{2, 3, 5}, {5, 7}},
    {{2, 3, 5}, {2, 5, 7}},
    {{3, 5}, {4, 5, 7}},
    {{2, 1, 6, 5}, {3, 5, 4}},
    {{2, 3, 6, 5}, {2, 3, 5, 4}},
    {{2, 1, 6, 5}, {1, 3, 5, 4}},
    {{0, 3, 5}, {5, 7}},
    {{4, 1, 5}, {5, 3}},
    {{3, 0, 4}, {4, 2}},
    {{2, 1, 3, 4, 5}, {1, 2, 1, 5, 6}},
    {{130, 70}, {70, 150}},
    {{3, 300}, {300, 3}},
    {{20, 33, 34}, {20, 34, 35}},
};

TEST(Matmul, EqualsTheFloat64LoopForEveryShapeDtypeAndTranspose) {
  for (DType dtype : {kF32, kBF16, kF64})
    for (const Case& c : kCases) {
      Tensor a = random_normal(c.a, "a", dtype), b = random_normal(c.b, "b", dtype);
      auto want = reference::matmul(a, b);
      Tensor at = transposed_storage(a), bt = transposed_storage(b);
      std::string name = str(c.a, " x ", c.b, " ", dtype);
      expect_close(ops::matmul(a, b), want, dtype, name);
      expect_close(ops::matmul(at, b), want, dtype, name + " a stored transposed");
      expect_close(ops::matmul(a, bt), want, dtype, name + " b stored transposed");
      expect_close(ops::matmul(at, bt), want, dtype, name + " both stored transposed");
      expect_close(ops::matmul(at.transpose(-1, -2), bt.transpose(-1, -2), {.transpose_a = true, .transpose_b = true}),
                   want, dtype, name + " transposed by option");
      if (dtype == kBF16) expect_close(ops::matmul(a, bt, {.out = kF32}), want, dtype, name + " to f32");
    }
}

TEST(Matmul, TakesStridedViews) {
  for (DType dtype : {kF32, kBF16, kF64}) {
    Tensor wide = random_normal({12, 40, 50}, "wide", dtype), b = random_normal({20, 30}, "b", dtype);
    struct View {
      const char* name;
      Tensor a;
    } views[] = {
        {"columns of a wider matrix", wide.slice(2, 7, 27)},
        {"every second row", wide.slice(2, 0, 20).slice(1, 0, 40, 2)},
        {"every second column", wide.slice(2, 0, 40, 2)},
        {"both with steps", wide.slice(2, 1, 41, 2).slice(1, 1, 40, 3)},
        {"heads before tokens", wide.slice(2, 0, 20).permute({1, 0, 2})},
        {"rows from the batch, columns from the rows", wide.slice(1, 0, 20).permute({2, 0, 1})},
        {"columns from the batch and steps",
         wide.slice(0, 0, 12).slice(1, 0, 20).slice(2, 3, 50, 4).permute({0, 2, 1})},
        {"a repeated row", wide.slice(0, 0, 1).slice(1, 3, 4).slice(2, 0, 20).expand({5, 6, 20})},
        {"a repeated matrix", wide.slice(0, 2, 3).slice(2, 0, 20).expand({3, 40, 20})},
        {"a repeated number", wide.slice(0, 2, 3).slice(1, 0, 1).slice(2, 9, 10).expand({2, 3, 20})},
        {"one row each, far apart", wide.slice(1, 4, 5).slice(2, 0, 20)},
        {"one row each, every second column", wide.slice(1, 4, 5).slice(2, 0, 40, 2)},
        {"one row each, out of a column", wide.slice(1, 0, 20).slice(2, 4, 5).permute({0, 2, 1})},
    };
    for (const View& v : views) {
      std::string name = str(v.name, " ", dtype);
      expect_close(ops::matmul(v.a, b), reference::matmul(v.a, b), dtype, name);
      Tensor left = random_normal({9, v.a.size(-2)}, "left", dtype);
      expect_close(ops::matmul(left, v.a), reference::matmul(left, v.a), dtype, name + " on the right");
    }
  }
}

TEST(Matmul, AddsToTheResultWithBeta) {
  for (DType dtype : {kF32, kBF16, kF64})
    for (Shape a_shape : {Shape{37, 29}, Shape{3, 37, 29}, Shape{37, 0}})
      for (double beta : {0.0, 1.0, -0.5}) {
        DType out_dtype = dtype == kF64 ? kF64 : kF32;
        Tensor a = random_normal(a_shape, "a", dtype), b = random_normal({a_shape.back(), 23}, "b", dtype);
        auto want = reference::matmul(a, b);
        Tensor out = random_normal(want.shape, "out", out_dtype);
        std::vector<double> before = reference::to_doubles(out);
        if (beta == 0) out = Tensor::empty(want.shape, out_dtype);  // NaN: beta 0 must not read it
        for (size_t i = 0; i < before.size(); ++i) {
          want.values[i] += beta * before[i];
          want.magnitudes[i] += std::abs(before[i]);
        }
        ops::matmul_into(out, a, b, {}, beta);
        expect_close(out, want, dtype, str(a_shape, " ", dtype, " beta ", beta));
      }
}

TEST(Matmul, LinearAddsTheBias) {
  for (DType dtype : {kF32, kBF16, kF64})
    for (Shape x_shape : {Shape{2, 19, 33}, Shape{19, 33}, Shape{33}, Shape{1, 33}, Shape{4, 0}, Shape{0, 33}})
      for (bool has_bias : {false, true}) {
        Tensor x = random_normal(x_shape, "x", dtype), w = random_normal({27, x_shape.back()}, "w", dtype);
        Tensor bias = has_bias ? random_normal({27}, "bias", dtype) : Tensor();
        auto want = reference::matmul(x_shape.num_dims() == 1 ? x.unsqueeze(0) : x, w.transpose(0, 1));
        if (x_shape.num_dims() == 1) want.shape = {27};
        for (size_t i = 0; has_bias && i < want.values.size(); ++i) {
          want.values[i] += reference::to_doubles(bias)[i % 27];
          want.magnitudes[i] += 10;
        }
        expect_close(ops::linear(x, w, bias), want, dtype, str(x_shape, " ", dtype, " bias ", has_bias));
      }
}

// Products whose operands are copied or packed first: many uses of each element, in sizes that no tile divides and a power of two.
TEST(Matmul, EqualsTheLoopWhereOperandsAreCopied) {
  for (DType dtype : {kF32, kBF16})
    for (auto [m, k, n] : {std::array<int64_t, 3>{1031, 67, 131}, {1030, 256, 64}, {37, 129, 541}, {65, 1541, 71}})
      for (bool ta : {false, true})
        for (bool tb : {false, true}) {
          Tensor a = random_normal({m, k}, "a", dtype), b = random_normal({k, n}, "b", dtype);
          const reference::Product want = reference::matmul(a, b);
          Tensor left = ta ? transposed_storage(a) : a, right = tb ? transposed_storage(b) : b;
          const std::string name = str(dtype, " ", m, "x", k, "x", n, " ", ta, tb);
          expect_close(ops::matmul(left, right), want, dtype, name);
          Tensor out = ops::matmul(left, right, {.out = kF32});
          expect_close(out, want, dtype, name + " to f32");
          ops::matmul_into(out, left, right, {}, 1);
          std::vector<double> twice = reference::to_doubles(out);
          for (size_t i = 0; i < twice.size(); ++i)
            ASSERT_NEAR(twice[i], 2 * want.values[i], 1e-4 * (1 + want.magnitudes[i]))
                << name << " added, element " << i;
          if (ta || !tb) continue;
          Tensor bias = random_normal({n}, "bias", dtype);
          reference::Product with_bias = want;
          const std::vector<double> each = reference::to_doubles(bias);
          for (size_t i = 0; i < with_bias.values.size(); ++i) {
            with_bias.values[i] += each[i % each.size()];
            with_bias.magnitudes[i] += 10;
          }
          expect_close(ops::linear(left, right.transpose(0, 1), bias), with_bias, dtype, name + " with bias");
        }
}

// Against the derivative by hand: with u = 2 sqrt(2 / pi) (z + 0.044715 z^3), y = z / (1 + exp(-u)).
TEST(Matmul, LinearGeluAndItsBackwardEqualTheFloat64Loops) {
  const cpu::Isa before = cpu::isa();
  for (cpu::Isa isa : {cpu::Isa::baseline, cpu::Isa::avx2, cpu::Isa::avx512})
    for (DType dtype : {kF32, kBF16, kF64}) {
      if (!cpu::has_isa(isa)) continue;
      cpu::set_isa(isa);
      const int64_t N = 37, in = 21, hidden = 45, out = 19;
      Tensor x = random_normal({N, in}, "x", dtype), w = random_normal({hidden, in}, "w", dtype),
             bias = random_normal({hidden}, "bias", dtype), dy = random_normal({N, out}, "dy", dtype),
             down = random_normal({out, hidden}, "down", dtype);
      ops::LinearGelu got = ops::linear_gelu(x, w, bias);
      Tensor dz = ops::linear_gelu_backward(dy, down, got.inner);
      const reference::Product z = reference::matmul(x, w.transpose(0, 1)), dh = reference::matmul(dy, down);
      const std::vector<double> b = reference::to_doubles(bias), y = reference::to_doubles(got.y),
                                d = reference::to_doubles(dz);
      const double error = dtype == kF64 ? 1e-13 : dtype == kF32 ? 1e-5 : 0.03;
      for (size_t i = 0; i < z.values.size(); ++i) {
        const double v = z.values[i] + b[i % b.size()], c = 1.5957691216057308;
        const double s = 1 / (1 + std::exp(-c * (v + 0.044715 * v * v * v)));
        const double slope = s + v * s * (1 - s) * c * (1 + 3 * 0.044715 * v * v);
        ASSERT_NEAR(y[i], v * s, error * (1 + z.magnitudes[i])) << str(dtype, " element ", i);
        ASSERT_NEAR(d[i], dh.values[i] * slope, error * (1 + z.magnitudes[i]) * (1 + dh.magnitudes[i]))
            << str(dtype, " element ", i);
      }
    }
  cpu::set_isa(before);
}

// Sizes beyond one panel in every direction; few rows of the reference are enough.
TEST(Matmul, Bf16ThroughF32PanelsEqualsTheLoopAcrossPanels) {
  auto check = [](int64_t m, int64_t k, int64_t n, DType out_dtype, bool stores_transposed) {
    Tensor a = many_values({m, k}, 1, kBF16), b = many_values({k, n}, 2, kBF16);
    Tensor bias = random_normal({n}, "bias", kBF16), out = Tensor::empty({m, n}, out_dtype);
    Tensor a_stored = stores_transposed ? transposed_storage(a) : a,
           b_stored = stores_transposed ? transposed_storage(b) : b;
    cpu::Gemm g;
    g.in = kBF16, g.out = out_dtype, g.m = m, g.n = n, g.k = k;
    g.a = {a_stored.raw(), stores_transposed, stores_transposed ? m : k};
    g.b = {b_stored.raw(), stores_transposed, stores_transposed ? k : n};
    g.c = out.mutable_raw(), g.ldc = n;
    if (out_dtype == kBF16) g.bias = bias.raw();
    cpu::gemm_bf16_by_f32(g);
    for (int64_t row : {int64_t{0}, m - 1}) {
      auto want = reference::matmul(a.slice(0, row, row + 1), b);
      for (int64_t i = 0; out_dtype == kBF16 && i < n; ++i)
        want.values[static_cast<size_t>(i)] += static_cast<float>(bias.data<BFloat16>()[i]);
      expect_close(out.slice(0, row, row + 1), want, kBF16, str(m, " x ", k, " x ", n, " ", out_dtype, " row ", row));
    }
  };
  for (bool stores_transposed : {false, true}) {
    check(520, 4100, 20, kBF16, stores_transposed);  // two depths, two heights
    check(520, 4100, 20, kF32, stores_transposed);
    check(5, 4096, 1030, kBF16, stores_transposed);  // two widths
  }
  check(513, 4097, 1025, kBF16, false);  // all three
}

TEST(Matmul, RunsWithEveryInstructionSet) {
  cpu::Isa before = cpu::isa();
  Tensor a = random_normal({37, 45}, "a", kBF16), b = random_normal({45, 29}, "b", kBF16);
  Tensor a64 = random_normal({37, 45}, "a", kF64), b64 = random_normal({45, 29}, "b", kF64);
  for (cpu::Isa isa : {cpu::Isa::baseline, cpu::Isa::avx2, cpu::Isa::avx512}) {
    if (!cpu::has_isa(isa)) continue;
    cpu::set_isa(isa);
    expect_close(ops::matmul(a, b), reference::matmul(a, b), kBF16, str(cpu::to_string(isa)));
    expect_close(ops::matmul(a64, b64), reference::matmul(a64, b64), kF64, str(cpu::to_string(isa)));
  }
  cpu::set_isa(before);
}

bool same_bits(const Tensor& x, const Tensor& y) { return std::memcmp(x.raw(), y.raw(), x.num_bytes()) == 0; }

TEST(Matmul, RepeatsBitForBit) {
  for (DType dtype : {kF32, kBF16, kF64})
    for (Case c : {Case{{64, 16384}, {16384, 64}}, Case{{200, 300}, {300, 100}}, Case{{1030, 256}, {256, 64}},
                   Case{{12, 64, 64}, {12, 64, 64}}}) {
      if (dtype == kF64 && c.a[1] > 1000) continue;
      Tensor a = many_values(c.a, 1, dtype), b = many_values(c.b, 2, dtype);
      Tensor first = ops::matmul(a, b);
      for (int i = 0; i < 3; ++i) EXPECT_TRUE(same_bits(first, ops::matmul(a, b))) << str(c.a, " ", dtype);
    }
}

// oneDNN's own split of the inner size depends on the thread count, so f32 and bf16 are equal only to rounding.
TEST(Matmul, Float64IsTheSameForEveryThreadCount) {
  Tensor a = random_normal({150, 300}, "a", kF64), b = random_normal({300, 170}, "b", kF64);
  int threads = num_threads();
  set_num_threads(1);
  Tensor one = ops::matmul(a, b);
  set_num_threads(3);
  Tensor three = ops::matmul(a, b);
  set_num_threads(threads);
  EXPECT_TRUE(same_bits(one, three));
}

TEST(Matmul, WorksInsideAParallelLoop) {
  Tensor a = random_normal({6, 70, 80}, "a"), b = random_normal({80, 90}, "b");
  Tensor want = ops::matmul(a, b);
  std::vector<Tensor> got(6);
  parallel_for(6, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) got[static_cast<size_t>(i)] = ops::matmul(a.select(0, i), b);
  });
  for (int64_t i = 0; i < 6; ++i)
    expect_close(got[static_cast<size_t>(i)], reference::matmul(a.select(0, i), b), kF32, str("item ", i));
}

TEST(Matmul, TakesNoNewMemoryInSteadyState) {
  Tensor a = random_normal({64, 96}, "a", kBF16), b = random_normal({96, 80}, "b", kBF16),
         strided = b.slice(1, 0, 80, 2);
  auto step = [&] {
    ops::matmul(a, b);
    ops::matmul(a, strided);
  };
  step();
  auto before = allocator(Device::cpu()).stats().num_system_allocations;
  for (int i = 0; i < 5; ++i) step();
  auto after = allocator(Device::cpu()).stats().num_system_allocations;
#if !defined(__SANITIZE_ADDRESS__)
  EXPECT_EQ(before, after);
#else
  EXPECT_LE(before, after);
#endif
}

TEST(Matmul, ErrorsNameTheShapesAndTheFix) {
  Tensor a = Tensor::zeros({8, 512, 768}), b = Tensor::zeros({512, 768}), square = Tensor::zeros({4, 4});
  Tensor whole = Tensor::zeros({2, 4, 4});
  struct Row {
    std::function<void()> call;
    std::vector<const char*> parts;
  } rows[] = {
      {[&] { ops::matmul(a, b); },
       {"matmul: inner sizes differ: a is [8, 512, 768] f32 cpu, b is [512, 768] f32 cpu",
        "the last size of a (768) must equal the second-last of b (512); transpose b?"}},
      {[&] {
         ops::matmul(Tensor::zeros({2, 4, 4}), Tensor::zeros({3, 4, 4}));
       },
       {"leading sizes do not broadcast", "[2, 4, 4]", "[3, 4, 4]", "leading sizes [2] and [3]"}},
      {[&] {
         ops::matmul(square, Tensor::zeros({4, 4}, kBF16));
       },
       {"dtypes differ", "f32", "bf16", "cast"}},
      {[&] {
         ops::matmul(Tensor::zeros({4, 4}, kI64), Tensor::zeros({4, 4}, kI64));
       },
       {"not a floating dtype", "i64"}},
      {[&] { ops::matmul(Tensor::zeros({4}), square); }, {"fewer than two dimensions", "[4] f32", "unsqueeze"}},
      {[&] { ops::matmul(Tensor(), square); }, {"undefined"}},
      {[&] { ops::matmul(square, square, {.out = kF64}); }, {"unsupported result dtype", "out is f64"}},
      {[&] {
         Tensor out = Tensor::zeros({4, 5});
         ops::matmul_into(out, square, square, {}, 1);
       },
       {"matmul_into: out does not fit", "out is [4, 5]", "[4, 4]"}},
      {[&] {
         Tensor out = Tensor::zeros({4, 4}, kBF16);
         ops::matmul_into(out, square, square, {}, 1);
       },
       {"wrong result dtype", "give an out of dtype f32"}},
      {[&] {
         Tensor out = whole.select(0, 0);
         ops::matmul_into(out, out.transpose(0, 1), square, {}, 1);
       },
       {"out overlaps an input"}},
      {[&] {
         ops::linear(a, Tensor::zeros({512, 512}));
       },
       {"linear: inner sizes differ", "[8, 512, 768]", "(768)", "(512)"}},
      {[&] { ops::linear(a, b, Tensor::zeros({768})); }, {"bias does not fit", "shape [512]"}},
      {[&] { ops::linear(a, b.select(0, 0)); }, {"wrong number of dimensions", "[out, in]"}},
      {[&] { ops::linear(a, b, Tensor::zeros({512}, kBF16)); }, {"dtypes differ", "bf16"}},
  };
  for (const Row& row : rows) {
    try {
      row.call();
      ADD_FAILURE() << "no error that says " << row.parts[0];
    } catch (const Error& e) {
      for (const char* part : row.parts)
        EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what() << "\nlacks " << part;
    }
  }
  Tensor out = whole.select(0, 0);
  ops::matmul_into(out, whole.select(0, 1), square, {}, 0);  // the same memory, but another part of it
}

}  // namespace
}  // namespace weft::test
