// Rotary phases and short causal convolution against float64 loops.
#include "weft/ops/sequence.h"

#include <numbers>

#include "tests/ops/row_check.h"
#include "tests/reference/conv.h"
#include "tests/reference/rotary.h"

namespace weft::test {
namespace {

// Positions [B, T] that differ between rows and jump, as in a shard of a sequence.
Tensor some_positions(int64_t B, int64_t T) {
  Tensor p = Tensor::empty({B, T}, kI32);
  for (int64_t i = 0; i < B * T; ++i)
    p.mutable_data<int32_t>()[i] = static_cast<int32_t>(i % T * (i % T < 2 ? 1 : 37) + i / T * 1000);
  return p;
}
std::vector<int64_t> integers(const Tensor& t) {
  std::vector<int64_t> result;
  for (double x : values(t)) result.push_back(static_cast<int64_t>(x));
  return result;
}

void check_rotary(const Tensor& x, const Tensor& dy, const ops::RotaryOptions& options, double amplitude,
                  const std::string& what) {
  Tensor positions = some_positions(x.size(0), x.size(1));
  ops::RotaryTable table = ops::rotary_table(positions, x.size(3), options);
  std::vector<double> frequencies = ops::rotary_frequencies(x.size(3), options);
  double allowed = x.dtype() == kF64 ? 5e-7 : tolerance(x.dtype());  // the table is f32
  auto reference = [&](const Tensor& in, double direction) {
    return reference::rotary(values(in), integers(positions), x.size(2), x.size(3), frequencies, amplitude,
                             options.interleaved, direction);
  };
  expect_close(ops::rotary(x, table), reference(x, 1), what + " y", allowed);
  expect_close(ops::rotary_backward(dy, table), reference(dy, -1), what + " dx", allowed);
}

TEST(Rotary, EqualsReferenceForAllWidthsDtypesAndInstructionSets) {
  for_each_isa([] {
    for (DType dtype : {kF32, kBF16, kF64})
      for (bool interleaved : {false, true})
        for (int64_t width : {2, 6, 8, 16, 18, 30, 34, 64, 70, 128}) {
          Tensor x = random_normal({2, 3, 2, width}, "x", dtype), dy = random_normal({2, 3, 2, width}, "dy", dtype);
          std::string what = str(x, interleaved ? " interleaved" : " half");
          check_rotary(x, dy, {.interleaved = interleaved}, 1, what);
          if (width % 4 == 0) check_rotary(x, dy, {.interleaved = interleaved, .fraction = 0.5}, 1, what + " fraction");
        }
  });
}

TEST(Rotary, ReadsHeadsOfAFusedTensor) {
  for (DType dtype : {kF32, kBF16, kF64})
    check_rotary(fused_heads(2, 5, 3, 16, "qkv", dtype), fused_heads(2, 5, 3, 16, "d", dtype), {}, 1, "heads");
  Tensor transposed = random_normal({2, 5, 16, 3}, "x").transpose(2, 3);
  check_rotary(transposed, transposed, {}, 1, "transposed");
}

TEST(Rotary, AcceptsNoTokens) {
  for (Shape shape : {Shape{0, 3, 2, 8}, Shape{2, 0, 2, 8}, Shape{2, 3, 0, 8}}) {
    Tensor x = Tensor::empty(shape);
    ops::RotaryTable table = ops::rotary_table(Tensor::zeros({shape[0], shape[1]}, kI64), 8, {});
    EXPECT_EQ(ops::rotary(x, table).shape(), shape);
  }
}

TEST(Rotary, KeepsFarPositionsExact) {
  int64_t far = 1'000'003;
  ops::RotaryTable table = ops::rotary_table(Tensor::from<int64_t>({far}, {1, 1}), 4, {});
  EXPECT_FLOAT_EQ(table.cos.data<float>()[0], static_cast<float>(std::cos(1000003.0)));
  EXPECT_FLOAT_EQ(table.sin.data<float>()[1], static_cast<float>(std::sin(10000.03)));
}

TEST(Rotary, CopiesAnglesOfEqualRows) {
  Tensor positions = Tensor::arange(7).unsqueeze(0).expand({3, 7});
  ops::RotaryTable table = ops::rotary_table(positions, 8, {});
  Numbers cos = values(table.cos);
  for (size_t i = 0; i < 28; ++i) EXPECT_EQ(cos[i], cos[56 + i]);
}

TEST(RotaryFrequencies, FollowTheScalings) {
  std::vector<double> plain = ops::rotary_frequencies(64, {.base = 500000});
  EXPECT_DOUBLE_EQ(plain[0], 1);
  EXPECT_DOUBLE_EQ(plain[8], std::pow(500000.0, -0.25));
  std::vector<double> partial = ops::rotary_frequencies(64, {.fraction = 0.25});
  ASSERT_EQ(partial.size(), 8u);
  EXPECT_DOUBLE_EQ(partial[4], 0.01);
  std::vector<double> linear = ops::rotary_frequencies(64, {.base = 500000, .linear = {{.factor = 4}}});
  for (size_t m = 0; m < 32; ++m) EXPECT_DOUBLE_EQ(linear[m], plain[m] / 4);

  ops::RotaryOptions::Llama3 l3{.factor = 8, .low_freq_factor = 1, .high_freq_factor = 4, .original_context = 8192};
  std::vector<double> llama = ops::rotary_frequencies(64, {.base = 500000, .llama3 = l3});
  int kept = 0, stretched = 0;
  for (size_t m = 0; m < 32; ++m) {
    double f = plain[m], wavelength = 2 * std::numbers::pi / f, want;
    if (wavelength < 8192.0 / 4) want = f, ++kept;
    else if (wavelength > 8192.0) want = f / 8, ++stretched;
    else {
      double s = (8192.0 / wavelength - 1) / 3;
      want = (1 - s) * f / 8 + s * f;
    }
    EXPECT_NEAR(llama[m] / want, 1, 1e-12) << m;
  }
  EXPECT_TRUE(kept > 5 && stretched > 5 && kept + stretched < 32);
}

// K 64, base 10000, original context 4096: pair m turns 4096 / (2 pi) * 10000^(-m/32) times, 32 times at m = 10.47 and
// once at m = 22.51, so the ramp runs from pair 10 to pair 23.
TEST(RotaryFrequencies, YarnInterpolatesSlowPairsOnly) {
  std::vector<double> plain = ops::rotary_frequencies(64, {});
  std::vector<double> yarn = ops::rotary_frequencies(64, {.yarn = {{.factor = 4}}});
  for (size_t m = 0; m <= 10; ++m) EXPECT_DOUBLE_EQ(yarn[m], plain[m]);
  for (size_t m = 11; m < 23; ++m) {
    double share = (static_cast<double>(m) - 10) / 13;
    EXPECT_NEAR(yarn[m] / plain[m], share / 4 + 1 - share, 1e-12) << m;
  }
  for (size_t m = 23; m < 32; ++m) EXPECT_DOUBLE_EQ(yarn[m], plain[m] / 4);
  Tensor x = random_normal({2, 3, 2, 64}, "x");
  check_rotary(x, x, {.yarn = {{.factor = 4}}}, 0.1 * std::log(4.0) + 1, "yarn");
  check_rotary(x, x, {.yarn = {{.factor = 4, .attention_factor = 0.5}}}, 0.5, "yarn with a factor");
  check_rotary(x, x, {.yarn = {{.factor = 1}}}, 1, "yarn of nothing");
}

TEST(Rotary, RepeatsBitForBitWithAnyThreadCount) {
  Tensor x = random_normal({3, 67, 5, 34}, "x");
  ops::RotaryTable table = ops::rotary_table(some_positions(3, 67), 34, {});
  expect_same_for_all_threads([&]() -> std::vector<Tensor> {
    return {ops::rotary(x, table), ops::rotary_backward(x, table)};
  });
}

TEST(Rotary, SaysWhatIsWrong) {
  Tensor positions = Tensor::zeros({2, 3}, kI32), x = Tensor::zeros({2, 3, 2, 8});
  ops::RotaryTable table = ops::rotary_table(positions, 8, {});
  ops::RotaryOptions::Llama3 bad_llama{.low_freq_factor = 4, .high_freq_factor = 1};
  ops::RotaryOptions::Yarn bad_yarn{.beta_fast = 1, .beta_slow = 32};
  expect_errors({
      {[&] {
         ops::rotary_table(Tensor::zeros({2, 3}), 8, {});
       },
       {"rotary_table: positions are [2, 3] f32", "i32 or i64"}},
      {[&] { ops::rotary_table(positions, 7, {}); }, {"a head of 7 channels", "even number"}},
      {[&] { ops::rotary_frequencies(8, {.fraction = 0.3}); }, {"fraction 0.3", "even number"}},
      {[&] { ops::rotary_frequencies(8, {.base = 0}); }, {"base is 0"}},
      {[&] { ops::rotary_frequencies(8, {.linear = {{.factor = 0}}}); }, {"factor is 0", "positive"}},
      {[&] { ops::rotary_frequencies(8, {.linear = {{2.0}}, .yarn = {{.factor = 2}}}); },
       {"2 scalings", "at most one"}},
      {[&] { ops::rotary_frequencies(8, {.llama3 = bad_llama}); }, {"low_freq_factor 4", "high_freq_factor 1"}},
      {[&] { ops::rotary_frequencies(8, {.yarn = bad_yarn}); }, {"beta_fast 1", "beta_slow 32"}},
      {[&] {
         ops::rotary(Tensor::zeros({2, 3, 16}), table);
       },
       {"rotary: x is [2, 3, 16]", "[B, T, H, K]"}},
      {[&] {
         ops::rotary(Tensor::zeros({2, 4, 2, 8}), table);
       },
       {"rotary: x is [2, 4, 2, 8]", "cos is [2, 3, 4]"}},
      {[&] {
         ops::rotary_backward(Tensor::zeros({2, 3, 2, 6}), table);
       },
       {"rotary_backward", "cos is [2, 3, 4]"}},
      {[&] {
         ops::rotary(Tensor::zeros({2, 3, 2, 8}, kI32), table);
       },
       {"rotary: x is", "f32, bf16 or f64"}},
  });
}

// Causal convolution

// Documents [B, T] of uneven lengths, one of them a single token; the number of a document comes back later.
Tensor some_documents(int64_t B, int64_t T) {
  Tensor t = Tensor::empty({B, T}, kI32);
  for (int64_t i = 0; i < B * T; ++i) t.mutable_data<int32_t>()[i] = i % T < 3 ? 0 : i % T == 3 ? 1 : i % T < 9 ? 2 : 0;
  return t;
}

void check_conv(const Tensor& x, const Tensor& dy, int64_t W, DType weights, bool has_bias, bool has_documents,
                const std::string& what) {
  const int64_t B = x.size(0), T = x.size(1), D = x.size(2);
  Tensor weight = random_normal({D, W}, "weight", weights),
         bias = has_bias ? random_normal({D}, "bias", weights) : Tensor();
  Tensor documents = has_documents ? some_documents(B, T) : Tensor();
  reference::Conv want =
      reference::causal_conv(values(x), B, T, D, values(weight), W, has_bias ? values(bias) : Numbers(),
                             has_documents ? integers(documents) : std::vector<int64_t>(), values(dy));
  expect_close(ops::causal_conv(x, weight, bias, documents), want.y, what + " y", x.dtype() == kBF16 ? 2e-2 : 0);
  ops::CausalConvGrads grads = ops::causal_conv_backward(dy, x, weight, has_bias, documents);
  expect_close(grads.dx, want.dx, what + " dx", x.dtype() == kBF16 ? 2e-2 : 0);
  expect_close(grads.dweight, want.dweight, what + " dweight");
  EXPECT_EQ(grads.dbias.defined(), has_bias);
  if (has_bias) expect_close(grads.dbias, want.dbias, what + " dbias");
}

TEST(CausalConv, EqualsReferenceForAllShapesDtypesAndInstructionSets) {
  for_each_isa([] {
    for (DType dtype : {kF32, kBF16, kF64}) {
      DType weights = dtype == kF64 ? kF64 : kF32;
      for (int64_t D : {1, 16, 67})
        for (int64_t W : {1, 4, 8, 17})
          for (bool documents : {false, true}) {
            Tensor x = random_normal({2, 13, D}, "x", dtype), dy = random_normal({2, 13, D}, "dy", dtype);
            check_conv(x, dy, W, weights, W % 2 == 0, documents, str(x, " W ", W, documents ? " documents" : ""));
          }
      for (Shape shape : {Shape{0, 5, 3}, Shape{2, 0, 3}, Shape{2, 5, 0}, Shape{1, 1, 8}})
        check_conv(random_normal(shape, "x", dtype), random_normal(shape, "dy", dtype), 4, weights, true, true,
                   str(shape));
    }
    check_conv(random_normal({2, 5, 16}, "x", kBF16), random_normal({2, 5, 16}, "dy", kBF16), 4, kBF16, true, false,
               "bf16 weight");
  });
}

TEST(CausalConv, ReadsStridedViews) {
  for (DType dtype : {kF32, kBF16, kF64}) {
    DType weights = dtype == kF64 ? kF64 : kF32;
    Tensor x = random_normal({2, 13, 48}, "x", dtype).slice(2, 8, 25),
           dy = random_normal({13, 2, 17}, "dy", dtype).transpose(0, 1);
    check_conv(x, dy, 4, weights, true, true, "slices");
    check_conv(random_normal({2, 17, 13}, "x", dtype).transpose(1, 2), dy, 4, weights, true, false,
               "transposed channels");
  }
}

// Also of rows that are shorter than the window of four tokens.
TEST(CausalConv, GradientEqualsCentralDifferences) {
  Tensor w = random_normal({3, 4}, "w", kF64), b = random_normal({3}, "b", kF64);
  for (int64_t T : {1, 2, 5}) {
    Tensor x = random_normal({2, T, 3}, "x", kF64), dy = random_normal({2, T, 3}, "dy", kF64),
           documents = some_documents(2, T);
    auto loss = [&] { return dot(ops::causal_conv(x, w, b, documents), dy); };
    ops::CausalConvGrads grads = ops::causal_conv_backward(dy, x, w, true, documents);
    expect_close(grads.dx, central_differences(x, loss), str("dx of ", T, " tokens"), 1e-8);
    expect_close(grads.dweight, central_differences(w, loss), str("dweight of ", T, " tokens"), 1e-8);
    expect_close(grads.dbias, central_differences(b, loss), str("dbias of ", T, " tokens"), 1e-8);
  }
}

TEST(CausalConv, RepeatsBitForBitWithAnyThreadCount) {
  Tensor x = random_normal({3, 501, 67}, "x"), dy = random_normal({3, 501, 67}, "dy"), w = random_normal({67, 4}, "w");
  expect_same_for_all_threads([&]() -> std::vector<Tensor> {
    ops::CausalConvGrads grads = ops::causal_conv_backward(dy, x, w, true, some_documents(3, 501));
    return {ops::causal_conv(x, w, {}, {}), grads.dx, grads.dweight, grads.dbias};
  });
}

TEST(CausalConv, SaysWhatIsWrong) {
  Tensor x = Tensor::zeros({2, 5, 8}), w = Tensor::zeros({8, 4});
  expect_errors({
      {[&] {
         ops::causal_conv(Tensor::zeros({5, 8}), w, {}, {});
       },
       {"causal_conv: x is [5, 8]", "[B, T, D]"}},
      {[&] {
         ops::causal_conv(x, Tensor::zeros({4, 8}), {}, {});
       },
       {"weight is [4, 8]", "x is [2, 5, 8]", "[8, W]"}},
      {[&] {
         ops::causal_conv(x, Tensor::zeros({8, 0}), {}, {});
       },
       {"weight is [8, 0]", "at least 1"}},
      {[&] {
         ops::causal_conv(x, Tensor::zeros({8, 4}, kF64), {}, {});
       },
       {"weight is [8, 4] f64", "f32"}},
      {[&] { ops::causal_conv(x, w, Tensor::zeros({4}), {}); }, {"bias is [4]", "must be [8]"}},
      {[&] {
         ops::causal_conv(x, w, {}, Tensor::zeros({2, 5}));
       },
       {"documents are [2, 5] f32", "i32"}},
      {[&] {
         ops::causal_conv_backward(Tensor::zeros({2, 4, 8}), x, w, false, {});
       },
       {"causal_conv_backward: dy is [2, 4, 8]"}},
  });
}

}  // namespace
}  // namespace weft::test
