// The core on bf16 tensors where the CPU multiplies bf16: beside the same call with products in float32, against the float64 reference.
#include "ops/cpu/isa.h"
#include "tests/ops/attention_masks.h"

namespace weft {
namespace {

using namespace test;

struct Rms {
  double out, lse, dq, dk, dv;
};

double rms_error(const Tensor& got_tensor, const reference::Numbers& want) {
  const reference::Numbers got = reference::numbers(got_tensor);
  double sum = 0;
  for (size_t i = 0; i < got.size(); ++i)
    if (got[i] != want[i]) sum += (got[i] - want[i]) * (got[i] - want[i]);  // infinities are equal
  return std::sqrt(sum / static_cast<double>(got.size()));
}

Rms errors_of(const AttentionCase& c, const reference::AttentionReference& want) {
  const ops::Attention y = c.forward();
  const ops::AttentionGrads grads = c.backward(y);
  const bool has_lse = c.options.normaliser != ops::Normaliser::sum;
  return {rms_error(y.out, want.out), has_lse ? rms_error(y.lse, want.lse) : 0, rms_error(grads.dq, want.dq),
          rms_error(grads.dk, want.dk), rms_error(grads.dv, want.dv)};
}

// Weights and gradients of scores are rounded once more than in float32, just before their products.
void expect_at_most_twice(const AttentionCase& c, const std::string& what) {
  reference::AttentionReference want(c.q, c.k, c.v, c.queries, c.keys, c.options);
  want.backward(c.dout, c.used_dlse());
  cpu::set_isa(cpu::Isa::avx2);
  const Rms wide = errors_of(c, want);
  cpu::set_isa(cpu::Isa::avx512);
  const Rms pairs = errors_of(c, want);
  auto check = [&](double got, double at_most, const char* name) {
    EXPECT_TRUE(std::isfinite(got)) << what << " " << name;
    EXPECT_LE(got, 2 * at_most) << what << " " << name;
  };
  check(pairs.out, wide.out, "out"), check(pairs.lse, wide.lse + 1e-6, "lse");
  check(pairs.dq, wide.dq, "dq"), check(pairs.dk, wide.dk, "dk"), check(pairs.dv, wide.dv, "dv");
}

class AttentionPairs : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!cpu::multiplies_bf16()) GTEST_SKIP() << "this CPU does not multiply bf16";
    chosen_ = cpu::isa();
  }
  void TearDown() override {
    if (chosen_) cpu::set_isa(*chosen_);
  }

 private:
  std::optional<cpu::Isa> chosen_;
};

TEST_F(AttentionPairs, AreAtMostTwiceAsFarFromTheReferenceForEveryMask) {
  for (const MaskRow& row : mask_rows())
    for (const AttentionSizes& s :
         {AttentionSizes{2, 97, 110, 4, 2, 16, 24}, AttentionSizes{1, 131, 131, 2, 1, 64, 64}}) {
      AttentionCase c(s, kBF16, Order::sorted, Order::shuffled);
      apply(c, row);
      expect_at_most_twice(c, str(row.name, " ", s));
    }
}

TEST_F(AttentionPairs, TakeEveryScoreAndNormaliser) {
  for (auto normaliser : {ops::Normaliser::softmax, ops::Normaliser::sum, ops::Normaliser::signed_softmax})
    for (bool has_softcap : {false, true})
      for (bool has_alibi : {false, true})
        for (double dropout : {0.0, 0.25}) {
          AttentionCase c({2, 60, 109, 4, 2, 24, 8}, kBF16, Order::offset, Order::shuffled);
          c.options.normaliser = normaliser;
          c.options.mask.is_causal = true;
          if (has_softcap) c.options.score.softcap = 1.5;
          if (has_alibi) c.options.score.alibi_slopes = Tensor::full({4}, 0.03);
          c.options.dropout = dropout;
          if (dropout > 0) c.options.dropout_rng = Rng(5)["attention"];
          expect_at_most_twice(c, str("normaliser ", int(normaliser), has_softcap ? " softcap" : "",
                                      has_alibi ? " alibi" : "", " dropout ", dropout));
        }
}

TEST_F(AttentionPairs, TakeBiases) {
  for (auto normaliser : {ops::Normaliser::softmax, ops::Normaliser::sum, ops::Normaliser::signed_softmax})
    for (bool are_shared : {false, true}) {
      AttentionCase c({2, 60, 109, 4, 2, 24, 8}, kBF16, Order::offset, Order::shuffled);
      c.options.normaliser = normaliser;
      c.use_biases(are_shared);
      expect_at_most_twice(c, str("normaliser ", int(normaliser), are_shared ? " shared" : ""));
    }
}

// Behind the last token and channel there is no number: neither in a pair nor in a tile. Some of these have too few numbers for a mean.
TEST_F(AttentionPairs, TakeAnyNumberOfTokensAndChannels) {
  for (int64_t tokens : {1, 2, 11, 12, 13, 31, 32, 33, 95, 96, 97, 193})
    for (int64_t width : {1, 2, 3, 15, 16, 17, 33}) {
      AttentionCase c({1, tokens, tokens + tokens % 3, 2, 1, width, 36 - width}, kBF16);
      c.options.mask.is_causal = tokens % 2 == 0;
      reference::AttentionReference want(c.q, c.k, c.v, c.queries, c.keys, c.options);
      want.backward(c.dout, c.dlse);
      const ops::Attention y = c.forward();
      const ops::AttentionGrads grads = c.backward(y);
      const std::string what = str(tokens, " tokens, width ", width);
      expect_near(y.out, want.out, 0x1p-7, what + " out"), expect_near(y.lse, want.lse, 2e-6, what + " lse");
      expect_near(grads.dq, want.dq, 0x1p-7, what + " dq"), expect_near(grads.dk, want.dk, 0x1p-7, what + " dk");
      expect_near(grads.dv, want.dv, 0x1p-7, what + " dv");
    }
}

TEST_F(AttentionPairs, OverManyKeysLoseNothing) {
  AttentionCase c({1, 98, 96 * 33 + 5, 1, 1, 8, 8}, kBF16);
  expect_at_most_twice(c, "many keys");
}

TEST_F(AttentionPairs, GiveTheSameBitsForEveryNumberOfThreads) {
  AttentionCase c({2, 300, 310, 4, 2, 16, 16}, kBF16);
  c.options.mask.is_causal = true;
  std::vector<reference::Numbers> first;
  const int threads = num_threads();
  for (int n : {1, 2, 3}) {
    set_num_threads(n);
    const ops::Attention y = c.forward();
    const ops::AttentionGrads grads = c.backward(y);
    std::vector<reference::Numbers> all;
    for (const Tensor* t : {&y.out, &y.lse, &grads.dq, &grads.dk, &grads.dv}) all.push_back(reference::numbers(*t));
    if (first.empty()) first = all;
    EXPECT_EQ(all, first) << n << " threads";
  }
  set_num_threads(threads);
}

}  // namespace
}  // namespace weft
