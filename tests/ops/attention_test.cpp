// The blockwise softmax core against the materialised reference: sizes, masks, scores, normalisers, dtypes, instruction sets.
#include "tests/ops/attention_masks.h"

namespace weft {
namespace {

using namespace test;

const std::vector<AttentionSizes>& sizes() {
  static const std::vector<AttentionSizes> rows = {
      {1, 1, 1, 1, 1, 1, 1},    {2, 1, 97, 2, 1, 8, 5},    {1, 95, 96, 2, 2, 16, 16},   {1, 97, 95, 1, 1, 7, 13},
      {2, 13, 29, 4, 2, 24, 8}, {1, 96, 193, 3, 1, 5, 33}, {1, 130, 130, 1, 1, 40, 64}, {1, 11, 12, 6, 3, 31, 9},
  };
  return rows;
}

TEST(Attention, EqualsTheReferenceForEveryMaskAndSizeInFloat64) {
  for (const AttentionSizes& s : sizes())
    for (const MaskRow& row : mask_rows()) {
      AttentionCase c(s, kF64);
      apply(c, row);
      expect_equals_reference(c, 1e-10, str(row.name, " ", s));
    }
}

TEST(Attention, EqualsTheReferenceForEveryMaskAndSizeInFloat32) {
  for (const AttentionSizes& s : sizes())
    for (const MaskRow& row : mask_rows()) {
      AttentionCase c(s, kF32);
      apply(c, row);
      expect_equals_reference(c, 2e-6, str(row.name, " ", s));
    }
}

TEST(Attention, ReadsPositionsNotIndices) {
  for (Order query_order : {Order::sorted, Order::offset, Order::striped, Order::shuffled})
    for (Order key_order : {Order::striped, Order::shuffled})
      for (const MaskRow& row : mask_rows()) {
        AttentionCase c({1, 101, 110, 2, 1, 4, 3}, kF64, query_order, key_order);
        apply(c, row);
        expect_equals_reference(c, 1e-10, str(row.name, " orders ", int(query_order), " ", int(key_order)));
      }
}

TEST(Attention, PermutingTheLayoutPermutesTheResult) {
  AttentionCase c({1, 150, 150, 2, 2, 16, 16}, kF32);
  c.options.dropout = 0.3;
  AttentionCase shuffled = c;
  shuffled.queries.positions = make_positions(1, 150, Order::shuffled, 7);
  for (int64_t i = 0; i < 150; ++i) {
    int64_t from = shuffled.queries.positions.data<int32_t>()[i];
    std::memcpy(shuffled.q.mutable_data<float>() + i * 32,
                random_normal({1, 150, 2, 16}, "q").data<float>() + from * 32, 128);
  }
  c.q = random_normal({1, 150, 2, 16}, "q");
  ops::Attention a = c.forward(), b = shuffled.forward();
  for (int64_t i = 0; i < 150; ++i) {
    int64_t from = shuffled.queries.positions.data<int32_t>()[i];
    for (int64_t e = 0; e < 32; ++e)
      ASSERT_NEAR(b.out.data<float>()[i * 32 + e], a.out.data<float>()[from * 32 + e], 2e-6) << i;
  }
}

TEST(Attention, EqualsTheReferenceForEveryScore) {
  for (DType dtype : {kF64, kF32})
    for (int kind = 1; kind < 4; ++kind)
      for (const AttentionSizes& s :
           {AttentionSizes{2, 33, 40, 4, 2, 8, 8}, AttentionSizes{1, 101, 101, 2, 1, 16, 20}}) {
        AttentionCase c(s, dtype);
        if (kind & 1) c.options.score.softcap = 1.5;
        if (kind & 2)
          c.options.score.alibi_slopes =
              Tensor::from<float>(std::vector<float>{0.5f, 0.25f, 0.06f, -0.01f}, {4}).slice(0, 0, s.H);
        c.options.scale = 0.7;
        expect_equals_reference(c, dtype == kF64 ? 1e-10 : 4e-6, str("score ", kind, " ", s));
      }
}

TEST(Attention, TheSumNormaliserEqualsTheReference) {
  for (const AttentionSizes& s : sizes())
    for (const MaskRow& row : {mask_rows()[1], mask_rows().back()}) {
      AttentionCase c(s, kF64, Order::sorted, Order::shuffled);
      apply(c, row);
      c.options.normaliser = ops::Normaliser::sum;
      expect_equals_reference(c, 1e-11, str(row.name, " ", s));
    }
}

TEST(Attention, EveryActivationAndTheSignedSoftmaxEqualTheReference) {
  using enum ops::ScoreActivation;
  for (DType dtype : {kF64, kF32})
    for (const AttentionSizes& s : sizes())
      for (const MaskRow& row : {mask_rows()[1], mask_rows().back()})
        for (auto activation : {none, sigmoid, relu, elu1, taylor2})
          for (bool is_modified : {false, true}) {
            AttentionCase c(s, dtype, Order::sorted, Order::shuffled);
            apply(c, row);
            if (is_modified) {
              c.options.score.softcap = 1.5;
              c.options.score.alibi_slopes = Tensor::full({s.H}, 0.03);
            }
            AttentionCase with_signs = c;
            c.options.normaliser = ops::Normaliser::sum;
            c.options.score.activation = activation;
            c.options.score.shift = is_modified ? -0.7 : 0;
            double tolerance = dtype == kF64 ? 1e-10 : 1e-5;
            expect_equals_reference(c, tolerance, str(row.name, " ", s, " activation ", int(activation)));
            with_signs.options.normaliser = ops::Normaliser::signed_softmax;
            if (activation == none) expect_equals_reference(with_signs, tolerance, str(row.name, " ", s, " signed"));
          }
}

TEST(Attention, DropsTheReferencesPairs) {
  for (DType dtype : {kF64, kF32})
    for (auto normaliser : {ops::Normaliser::softmax, ops::Normaliser::sum, ops::Normaliser::signed_softmax}) {
      AttentionCase c({2, 50, 107, 4, 2, 8, 16}, dtype, Order::offset, Order::shuffled);
      c.options.dropout = 0.37;
      c.options.dropout_rng = Rng(5)["attention"];
      c.options.first_row = 9, c.options.first_head = 5;
      c.options.normaliser = normaliser;
      expect_equals_reference(c, dtype == kF64 ? 1e-10 : 1e-5, "dropout");
    }
}

// Inputs are exact in bf16, weights and sums f32, so out is off by its own rounding (2^-9) only; gradients read the rounded
// out through delta, which adds at most 2^-9 |dout| |out| per row.
// Where the CPU multiplies bf16, attention_pairs_test.cpp bounds the error.
TEST(Attention, BFloat16IsRoundedOnceAtTheEnd) {
  for_each_isa([] {
    if (cpu::multiplies_bf16()) return;
    for (const MaskRow& row : mask_rows()) {
      AttentionCase c({2, 97, 110, 4, 2, 16, 24}, kBF16);
      apply(c, row);
      reference::AttentionReference want(c.q, c.k, c.v, c.queries, c.keys, c.options);
      ops::Attention y = c.forward();
      EXPECT_EQ(y.out.dtype(), kBF16);
      reference::Numbers out = reference::numbers(y.out);
      for (size_t i = 0; i < out.size(); ++i)
        ASSERT_NEAR(out[i], want.out[i], std::abs(want.out[i]) * 0x1.01p-8 + 1e-5) << row.name << " " << i;
      expect_near(y.lse, want.lse, 2e-6, row.name);
      want.backward(c.dout, c.dlse);
      ops::AttentionGrads grads = c.backward(y);
      expect_near(grads.dq, want.dq, 0x1p-7, str(row.name, " dq"));
      expect_near(grads.dk, want.dk, 0x1p-7, str(row.name, " dk"));
      expect_near(grads.dv, want.dv, 0x1p-8, str(row.name, " dv"));
    }
  });
}

TEST(Attention, ReadsStridedHeadsInPlace) {
  for_each_isa([] {
    AttentionCase c({2, 100, 100, 4, 4, 12, 12}, kF32);
    Tensor fused = random_normal({2, 100, 3, 4, 12}, "fused");
    AttentionCase dense = c;
    Tensor* parts[] = {&c.q, &c.k, &c.v};
    Tensor* copies[] = {&dense.q, &dense.k, &dense.v};
    for (int64_t i = 0; i < 3; ++i) {
      *parts[i] = fused.select(2, i);
      *copies[i] = Tensor::from<float>(parts[i]->to_vector<float>(), {2, 100, 4, 12});
    }
    ops::Attention a = c.forward(), b = dense.forward();
    expect_same_bits(a.out, b.out, "out");
    ops::AttentionGrads da = c.backward(a), db = dense.backward(b);
    expect_same_bits(da.dq, db.dq, "dq");
    expect_same_bits(da.dk, db.dk, "dk");
    expect_same_bits(da.dv, db.dv, "dv");
  });
}

TEST(Attention, RowsThatSeeNothingAreZeroAndTheirLseIsMinusInfinity) {
  for_each_isa([] {
    AttentionCase c({1, 100, 60, 2, 1, 8, 8}, kF32);
    c.keys.positions = make_positions(1, 60, Order::offset, 0);  // keys 30 .. 89: queries before 30 see none
    ops::Attention y = c.forward();
    ops::AttentionGrads grads = c.backward(y);
    for (int64_t i = 0; i < 30; ++i)
      for (int64_t h = 0; h < 2; ++h) {
        EXPECT_EQ(y.lse.data<float>()[i * 2 + h], -INFINITY);
        for (int64_t e = 0; e < 8; ++e) {
          EXPECT_EQ(y.out.data<float>()[(i * 2 + h) * 8 + e], 0);
          EXPECT_EQ(grads.dq.data<float>()[(i * 2 + h) * 8 + e], 0);
        }
      }
    expect_equals_reference(c, 2e-6, "empty rows");
  });
}

TEST(Attention, NoKeysOrNoQueriesAreLegal) {
  AttentionCase c({2, 5, 0, 2, 1, 8, 8}, kF32);
  ops::Attention y = c.forward();
  for (float x : y.out.to_vector<float>()) EXPECT_EQ(x, 0);
  for (float x : y.lse.to_vector<float>()) EXPECT_EQ(x, -INFINITY);
  for (float x : c.backward(y).dq.to_vector<float>()) EXPECT_EQ(x, 0);
  AttentionCase none({2, 0, 5, 2, 1, 8, 8}, kF32);
  for (float x : none.backward(none.forward()).dk.to_vector<float>()) EXPECT_EQ(x, 0);
}

TEST(Attention, HugeScoresStayFinite) {
  for_each_isa([] {
    for (double size : {1e2, 1e4, 1e30}) {
      AttentionCase c({1, 110, 110, 1, 1, 8, 8}, kF32);
      for (int64_t i = 0; i < c.q.num_elements(); ++i) c.q.mutable_data<float>()[i] *= static_cast<float>(size);
      ops::Attention y = c.forward();
      ops::AttentionGrads grads = c.backward(y);
      for (const Tensor& t : {y.out, y.lse, grads.dq, grads.dv})
        for (float x : t.to_vector<float>()) ASSERT_TRUE(std::isfinite(x)) << size;
      if (size == 1e2) expect_equals_reference(c, 2e-4, "scores of 100");  // f32 scores carry 1e2 * 6e-8 relative to 1
    }
  });
}

TEST(Attention, NanInAVisibleKeyReachesTheOutput) {
  for_each_isa([] {
    AttentionCase c({1, 20, 20, 1, 1, 8, 8}, kF32);
    c.k.mutable_data<float>()[3 * 8] = NAN;
    std::vector<float> lse = c.forward().lse.to_vector<float>();
    EXPECT_TRUE(std::isfinite(lse[2]));
    for (size_t i = 3; i < 20; ++i) EXPECT_TRUE(std::isnan(lse[i])) << i;
  });
}

}  // namespace
}  // namespace weft
