// Float32 sums over many tokens: their error does not grow with the number of tokens. The truth is the same call in float64.
#include "tests/ops/attention_case.h"
#include "weft/ops/norm.h"
#include "weft/ops/select.h"
#include "weft/ops/sequence.h"

namespace weft {
namespace {

using namespace test;

// Root mean square of the error over that of what is right.
double relative_rms(const Tensor& got_tensor, const Tensor& want_tensor) {
  const reference::Numbers got = reference::numbers(got_tensor), want = reference::numbers(want_tensor);
  double error = 0, size = 0;
  for (size_t i = 0; i < want.size(); ++i) error += (got[i] - want[i]) * (got[i] - want[i]), size += want[i] * want[i];
  return std::sqrt(error / size);
}

AttentionCase in_float64(AttentionCase c) {
  for (Tensor* t : {&c.q, &c.k, &c.v, &c.dout, &c.dlse}) *t = ops::cast(*t, kF64);
  return c;
}

// One chain of float32 additions over 4096 tokens has errors of 1.2e-6 to 1.9e-6, and twice that at four times as many tokens. What is
// left is the rounding of lse itself: from 8 on, its last bit is 9.5e-7, in all weights of a row.
TEST(AttentionSums, Float32ErrorDoesNotGrowWithTheNumberOfTokens) {
  constexpr double kMost = 7.5e-7;
  for (bool is_causal : {true, false})
    for (int64_t heads : {1, 2})
      for (int64_t T : {256, 1024, 4096}) {
        AttentionCase c({1, T, T, heads, 1, 16, 16}, kF32);
        c.options.mask.is_causal = is_causal;
        const AttentionCase exact = in_float64(c);
        const ops::Attention want = exact.forward();
        const ops::AttentionGrads want_grads = exact.backward(want);
        SCOPED_TRACE(str(is_causal ? "causal T" : "full T", T, " H", heads));
        for_each_isa([&] {
          const ops::Attention y = c.forward();
          const ops::AttentionGrads grads = c.backward(y);
          EXPECT_LT(relative_rms(y.out, want.out), kMost) << "out";
          EXPECT_LT(relative_rms(grads.dq, want_grads.dq), kMost) << "dq";
          EXPECT_LT(relative_rms(grads.dk, want_grads.dk), kMost) << "dk";
          EXPECT_LT(relative_rms(grads.dv, want_grads.dv), kMost) << "dv";
        });
      }
}

// More key blocks than are summed in one part, with some that the mask leaves out, in any order of positions: the parts of dq and out
// are all taken.
TEST(AttentionSums, EveryPartOfALongSumIsTaken) {
  for (Order order : {Order::sorted, Order::striped, Order::shuffled})
    for (int64_t window : {0, 300})
      for (ops::Normaliser normaliser : {ops::Normaliser::softmax, ops::Normaliser::sum}) {
        AttentionCase c({1, 150, 3500, 2, 1, 4, 5}, kF32, Order::striped, order);
        c.options.mask = {.window = window, .prefix = 20};
        c.options.normaliser = normaliser;
        expect_equals_reference(c, 4e-6, str("order ", int(order), " window ", window));
        expect_pieces_equal_whole(c, {0, 3200, 3500}, 4e-6, str("pieces, order ", int(order), " window ", window));
      }
}

// Three parts of dq, and a first sum that begins with what the caller's memory holds.
TEST(AttentionSums, PartsFollowEachOther) {
  for (int64_t keys : {2 * 32 * 96, 2 * 32 * 96 + 96, 7000}) {
    AttentionCase c({1, 30, keys, 2, 2, 4, 5}, kF32);
    c.options.mask.is_causal = false;
    expect_equals_reference(c, 4e-6, str(keys, " keys"));
    expect_pieces_equal_whole(c, {0, 6144, keys}, 4e-6, str(keys, " keys in pieces"));
  }
}

TEST(RowSums, GradientsOfNormWeightsDoNotLoseAccuracyWithTheNumberOfRows) {
  constexpr int64_t kRows = 1 << 18, kWidth = 4;
  const Tensor x = random_normal({kRows, kWidth}, "x"), dy = random_normal({kRows, kWidth}, "dy");
  const Tensor w = random_normal({kWidth}, "w"), b = random_normal({kWidth}, "b");
  auto wide = [](const Tensor& t) { return ops::cast(t, kF64); };
  auto rms = [](const Tensor& dy, const Tensor& x, const Tensor& w) {
    return ops::rms_norm_backward(dy, x, w, ops::rms_norm(x, w, 1e-5).inv_rms);
  };
  auto layer = [](const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& b) {
    const ops::LayerNorm y = ops::layer_norm(x, w, b, 1e-5);
    return ops::layer_norm_backward(dy, x, w, y.mean, y.inv_std);
  };
  // One chain of a 64th of the rows has 1e-6.
  EXPECT_LT(relative_rms(rms(dy, x, w).dweight, rms(wide(dy), wide(x), wide(w)).dweight), 4e-7);
  const ops::LayerNormGrads got = layer(dy, x, w, b), want = layer(wide(dy), wide(x), wide(w), wide(b));
  EXPECT_LT(relative_rms(got.dweight, want.dweight), 4e-7);
  EXPECT_LT(relative_rms(got.dbias, want.dbias), 4e-7);
}

TEST(RowSums, GradientsOfConvolutionWeightsDoNotLoseAccuracyWithTheNumberOfTokens) {
  constexpr int64_t kTokens = 1 << 18, kWidth = 4;
  const Tensor x = random_normal({1, kTokens, kWidth}, "x"), dy = random_normal({1, kTokens, kWidth}, "dy");
  const Tensor w = random_normal({kWidth, 3}, "w");
  const ops::CausalConvGrads got = ops::causal_conv_backward(dy, x, w, true, {});
  const ops::CausalConvGrads want =
      ops::causal_conv_backward(ops::cast(dy, kF64), ops::cast(x, kF64), ops::cast(w, kF64), true, {});
  EXPECT_LT(relative_rms(got.dweight, want.dweight), 4e-7);
  EXPECT_LT(relative_rms(got.dbias, want.dbias), 4e-7);
}

TEST(RowSums, GradientsOfAFrequentEmbeddingDoNotLoseAccuracy) {
  constexpr int64_t kTokens = 1 << 16;
  const Tensor dy = random_normal({kTokens, 8}, "dy");
  Tensor ids = Tensor::empty({kTokens}, kI32);
  for (int64_t i = 0; i < kTokens; ++i) ids.mutable_data<int32_t>()[i] = i % 16 == 0 ? 3 : 1;
  const Tensor got = ops::embedding_backward(dy, ids, 5), want = ops::embedding_backward(ops::cast(dy, kF64), ids, 5);
  EXPECT_LT(relative_rms(got, want), 2e-7);  // one chain: 5e-6
  for (int64_t c = 0; c < 8; ++c) EXPECT_EQ(got.data<float>()[c], 0);
}

}  // namespace
}  // namespace weft
