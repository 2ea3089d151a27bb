// Cross-entropy against float64 loops.
#include "weft/ops/loss.h"

#include <limits>

#include "tests/ops/row_check.h"
#include "tests/reference/loss.h"

namespace weft::test {
namespace {

// Some ignored, the others spread over the vocabulary.
Tensor some_targets(int64_t N, int64_t V) {
  Tensor t = Tensor::empty({N}, kI32);
  for (int64_t n = 0; n < N; ++n)
    t.mutable_data<int32_t>()[n] = n % 5 == 3 ? -1 - static_cast<int32_t>(n) : static_cast<int32_t>(n * 7 % V);
  return t;
}
std::vector<int64_t> integers(const Tensor& t) {
  std::vector<int64_t> result;
  for (double x : values(t)) result.push_back(static_cast<int64_t>(x));
  return result;
}
DType statistics(DType dtype) { return dtype == kF64 ? kF64 : kF32; }

void check(const Tensor& logits, const Tensor& targets, const std::string& what) {
  Tensor dlosses = random_normal({logits.size(0)}, "dlosses", statistics(logits.dtype()));
  reference::CrossEntropy want =
      reference::cross_entropy(values(logits), static_cast<size_t>(logits.size(1)), integers(targets), values(dlosses));
  auto [losses, lse] = ops::cross_entropy(logits, targets);
  expect_close(losses, want.losses, what + " losses");
  expect_close(lse, want.lse, what + " lse");
  // lse in f32 is off by up to 6e-8 of itself, and exp(z - lse) by as much.
  double allowed = logits.dtype() == kF32 ? 2e-5 + 2e-7 * std::abs(want.lse.empty() ? 0 : want.lse[0]) : 0;
  expect_close(ops::cross_entropy_backward(dlosses, logits, targets, lse), want.dlogits, what + " dlogits", allowed);
}

TEST(CrossEntropy, EqualsReferenceForAllShapesDtypesAndInstructionSets) {
  for_each_isa([] {
    for (DType dtype : {kF32, kBF16, kF64}) {
      for (int64_t V : {1, 2, 7, 16, 31, 67, 257})
        check(random_normal({11, V}, "z", dtype), some_targets(11, V), str(dtype, " V ", V));
      check(random_normal({0, 7}, "z", dtype), some_targets(0, 7), "no tokens");
      check(random_normal({7, 6}, "z", dtype).transpose(0, 1), some_targets(6, 7), "transposed");
      check(random_normal({6, 24}, "z", dtype).slice(1, 3, 20), some_targets(6, 17), "slice");
      check(random_normal({4, 7}, "z", dtype), Tensor::from<int32_t>({-1, -1, -100, -7}, {4}), "all ignored");
    }
  });
}

TEST(CrossEntropy, IsSafeAtExtremes) {
  const float f = std::numeric_limits<float>::infinity();
  check(Tensor::from<float>({1e4, 1e4f - 2, -1e4, 0, 5}, {1, 5}), Tensor::from<int32_t>({1}, {1}), "large");
  check(Tensor::from<float>({1e4, -1e4, 0}, {1, 3}), Tensor::from<int32_t>({1}, {1}), "wrong and certain");
  check(Tensor::full({2, 9}, -1e4), Tensor::from<int32_t>({0, 8}, {2}), "all equal");
  check(Tensor::from<float>({-f, 1, 2, -f}, {1, 4}), Tensor::from<int32_t>({2}, {1}), "masked");
  // A certain and right prediction keeps its tiny gradient.
  Tensor z = Tensor::from<float>({12, 0}, {1, 2}), target = Tensor::from<int32_t>({0}, {1}), one = Tensor::full({1}, 1);
  auto [losses, lse] = ops::cross_entropy(z, target);
  EXPECT_NEAR(losses.item() / std::log1p(std::exp(-12.0)), 1, 0.1);
  EXPECT_LT(ops::cross_entropy_backward(one, z, target, lse).data<float>()[0], 0);
}

// Softened targets: smoothing, class weights, both; a class of weight 0 among them.
TEST(CrossEntropy, OfSoftenedTargetsEqualsReference) {
  for_each_isa([] {
    for (DType dtype : {kF32, kBF16, kF64})
      for (int64_t V : {1, 7, 16, 67})
        for (double smoothing : {0.0, 0.1, 1.0})
          for (bool has_weights : {false, true}) {
            Tensor logits = random_normal({9, V}, "z", dtype), targets = some_targets(9, V);
            Tensor dlosses = random_normal({9}, "d", statistics(dtype));
            Numbers w(static_cast<size_t>(V), 1.0);
            if (has_weights)
              for (size_t v = 0; v < w.size(); ++v) w[v] = 0.25 * static_cast<double>(v % 5);
            ops::CrossEntropyTargets options{smoothing, {}};
            if (has_weights) options.class_weights = reference::make({V}, w, statistics(dtype));
            reference::CrossEntropy want = reference::softened_cross_entropy(
                values(logits), static_cast<size_t>(V), integers(targets), values(dlosses), smoothing, w);
            auto [losses, lse] = ops::cross_entropy(logits, targets, options);
            const std::string what = str(dtype, " V ", V, " smoothing ", smoothing, has_weights ? " weighted" : "");
            expect_close(losses, want.losses, what + " losses");
            expect_close(ops::cross_entropy_backward(dlosses, logits, targets, lse, options), want.dlogits,
                         what + " dlogits");
            Tensor own = ops::target_weights(logits, targets, options);
            for (size_t n = 0; n < 9; ++n) {
              const int64_t t = integers(targets)[n];
              EXPECT_EQ(values(own)[n], t < 0 ? 0.0 : w[static_cast<size_t>(t)]) << what;
            }
          }
  });
}

TEST(CrossEntropy, AClassOfWeightZeroMayBeMaskedOut) {
  const float f = std::numeric_limits<float>::infinity();
  Tensor z = Tensor::from<float>({1, -f, 2}, {1, 3}), target = Tensor::from<int32_t>({2}, {1});
  ops::CrossEntropyTargets options{0.3, Tensor::from<float>({1, 0, 1}, {3})};
  auto [losses, lse] = ops::cross_entropy(z, target, options);
  EXPECT_NEAR(losses.item(), 0.7 * (lse.item() - 2) + 0.1 * (2 * lse.item() - 3), 1e-6);
  Tensor d = ops::cross_entropy_backward(Tensor::full({1}, 1), z, target, lse, options);
  EXPECT_EQ(values(d)[1], 0);
  EXPECT_TRUE(std::isfinite(values(d)[0]) && std::isfinite(values(d)[2]));
}

void check_kl(const Tensor& logits, const Tensor& target, const std::string& what) {
  Shape lead = logits.shape();
  lead.erase(lead.num_dims() - 1);
  Tensor dlosses = random_normal(lead, "d", statistics(logits.dtype()));
  reference::Kl want =
      reference::kl_divergence(values(logits), values(target), static_cast<size_t>(logits.size(-1)), values(dlosses));
  Tensor losses = ops::kl_divergence(logits, target);
  expect_close(losses, want.losses, what + " losses");
  auto [dlogits, dtarget] = ops::kl_divergence_backward(dlosses, logits, target, losses);
  expect_close(dlogits, want.dlogits, what + " dlogits");
  expect_close(dtarget, want.dtarget, what + " dtarget");
  EXPECT_FALSE(ops::kl_divergence_backward(dlosses, logits, target, losses, true, false).dtarget.defined());
}

TEST(KlDivergence, EqualsReferenceForAllShapesDtypesAndInstructionSets) {
  for_each_isa([] {
    for (DType dtype : {kF32, kBF16, kF64}) {
      for (int64_t V : {1, 2, 7, 16, 31, 67, 257})
        check_kl(random_normal({2, 5, V}, "z", dtype), random_normal({2, 5, V}, "t", dtype), str(dtype, " V ", V));
      check_kl(random_normal({0, 7}, "z", dtype), random_normal({0, 7}, "t", dtype), "no rows");
      check_kl(random_normal({7, 6}, "z", dtype).transpose(0, 1), random_normal({6, 7}, "t", dtype), "transposed");
      check_kl(random_normal({6, 24}, "z", dtype).slice(1, 3, 20), random_normal({6, 17}, "t", dtype), "slice");
    }
  });
}

TEST(KlDivergence, IsZeroForEqualRowsAndSafeAtExtremes) {
  for_each_isa([] {
    const float f = std::numeric_limits<float>::infinity();
    Tensor z = random_normal({3, 33}, "z");
    for (double loss : values(ops::kl_divergence(z, z))) EXPECT_EQ(loss, 0);
    check_kl(Tensor::from<float>({1e4, -1e4, 0}, {1, 3}), Tensor::from<float>({1e4, -1e4, 3}, {1, 3}), "large");
    check_kl(Tensor::from<float>({-1e4, 1e4, 0}, {1, 3}), Tensor::from<float>({1e4, -1e4, 3}, {1, 3}), "opposite");
    check_kl(Tensor::from<float>({2, 1, -f}, {1, 3}), Tensor::from<float>({1, 2, -f}, {1, 3}), "masked alike");
    check_kl(Tensor::from<float>({2, 1, 3}, {1, 3}), Tensor::from<float>({1, 2, -f}, {1, 3}), "masked target");
    // A class that only the target holds possible: an infinite loss, a finite pull.
    Tensor x = Tensor::from<float>({0, -f}, {1, 2}), t = Tensor::from<float>({0, 0}, {1, 2}),
           one = Tensor::full({1}, 1);
    Tensor losses = ops::kl_divergence(x, t);
    EXPECT_EQ(losses.item(), f);
    EXPECT_EQ(values(ops::kl_divergence_backward(one, x, t, losses).dlogits), (Numbers{0.5, -0.5}));
    // A target without any class is left out.
    Tensor none = Tensor::full({1, 2}, -f);
    EXPECT_EQ(ops::kl_divergence(t, none).item(), 0);
    EXPECT_EQ(values(ops::kl_divergence_backward(one, t, none, Tensor::zeros({1})).dlogits), (Numbers{0, 0}));
  });
}

struct LinearCase {
  int64_t N, D, V, chunk;
  double softcap = 0;
};

void check_linear(const LinearCase& c, DType dtype, const Tensor& targets, const std::string& what) {
  Tensor x = random_normal({c.N, c.D}, "x", dtype), weight = random_normal({c.V, c.D}, "w", dtype);
  const double factor = 0.125;
  reference::LinearCrossEntropy want = reference::linear_cross_entropy(
      values(x), values(weight), static_cast<size_t>(c.D), integers(targets), factor, c.softcap);
  ops::LinearCrossEntropyOptions options{
      .factor = factor, .softcap = c.softcap, .chunk = c.chunk, .wants_dx = true, .wants_dweight = true};
  ops::LinearCrossEntropy got = ops::linear_cross_entropy(x, weight, targets, options);
  expect_close(got.losses, want.losses, what + " losses", 20 * tolerance(statistics(dtype)));
  EXPECT_NEAR(got.loss.item(), want.loss, 1e-4 * (1 + want.loss)) << what;
  EXPECT_EQ(got.loss.num_dims(), 0);
  EXPECT_EQ(got.dx.dtype(), dtype);
  EXPECT_EQ(got.dweight.dtype(), statistics(dtype));
  double allowed = dtype == kF64   ? 1e-11
                   : dtype == kF32 ? 5e-5
                                   : 2e-2;  // bf16: dlogits are rounded before the products
  expect_close(got.dx, want.dx, what + " dx", allowed);
  expect_close(got.dweight, want.dweight, what + " dweight", allowed);

  options.wants_dx = options.wants_dweight = false;
  ops::LinearCrossEntropy alone = ops::linear_cross_entropy(x, weight, targets, options);
  EXPECT_FALSE(alone.dx.defined() || alone.dweight.defined());
  EXPECT_EQ(alone.loss.item(), got.loss.item());
  options.wants_dweight = true;
  EXPECT_EQ(values(ops::linear_cross_entropy(x, weight, targets, options).dweight), values(got.dweight));
}

TEST(LinearCrossEntropy, EqualsReferenceForAllChunksDtypesAndInstructionSets) {
  for_each_isa([] {
    for (DType dtype : {kF32, kBF16, kF64})
      for (const LinearCase& c : {LinearCase{11, 8, 19, 0},
                                  {11, 8, 19, 1},
                                  {11, 8, 19, 4},
                                  {11, 8, 19, 100},
                                  {11, 8, 67, 4, 2.0},
                                  {1, 1, 1, 0},
                                  {13, 5, 2, 3, 30.0}})
        check_linear(c, dtype, some_targets(c.N, c.V),
                     str(dtype, " N ", c.N, " V ", c.V, " chunk ", c.chunk, " cap ", c.softcap));
  });
}

TEST(LinearCrossEntropy, LeavesIgnoredTokensOut) {
  for (DType dtype : {kF32, kBF16, kF64}) {
    Tensor ignored = Tensor::full({6}, -1, kI32);
    check_linear({6, 4, 9, 2}, dtype, ignored, "all ignored");
    Tensor some = Tensor::from<int32_t>({-1, -1, 3, -1, -1, -1}, {6});
    check_linear({6, 4, 9, 2}, dtype, some, "first chunk ignored");
    ops::LinearCrossEntropy none =
        ops::linear_cross_entropy(Tensor::empty({0, 4}, dtype), random_normal({9, 4}, "w", dtype),
                                  Tensor::empty({0}, kI32), {.wants_dx = true, .wants_dweight = true});
    EXPECT_EQ(none.loss.item(), 0);
    expect_close(none.dweight, Numbers(36, 0.0), "no tokens");
  }
}

TEST(LinearCrossEntropy, GradientEqualsCentralDifferences) {
  Tensor x = random_normal({5, 3}, "x", kF64), w = random_normal({7, 3}, "w", kF64), targets = some_targets(5, 7);
  for (double softcap : {0.0, 1.5}) {
    ops::LinearCrossEntropyOptions options{
        .factor = 0.3, .softcap = softcap, .chunk = 2, .wants_dx = true, .wants_dweight = true};
    auto loss = [&] { return ops::linear_cross_entropy(x, w, targets, options).loss.item(); };
    ops::LinearCrossEntropy got = ops::linear_cross_entropy(x, w, targets, options);
    expect_close(got.dx, central_differences(x, loss), "dx", 1e-8);
    expect_close(got.dweight, central_differences(w, loss), "dweight", 1e-8);
  }
}

TEST(CrossEntropy, RepeatsBitForBitWithAnyThreadCount) {
  Tensor z = random_normal({301, 257}, "z"), targets = some_targets(301, 257), dlosses = random_normal({301}, "d");
  // f64: oneDNN cuts a long sum of f32 by the number of threads.
  Tensor x = random_normal({301, 16}, "x", kF64), w = random_normal({257, 16}, "w", kF64);
  const ops::LinearCrossEntropyOptions options{.chunk = 100, .wants_dx = true, .wants_dweight = true};
  expect_same_for_all_threads([&]() -> std::vector<Tensor> {
    auto [losses, lse] = ops::cross_entropy(z, targets);
    ops::LinearCrossEntropy linear = ops::linear_cross_entropy(x, w, targets, options);
    return {losses,    lse,           ops::cross_entropy_backward(dlosses, z, targets, lse), linear.loss, linear.losses,
            linear.dx, linear.dweight};
  });
}

TEST(CrossEntropy, SaysWhatIsWrong) {
  Tensor z = Tensor::zeros({3, 8}), targets = Tensor::zeros({3}, kI32), x = Tensor::zeros({3, 4}),
         w = Tensor::zeros({8, 4});
  Tensor high = Tensor::from<int32_t>({0, -1, 8}, {3});
  expect_errors({
      {[&] { ops::cross_entropy(z, high); },
       {"cross_entropy: the target of token 2 is 8", "has 8 entries", "negative id"}},
      {[&] { ops::linear_cross_entropy(x, w, high, {}); }, {"linear_cross_entropy: the target of token 2 is 8"}},
      {[&] { ops::cross_entropy(z, Tensor::zeros({4}, kI32)); }, {"targets are [4] i32", "3 tokens", "[3] i32"}},
      {[&] { ops::cross_entropy(z, Tensor::zeros({3}, kI64)); }, {"targets are [3] i64"}},
      {[&] { ops::cross_entropy(z, targets, {.label_smoothing = 1.5}); }, {"label_smoothing is 1.5", "from 0 to 1"}},
      {[&] { ops::cross_entropy(z, targets, {.class_weights = Tensor::zeros({7})}); },
       {"class_weights are [7] f32 cpu, logits are [3, 8]", "[8] f32"}},
      {[&] {
         ops::kl_divergence(z, Tensor::zeros({3, 7}));
       },
       {"kl_divergence: the target is [3, 7]", "logits is [3, 8]"}},
      {[&] {
         ops::kl_divergence(z, Tensor::zeros({3, 8}, kBF16));
       },
       {"the target is [3, 8] bf16", "dtype"}},
      {[&] { ops::kl_divergence(targets, targets); }, {"kl_divergence: logits is [3] i32"}},
      {[&] { ops::kl_divergence_backward(Tensor::zeros({2}), z, z, Tensor::zeros({3})); }, {"dlosses is [2]"}},
      {[&] {
         ops::cross_entropy(Tensor::zeros({1, 3, 8}), targets);
       },
       {"logits are [1, 3, 8]", "[N, V]"}},
      {[&] { ops::cross_entropy_backward(Tensor::zeros({4}), z, targets, Tensor::zeros({3})); }, {"dlosses is [4]"}},
      {[&] { ops::cross_entropy_backward(Tensor::zeros({3}), z, targets, Tensor::zeros({3}, kF64)); },
       {"lse is [3] f64"}},
      {[&] {
         ops::linear_cross_entropy(x, Tensor::zeros({8, 5}), targets, {});
       },
       {"x is [3, 4]", "weight is [8, 5]"}},
      {[&] {
         ops::linear_cross_entropy(x, Tensor::zeros({8, 4}, kBF16), targets, {});
       },
       {"weight is [8, 4] bf16", "one dtype"}},
      {[&] { ops::linear_cross_entropy(x, w, targets, {.softcap = -1}); }, {"softcap is -1"}},
      {[&] { ops::linear_cross_entropy(x, w, targets, {.chunk = -1}); }, {"chunk is -1"}},
  });
}

}  // namespace
}  // namespace weft::test
