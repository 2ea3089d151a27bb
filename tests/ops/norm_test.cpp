// RMSNorm and LayerNorm against float64 loops.
#include "weft/ops/norm.h"

#include <cstring>

#include "tests/ops/row_check.h"
#include "tests/reference/norm.h"
#include "weft/ops/elementwise.h"

namespace weft::test {
namespace {

constexpr double kEps = 1e-5;

// One case: shapes, dtypes of x and of the weight, what is undefined.
struct Case {
  Shape shape;
  DType dtype = kF32;
  DType weight_dtype = kF32;
  bool has_weight = true, has_bias = true;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all = [] {
    std::vector<Case> cases;
    for (int64_t width : {1, 2, 7, 8, 16, 31, 64, 67, 130, 257})
      for (DType dtype : {kF32, kBF16, kF64}) cases.push_back({{3, 5, width}, dtype, dtype == kF64 ? kF64 : kF32});
    cases.push_back({{0, 5}});
    cases.push_back({{4, 0}});
    cases.push_back({{9}});
    cases.push_back({{333, 33}});
    cases.push_back({{6, 24}, kBF16, kBF16});
    cases.push_back({{6, 24}, kF32, kF32, false, false});
    cases.push_back({{6, 24}, kF32, kF32, true, false});
    cases.push_back({{6, 24}, kF32, kF32, false, true});
    return cases;
  }();
  return all;
}

Tensor shifted_normal(const Shape& shape, std::string_view name, DType dtype) {  // mean away from zero
  Tensor x = random_normal(shape, name, kF64), y = Tensor::empty(shape, dtype);
  for (int64_t i = 0; i < x.num_elements(); ++i) {
    double value = x.data<double>()[i] * 2 + 3;
    if (dtype == kF64) y.mutable_data<double>()[i] = value;
    else if (dtype == kF32) y.mutable_data<float>()[i] = static_cast<float>(value);
    else y.mutable_data<BFloat16>()[i] = BFloat16(static_cast<float>(value));
  }
  return y;
}

// Forward and backward of x, which may be any view, against the reference.
void check(const Tensor& x, const Tensor& dy, const Tensor& weight, const Tensor& bias, const std::string& what) {
  size_t width = static_cast<size_t>(x.shape().back());
  Numbers w = weight.defined() ? values(weight) : Numbers(), b = bias.defined() ? values(bias) : Numbers();
  reference::Norm rms = reference::norm(values(x), width, w, {}, kEps, false, values(dy));
  auto [y, inv_rms] = ops::rms_norm(x, weight, kEps);
  expect_close(y, rms.y, what + " rms y");
  if (width) expect_close(inv_rms, rms.inv, what + " inv_rms");
  auto [dx, dweight] = ops::rms_norm_backward(dy, x, weight, inv_rms);
  expect_close(dx, rms.dx, what + " rms dx");
  EXPECT_EQ(dweight.defined(), weight.defined());
  if (weight.defined()) expect_close(dweight, rms.dweight, what + " rms dweight", x.dtype() == kF64 ? 1e-11 : 1e-4);

  reference::Norm layer = reference::norm(values(x), width, w, b, kEps, true, values(dy));
  ops::LayerNorm out = ops::layer_norm(x, weight, bias, kEps);
  // Two nearly equal numbers in a row of two have a small deviation, which magnifies rounding.
  double loose = x.dtype() == kF32 ? 1e-4 : tolerance(x.dtype());
  expect_close(out.y, layer.y, what + " layer y", loose);
  if (width)
    expect_close(out.mean, layer.mean, what + " mean"), expect_close(out.inv_std, layer.inv, what + " inv_std", loose);
  ops::LayerNormGrads grads = ops::layer_norm_backward(dy, x, weight, out.mean, out.inv_std);
  expect_close(grads.dx, layer.dx, what + " layer dx", 5 * loose);
  expect_close(grads.dbias, layer.dbias, what + " dbias", x.dtype() == kF64 ? 1e-11 : 1e-4);
  EXPECT_EQ(grads.dweight.defined(), weight.defined());
  if (weight.defined())
    expect_close(grads.dweight, layer.dweight, what + " layer dweight", x.dtype() == kF64 ? 1e-11 : 2e-4);
}

TEST(Norm, EqualsReferenceForAllShapesDtypesAndInstructionSets) {
  for_each_isa([] {
    for (const Case& c : cases()) {
      Tensor x = shifted_normal(c.shape, "x", c.dtype), dy = random_normal(c.shape, "dy", c.dtype);
      int64_t width = c.shape.back();
      Tensor weight = c.has_weight ? random_normal({width}, "weight", c.weight_dtype) : Tensor();
      Tensor bias = c.has_bias ? random_normal({width}, "bias", c.weight_dtype) : Tensor();
      check(x, dy, weight, bias, str(x, " weight ", c.weight_dtype));
    }
  });
}

TEST(Norm, ReadsStridedViews) {
  for (DType dtype : {kF32, kBF16, kF64}) {
    DType weights = dtype == kF64 ? kF64 : kF32;
    Tensor heads = fused_heads(2, 5, 3, 16, "qkv", dtype), dheads = fused_heads(2, 5, 3, 16, "dqkv", dtype);
    check(heads, dheads, random_normal({16}, "w", weights), {}, "heads");
    Tensor across = random_normal({16, 7}, "x", dtype).transpose(0, 1);  // last dimension not contiguous
    check(across, random_normal({7, 16}, "dy", dtype), random_normal({16}, "w", weights), {}, "transposed");
    Tensor repeated = random_normal({1, 16}, "x", dtype).expand({4, 16});
    check(repeated, random_normal({1, 16}, "dy", dtype).expand({4, 16}), {}, {}, "expanded");
    Tensor deep = random_normal({3, 2, 3, 2, 5}, "x", dtype).permute({3, 1, 2, 0, 4});
    check(deep, random_normal({2, 2, 3, 3, 5}, "dy", dtype), {}, {}, "four levels");
  }
}

TEST(Norm, IsExactAtExtremes) {
  Tensor zeros = Tensor::zeros({2, 9});
  auto [y, inv] = ops::rms_norm(zeros, {}, kEps);
  expect_close(y, Numbers(18, 0.0), "zeros");
  Tensor equal = Tensor::full({2, 67}, 1e4);
  expect_close(ops::layer_norm(equal, {}, {}, kEps).y, Numbers(134, 0.0), "all equal", 1e-3);
  Tensor offset = Tensor::from<float>({10001, 10002, 10003, 10004}, {1, 4});  // cancellation
  reference::Norm want = reference::norm(values(offset), 4, {}, {}, kEps, true, {});
  expect_close(ops::layer_norm(offset, {}, {}, kEps).y, want.y, "offset", 1e-5);
}

TEST(Norm, GradientEqualsCentralDifferences) {
  Tensor x = random_normal({3, 5}, "x", kF64), w = random_normal({5}, "w", kF64), b = random_normal({5}, "b", kF64);
  Tensor dy = random_normal({3, 5}, "dy", kF64);
  auto rms = [&] { return dot(ops::rms_norm(x, w, kEps).y, dy); };
  auto [dx, dweight] = ops::rms_norm_backward(dy, x, w, ops::rms_norm(x, w, kEps).inv_rms);
  expect_close(dx, central_differences(x, rms), "rms dx", 1e-8);
  expect_close(dweight, central_differences(w, rms), "rms dweight", 1e-8);
  auto layer = [&] { return dot(ops::layer_norm(x, w, b, kEps).y, dy); };
  ops::LayerNorm kept = ops::layer_norm(x, w, b, kEps);
  ops::LayerNormGrads grads = ops::layer_norm_backward(dy, x, w, kept.mean, kept.inv_std);
  expect_close(grads.dx, central_differences(x, layer), "layer dx", 1e-8);
  expect_close(grads.dweight, central_differences(w, layer), "layer dweight", 1e-8);
  expect_close(grads.dbias, central_differences(b, layer), "layer dbias", 1e-8);
}

TEST(Norm, RepeatsBitForBitWithAnyThreadCount) {
  Tensor x = random_normal({1501, 67}, "x"), dy = random_normal({1501, 67}, "dy"), w = random_normal({67}, "w");
  expect_same_for_all_threads([&]() -> std::vector<Tensor> {
    auto [y, inv] = ops::rms_norm(x, w, kEps);
    auto [dx, dweight] = ops::rms_norm_backward(dy, x, w, inv);
    ops::LayerNorm layer = ops::layer_norm(x, w, w, kEps);
    ops::LayerNormGrads grads = ops::layer_norm_backward(dy, x, w, layer.mean, layer.inv_std);
    return {y, inv, dx, dweight, layer.y, layer.mean, layer.inv_std, grads.dx, grads.dweight, grads.dbias};
  });
}

void expect_same_bits(const Tensor& got, const Tensor& want, const std::string& what) {
  ASSERT_EQ(got.shape(), want.shape()) << what;
  ASSERT_EQ(got.dtype(), want.dtype()) << what;
  const auto bytes = static_cast<size_t>(want.num_elements()) * static_cast<size_t>(size_of(want.dtype()));
  EXPECT_EQ(std::memcmp(got.raw(), want.raw(), bytes), 0) << what;
}

// Norms of x + added, with a gradient of the sum, against add() and the norm one after the other.
void check_added(const Tensor& x, const Tensor& added, const Tensor& weight, const Tensor& bias, const Tensor& dy,
                 const Tensor& dsum, const std::string& what) {
  const Tensor sum = ops::add(x, added);
  {
    auto [y, inv_rms] = ops::rms_norm(sum, weight, kEps);
    auto [dx, dweight] = ops::rms_norm_backward(dy, sum, weight, inv_rms);
    auto [got_sum, got] = ops::add_rms_norm(x, added, weight, kEps);
    expect_same_bits(got_sum, sum, what + " sum");
    expect_same_bits(got.y, y, what + " rms y");
    expect_same_bits(got.inv_rms, inv_rms, what + " inv_rms");
    ops::RmsNormGrads grads = ops::rms_norm_backward(dy, got_sum, weight, got.inv_rms, dsum);
    expect_same_bits(grads.dx, ops::add(dsum, dx), what + " rms dx");
    if (weight.defined()) expect_same_bits(grads.dweight, dweight, what + " rms dweight");
  }
  ops::LayerNorm norm = ops::layer_norm(sum, weight, bias, kEps);
  ops::LayerNormGrads want = ops::layer_norm_backward(dy, sum, weight, norm.mean, norm.inv_std);
  auto [got_sum, got] = ops::add_layer_norm(x, added, weight, bias, kEps);
  expect_same_bits(got_sum, sum, what + " sum");
  expect_same_bits(got.y, norm.y, what + " layer y");
  expect_same_bits(got.mean, norm.mean, what + " mean");
  expect_same_bits(got.inv_std, norm.inv_std, what + " inv_std");
  ops::LayerNormGrads grads = ops::layer_norm_backward(dy, got_sum, weight, got.mean, got.inv_std, dsum);
  expect_same_bits(grads.dx, ops::add(dsum, want.dx), what + " layer dx");
  expect_same_bits(grads.dbias, want.dbias, what + " dbias");
  if (weight.defined()) expect_same_bits(grads.dweight, want.dweight, what + " layer dweight");
}

TEST(Norm, OfASumHasTheBitsOfTheSumAndThenTheNorm) {
  for_each_isa([] {
    for (const Case& c : cases()) {
      const int64_t width = c.shape.back();
      auto made = [&](std::string_view name) { return random_normal(c.shape, name, c.dtype); };
      check_added(shifted_normal(c.shape, "x", c.dtype), made("added"),
                  c.has_weight ? random_normal({width}, "weight", c.weight_dtype) : Tensor(),
                  c.has_bias ? random_normal({width}, "bias", c.weight_dtype) : Tensor(), made("dy"), made("dsum"),
                  str(c.shape, " ", c.dtype));
    }
  });
}

TEST(Norm, OfASumReadsStridedViews) {
  for (DType dtype : {kF32, kBF16, kF64}) {
    auto across = [&](std::string_view name) { return random_normal({16, 7}, name, dtype).transpose(0, 1); };
    auto repeated = [&](std::string_view name) { return random_normal({1, 16}, name, dtype).expand({7, 16}); };
    check_added(across("x"), repeated("added"), {}, {}, repeated("dy"), across("dsum"), str("across ", dtype));
    check_added(repeated("x"), across("added"), {}, {}, across("dy"), repeated("dsum"), str("repeated ", dtype));
  }
}

TEST(Norm, SaysWhatIsWrong) {
  Tensor x = Tensor::zeros({2, 8}), w = Tensor::zeros({8}), inv = Tensor::zeros({2});
  expect_errors({
      {[&] {
         ops::rms_norm(Tensor::zeros({2, 8}, kI32), w, kEps);
       },
       {"rms_norm: x is [2, 8] i32", "f32, bf16 or f64"}},
      {[&] { ops::rms_norm(Tensor(), w, kEps); }, {"rms_norm: x is"}},
      {[&] { ops::rms_norm(x, Tensor::zeros({7}), kEps); },
       {"rms_norm: weight is [7] f32", "x is [2, 8]", "must be [8]"}},
      {[&] { ops::rms_norm(x, Tensor::zeros({8}, kBF16), kEps); }, {"weight is [8] bf16", "f32"}},
      {[&] { ops::rms_norm(x, w, -1); }, {"eps is -1", "negative"}},
      {[&] {
         ops::layer_norm(x, w, Tensor::zeros({1, 8}), kEps);
       },
       {"layer_norm: bias is [1, 8]", "[8]"}},
      {[&] {
         ops::rms_norm_backward(Tensor::zeros({8, 2}), x, w, inv);
       },
       {"rms_norm_backward: dy is [8, 2]", "x is [2, 8]"}},
      {[&] { ops::rms_norm_backward(x, x, w, Tensor::zeros({3})); }, {"inv_rms is [3]", "forward returned"}},
      {[&] { ops::layer_norm_backward(x, x, w, inv, Tensor::zeros({2}, kF64)); },
       {"inv_std is [2] f64", "forward returned"}},
      {[&] {
         ops::add_rms_norm(x, Tensor::zeros({1, 8}), w, kEps);
       },
       {"add_rms_norm: added is [1, 8]", "x is [2, 8]", "shape, dtype and device"}},
      {[&] {
         ops::add_layer_norm(x, Tensor::zeros({2, 8}, kF64), w, w, kEps);
       },
       {"add_layer_norm: added is [2, 8] f64", "x is [2, 8] f32"}},
      {[&] { ops::add_rms_norm(x, x, Tensor::zeros({7}), kEps); }, {"add_rms_norm: weight is [7]"}},
      {[&] { ops::add_layer_norm(x, x, w, w, -1); }, {"add_layer_norm: eps is -1"}},
      {[&] { ops::rms_norm_backward(x, x, w, inv, Tensor::zeros({8})); },
       {"rms_norm_backward: dsum is [8]", "x is [2, 8]"}},
      {[&] {
         ops::layer_norm_backward(x, x, w, inv, inv, Tensor::zeros({2, 8}, kBF16));
       },
       {"layer_norm_backward: dsum is [2, 8] bf16"}},
  });
}

}  // namespace
}  // namespace weft::test
