// Biases of scores per token: every normaliser and mask against the materialised reference, and pairs of huge biases.
#include "tests/ops/attention_case.h"
#include "tests/support/errors.h"
#include "weft/ops/reduce.h"

namespace weft {
namespace {

using namespace test;

TEST(AttentionBias, EqualsTheReferenceForEveryNormaliserMaskAndSize) {
  using enum ops::ScoreActivation;
  for (DType dtype : {kF64, kF32})
    for (const AttentionSizes& s : {AttentionSizes{1, 1, 1, 1, 1, 1, 1}, AttentionSizes{2, 97, 130, 4, 2, 7, 5},
                                    AttentionSizes{1, 13, 193, 3, 1, 8, 16}, AttentionSizes{1, 96, 95, 2, 2, 5, 3}})
      for (const ops::AttentionMask& mask : {ops::AttentionMask{.is_causal = false}, ops::AttentionMask{},
                                             ops::AttentionMask{.window = 20, .prefix = 9}})
        for (bool has_documents : {false, true})
          for (int kind = 0; kind < 5; ++kind) {
            AttentionCase c(s, dtype, Order::sorted, Order::shuffled);
            c.options.mask = mask;
            if (has_documents) c.use_documents(33);
            c.use_biases(kind % 2 == 0, dtype == kF32 && kind == 1 ? kF32 : kF64);
            if (kind == 1) c.options.normaliser = ops::Normaliser::signed_softmax;
            if (kind >= 2) c.options.normaliser = ops::Normaliser::sum;
            if (kind == 3) c.options.score = {.softcap = 2, .query_bias = c.options.score.query_bias, .shift = -0.7};
            if (kind >= 3) c.options.score.activation = kind == 3 ? sigmoid : taylor2;
            if (kind == 4) c.options.score.query_bias = {};
            expect_equals_reference(c, dtype == kF64 ? 1e-10 : 1e-5, str(dtype, " ", s, " kind ", kind));
          }
}

TEST(AttentionBias, ComesAfterSoftCapAndAlibiAndGoesWithDropout) {
  AttentionCase c({1, 101, 120, 4, 2, 6, 7}, kF64);
  c.options.score = {.softcap = 1.5, .alibi_slopes = alibi_slopes(4)};
  c.options.dropout = 0.3;
  c.use_biases(false);
  expect_equals_reference(c, 1e-10, "all at once");
}

TEST(AttentionBias, PiecesEqualTheWhole) {
  for (bool are_shared : {true, false}) {
    AttentionCase c({2, 70, 150, 4, 2, 6, 5}, kF64, Order::offset);
    c.use_biases(are_shared);
    expect_pieces_equal_whole(c, {0, 33, 96, 150}, 1e-11, "pieces");
  }
}

TEST(AttentionBias, OfZeroChangesNothing) {
  AttentionCase c({1, 120, 120, 2, 1, 8, 8}, kF64);
  const ops::Attention want = c.forward();
  c.options.score.query_bias = Tensor::zeros({1, 120, 2}, kF64);
  expect_near(c.forward().out, reference::numbers(want.out), 1e-14, "out");
}

TEST(AttentionBias, OfMinusInfinityHidesAKey) {
  AttentionCase c({1, 40, 40, 1, 1, 4, 4}, kF32);
  c.options.mask.is_causal = false;
  AttentionCase hidden = c;
  hidden.options.score.key_bias = Tensor::zeros({1, 40, 1}, kF32);
  for (int64_t j = 30; j < 40; ++j) hidden.options.score.key_bias.mutable_data<float>()[j] = -INFINITY;
  AttentionCase cut = c;
  cut.k = c.k.slice(1, 0, 30), cut.v = c.v.slice(1, 0, 30), cut.keys.positions = c.keys.positions.slice(1, 0, 30);
  const ops::Attention y = hidden.forward(), want = cut.forward();
  expect_near(y.out, reference::numbers(want.out), 1e-6, "out");
  const ops::AttentionGrads grads = hidden.backward(y);
  expect_near(grads.dq, reference::numbers(cut.backward(want).dq), 1e-6, "dq");
  for (int64_t j = 30; j < 40; ++j) EXPECT_EQ(grads.dkey_bias.data<float>()[j], 0);
}

TEST(AttentionBias, GivesTheSameBitsAgainAndWithAnyNumberOfThreads) {
  AttentionCase c({2, 300, 300, 4, 2, 8, 8}, kF32);
  c.use_biases(true);
  auto [y, grads] = expect_repeats(c);
  const int threads = num_threads();
  set_num_threads(1);
  const ops::AttentionGrads single = c.backward(c.forward());
  set_num_threads(threads);
  expect_same_bits(grads.dquery_bias, single.dquery_bias, "dquery_bias");
  expect_same_bits(grads.dkey_bias, single.dkey_bias, "dkey_bias");
}

// Gates of a half: over 65536 tokens the biases are as large as 45426, and the exact bias of a pair is (t - s) log 0.5. Gradients too.
void expect_exact_near_pairs(int64_t S, DType dtype) {
  constexpr int64_t T = 5, K = 4;
  AttentionCase c({1, T, S, 1, 1, K, K}, dtype);
  for (int64_t t = 0; t < T; ++t) c.queries.positions.mutable_data<int32_t>()[t] = static_cast<int32_t>(S - T + t);
  const Tensor gates = Tensor::full({1, S, 1}, std::log(0.5), kF64);
  const Tensor sums = ops::cumsum(gates, 1, {});
  c.options.score.query_bias = sums.slice(1, S - T, S);
  c.options.score.key_bias = ops::scale(sums, -1);
  const reference::Numbers q = reference::numbers(c.q), k = reference::numbers(c.k), v = reference::numbers(c.v);
  for_each_isa([&] {
    const ops::Attention y = c.forward();
    const reference::Numbers out = reference::numbers(y.out);
    for (int64_t t = 0; t < T; ++t) {
      double sum = 0, want[K] = {};
      for (int64_t s = 0; s <= S - T + t; ++s) {
        double score = static_cast<double>(S - T + t - s) * std::log(0.5);
        for (int64_t e = 0; e < K; ++e) score += q[t * K + e] * k[s * K + e] / 2;
        sum += std::exp(score);
        for (int64_t e = 0; e < K; ++e) want[e] += std::exp(score) * v[s * K + e];
      }
      EXPECT_NEAR(y.lse.data<float>()[t], std::log(sum), 1e-6);
      for (int64_t e = 0; e < K; ++e)
        EXPECT_NEAR(out[t * K + e], want[e] / sum, dtype == kF32 ? 1e-6 : 0x1p-7) << str(dtype, " ", t);
    }
  });
  expect_equals_reference(c, dtype == kF32 ? 1e-6 : 0x1p-6, str(dtype, " ", S));
}

TEST(AttentionBias, OfLogGatesIsExactForNearPairsAtTheEndOfALongSequence) {
  for (DType dtype : {kF32, kBF16})
    for (int64_t S : {512, 65536}) expect_exact_near_pairs(S, dtype);  // the tolerance is one for both
}

TEST(AttentionBias, RefusesShapesTypesAndKernelsThatHaveNone) {
  AttentionCase c({1, 6, 7, 4, 2, 4, 4}, kF32);
  auto with = [&](Tensor query, Tensor key) {
    ops::AttentionOptions options = c.options;
    options.score.query_bias = query, options.score.key_bias = key;
    ops::attend(c.q, c.k, c.v, c.queries, c.keys, options);
  };
  EXPECT_EQ(error_of(
                [&] {
                  with(Tensor::zeros({1, 6, 2}), {});
                },
                {"attend", "query_bias", "[1, 6, 4]", "f32 or f64"}),
            "");
  EXPECT_EQ(error_of([&] { with({}, Tensor::zeros({1, 6, 2})); }, {"key_bias", "[1, 7, 4]", "[1, 7, 2]"}), "");
  EXPECT_EQ(error_of([&] { with({}, Tensor::zeros({1, 7, 2}, kBF16)); }, {"key_bias", "bf16", "f32 or f64"}), "");
  c.options.score.query_bias = Tensor::zeros({1, 6, 4});
  const ops::Attention y = c.forward();
  ops::AttentionGrads grads{
      Tensor::zeros(c.q.shape()), Tensor::zeros(c.k.shape()), Tensor::zeros(c.v.shape()), Tensor::zeros({1, 6, 4}), {}};
  const Tensor delta = ops::attention_delta(c.dout, y.out, c.dlse, c.options);
  auto backward = [&] {
    ops::attend_block_backward(grads, c.dout, c.q, c.k, c.v, y.lse, delta, c.queries, c.keys, c.options);
  };
  EXPECT_EQ(error_of(backward, {"attend_block_backward", "dquery_bias", "f64"}), "");
}

}  // namespace
}  // namespace weft
