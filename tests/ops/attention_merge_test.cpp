// merge() of finished results: against one call over all keys, against a plain loop, and against finite differences.
#include "weft/ops/attention_merge.h"

#include "tests/ops/attention_case.h"
#include "tests/support/errors.h"

namespace weft {
namespace {

using namespace test;

ops::AttentionState state_of(const AttentionCase& c, int64_t begin, int64_t end) {
  ops::AttentionState state = ops::attention_state(c.q, c.v.size(3), c.options);
  ops::attend_block(state, c.q, c.k.slice(1, begin, end), c.v.slice(1, begin, end), c.queries,
                    part_of(c.keys, begin, end), c.options);
  return state;
}

TEST(AttentionMerge, OfTwoSetsOfKeysIsOneCallOverBoth) {
  for (DType dtype : {kF64, kF32, kBF16})
    for (auto normaliser : {ops::Normaliser::softmax, ops::Normaliser::sum, ops::Normaliser::signed_softmax})
      for (int64_t cut : {0, 1, 60, 107}) {
        AttentionCase c({2, 50, 107, 4, 2, 8, 5}, dtype, Order::offset, Order::shuffled);
        c.options.normaliser = normaliser;
        c.options.mask.window = 40;
        const ops::AttentionState whole = state_of(c, 0, 107);
        const ops::AttentionState merged = ops::merge(state_of(c, 0, cut), state_of(c, cut, 107));
        // Products of bf16 round weights, which are taken beside the largest score so far: another one for each set of keys.
        const bool rounds_weights = dtype == kBF16 && cpu::multiplies_bf16();
        const double tolerance = dtype == kF64 ? 1e-14 : rounds_weights ? 0x1p-8 : 1e-6;
        expect_near(merged.out, reference::numbers(whole.out), tolerance, str(dtype, " out, cut ", cut));
        expect_near(merged.lse, reference::numbers(whole.lse), std::min(tolerance, 1e-6),
                    str(dtype, " lse, cut ", cut));
      }
}

// out [B, T, H, V] = [1, 1, n, 2] and lse [1, 1, n]: one pair of results per head.
ops::AttentionState heads(std::initializer_list<double> lse) {
  const auto n = static_cast<int64_t>(lse.size());
  ops::AttentionState state{random_normal({1, 1, n, 2}, "out", kF64), Tensor::from(lse, {1, 1, n})};
  double* out = state.out.mutable_data<double>();
  size_t i = 0;
  for (double l : lse) {
    if (std::isinf(l)) out[2 * i] = out[2 * i + 1] = 0;
    ++i;
  }
  return state;
}

TEST(AttentionMerge, IsThePlainFormulaForResultsFarApartAndEmptyOnes) {
  constexpr double kNone = -INFINITY;
  const std::initializer_list<double> left = {kNone, kNone, -3, 700, 700, -5000, 2},
                                      right = {kNone, 1.5, kNone, 698, -700, 5000, 2};
  const ops::AttentionState a = heads(left), b = heads(right), y = ops::merge(a, b);
  for (int64_t h = 0; h < a.lse.num_elements(); ++h) {
    const double l_a = a.lse.data<double>()[h], l_b = b.lse.data<double>()[h], high = std::max(l_a, l_b);
    const double w_a = std::exp(l_a - high), w_b = std::exp(l_b - high);
    const bool is_empty = std::isinf(high);
    if (is_empty) EXPECT_EQ(y.lse.data<double>()[h], kNone);
    else EXPECT_NEAR(y.lse.data<double>()[h], high + std::log(w_a + w_b), 1e-12);
    for (int64_t i = 2 * h; i < 2 * h + 2; ++i) {
      const double out_a = a.out.data<double>()[i], out_b = b.out.data<double>()[i], out = y.out.data<double>()[i];
      if (is_empty) EXPECT_EQ(out, 0);
      else if (std::isinf(l_a)) EXPECT_EQ(out, out_b);  // exactly
      else if (std::isinf(l_b)) EXPECT_EQ(out, out_a);
      else EXPECT_NEAR(out, (w_a * out_a + w_b * out_b) / (w_a + w_b), 1e-12);
    }
  }
}

TEST(AttentionMerge, GradientsAreThoseOfFiniteDifferences) {
  ops::AttentionState a = heads({-INFINITY, -INFINITY, 0.5, 3, -2}), b = heads({-INFINITY, 1, -INFINITY, 2.5, 1});
  const Tensor dout = random_normal(a.out.shape(), "dout", kF64), dlse = random_normal(a.lse.shape(), "dlse", kF64);
  auto loss = [&] {
    const ops::AttentionState y = ops::merge(a, b);
    double sum = 0;
    for (int64_t i = 0; i < y.out.num_elements(); ++i) sum += y.out.data<double>()[i] * dout.data<double>()[i];
    for (int64_t i = 0; i < y.lse.num_elements(); ++i)
      if (std::isfinite(y.lse.data<double>()[i])) sum += y.lse.data<double>()[i] * dlse.data<double>()[i];
    return sum;
  };
  const ops::AttentionState y = ops::merge(a, b);
  const ops::MergeGrads grads = ops::merge_backward(dout, dlse, a, b, y);
  auto check = [&](Tensor& x, const Tensor& dx, const std::string& what) {
    for (int64_t i = 0; i < x.num_elements(); ++i) {
      double& at = x.mutable_data<double>()[i];
      if (std::isinf(at)) {
        EXPECT_EQ(dx.data<double>()[i], 0) << what << " " << i;
        continue;
      }
      const double old = at;
      at = old + 1e-5;
      const double high = loss();
      at = old - 1e-5;
      const double low = loss();
      at = old;
      EXPECT_NEAR((high - low) / 2e-5, dx.data<double>()[i], 1e-8) << what << " " << i;
    }
  };
  check(a.lse, grads.a.lse, "lse of a"), check(b.lse, grads.b.lse, "lse of b");
  check(a.out, grads.a.out, "out of a"), check(b.out, grads.b.out, "out of b");
  // Head 1 has keys on one side only: the gradients pass exactly.
  for (int64_t i = 2; i < 4; ++i) EXPECT_EQ(grads.b.out.data<double>()[i], dout.data<double>()[i]);
  EXPECT_EQ(grads.b.lse.data<double>()[1], dlse.data<double>()[1]);
}

// The chain of block backwards with the parts' own lse, through merge_backward, is one backward over all keys.
TEST(AttentionMerge, BackwardThroughPartsIsOneBackward) {
  for (auto normaliser : {ops::Normaliser::softmax, ops::Normaliser::sum, ops::Normaliser::signed_softmax}) {
    AttentionCase c({2, 30, 70, 4, 2, 8, 5}, kF64, Order::offset, Order::shuffled);
    c.options.normaliser = normaliser;
    c.options.mask.window = 25;
    const ops::Attention whole = c.forward();
    const ops::AttentionGrads want = c.backward(whole);
    const std::pair<int64_t, int64_t> parts[] = {{0, 33}, {33, 70}};
    const ops::AttentionState a = state_of(c, 0, 33), b = state_of(c, 33, 70), y = ops::merge(a, b);
    const ops::MergeGrads grads = ops::merge_backward(c.dout, c.used_dlse(), a, b, y);
    Tensor dq = Tensor::zeros(c.q.shape(), kF64);
    for (int side = 0; side < 2; ++side) {
      const auto [begin, end] = parts[side];
      const ops::AttentionState &state = side ? b : a, &of = side ? grads.b : grads.a;
      const Tensor k = c.k.slice(1, begin, end), v = c.v.slice(1, begin, end);
      ops::AttentionGrads to{dq, Tensor::zeros(k.shape(), kF64), Tensor::zeros(v.shape(), kF64)};
      ops::attend_block_backward(to, of.out, c.q, k, v, state.lse,
                                 ops::attention_delta(of.out, state.out, of.lse, c.options), c.queries,
                                 part_of(c.keys, begin, end), c.options);
      expect_near(to.dk, reference::numbers(want.dk.slice(1, begin, end)), 1e-12, "dk");
      expect_near(to.dv, reference::numbers(want.dv.slice(1, begin, end)), 1e-12, "dv");
    }
    expect_near(dq, reference::numbers(want.dq), 1e-12, "dq");
  }
}

TEST(AttentionMerge, RefusesResultsThatDoNotFit) {
  const ops::AttentionState a = heads({1, 2}), b = heads({1, 2, 3});
  EXPECT_EQ(
      error_of([&] { ops::merge(a, b); }, {"merge: out of a is [1, 1, 2, 2] f64", "[1, 1, 3, 2]", "same queries"}), "");
  EXPECT_EQ(error_of([&] { ops::merge(a, {a.out, {}}); }, {"merge: only a has an lse", "one normaliser"}), "");
  EXPECT_EQ(error_of(
                [&] {
                  ops::merge(a, {ops::cast(a.out, kBF16), {}});
                },
                {"out of b is [1, 1, 2, 2] bf16", "f32 or f64", "attend_block()"}),
            "");
}

}  // namespace
}  // namespace weft
