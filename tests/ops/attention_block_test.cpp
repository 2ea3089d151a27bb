// State in and out of the attention core: split key sets, summed backward calls, repeatability, threads, fuzzing.
#include "tests/ops/attention_case.h"
#include "tests/support/errors.h"

namespace weft {
namespace {

using namespace test;

TEST(AttentionBlock, PiecesOfTheKeysEqualOneCall) {
  for_each_isa([] {
    for (auto normaliser : {ops::Normaliser::softmax, ops::Normaliser::sum, ops::Normaliser::signed_softmax})
      for (DType dtype : {kF64, kF32})
        for (Order order : {Order::sorted, Order::shuffled}) {
          AttentionCase c({2, 120, 230, 4, 2, 8, 12}, dtype, Order::offset, order);
          c.options.normaliser = normaliser;
          c.options.mask.window = 90;
          c.options.dropout = 0.1;
          expect_pieces_equal_whole(c, {0, 1, 97, 97, 200, 230}, dtype == kF64 ? 1e-11 : 4e-6, "pieces");
        }
  });
}

TEST(AttentionBlock, AnyOrderOfThePiecesGivesTheSameRow) {
  AttentionCase c({1, 40, 80, 2, 1, 8, 8}, kF64);
  c.options.mask.is_causal = false;
  ops::Attention whole = c.forward();
  ops::AttentionState state = ops::attention_state(c.q, 8, c.options);
  for (int64_t begin : {60, 0, 20, 40})
    ops::attend_block(state, c.q, c.k.slice(1, begin, begin + 20), c.v.slice(1, begin, begin + 20), c.queries,
                      part_of(c.keys, begin, begin + 20), c.options);
  expect_near(state.out, reference::numbers(whole.out), 1e-12, "out");
  expect_near(state.lse, reference::numbers(whole.lse), 1e-12, "lse");
}

// In f32 each call rounds lse, and with it the weights of the keys before.
TEST(AttentionBlock, AnLseInF64IsRoundedOnceHoweverManyPieces) {
  for_each_isa([] {
    for (auto normaliser : {ops::Normaliser::softmax, ops::Normaliser::signed_softmax}) {
      AttentionCase c({1, 64, 512, 4, 2, 16, 16}, kF32);
      c.options.mask.is_causal = false, c.options.normaliser = normaliser;
      AttentionCase exact = c;
      for (Tensor* x : {&exact.q, &exact.k, &exact.v}) *x = ops::cast(*x, kF64);
      const reference::Numbers want = reference::numbers(exact.forward().out);
      auto error_of = [&](const Tensor& out) {
        const reference::Numbers got = reference::numbers(out);
        double sum = 0;
        for (size_t i = 0; i < got.size(); ++i) sum += (got[i] - want[i]) * (got[i] - want[i]);
        return std::sqrt(sum / static_cast<double>(got.size()));
      };
      auto in_pieces = [&](DType lse) {
        ops::AttentionState state = ops::attention_state(c.q, 16, c.options);
        state.lse = ops::cast(state.lse, lse);
        for (int64_t begin = 0; begin < 512; begin += 8)
          ops::attend_block(state, c.q, c.k.slice(1, begin, begin + 8), c.v.slice(1, begin, begin + 8), c.queries,
                            part_of(c.keys, begin, begin + 8), c.options);
        EXPECT_EQ(state.lse.dtype(), lse);
        expect_near(ops::cast(state.lse, kF64), reference::numbers(exact.forward().lse), lse == kF64 ? 1e-6 : 1e-5,
                    "lse");
        return error_of(state.out);
      };
      const double whole = error_of(c.forward().out), narrow = in_pieces(kF32), wide = in_pieces(kF64);
      EXPECT_LT(wide, 0.7 * narrow) << "in one call " << whole;
      EXPECT_LT(wide, 3 * whole);  // 64 roundings of the output remain
    }
  });
  AttentionCase c({1, 8, 8, 1, 1, 4, 4}, kF64);
  ops::AttentionState state = ops::attention_state(c.q, 4, c.options);
  state.lse = ops::cast(state.lse, kF32);
  EXPECT_EQ(test::error_of([&] { ops::attend_block(state, c.q, c.k, c.v, c.queries, c.keys, c.options); },
                           {"attend_block: state.lse is ", "must be contiguous [1, 8, 1] f64"}),
            "");
}

TEST(AttentionBlock, FuzzedProblemsEqualTheReference) {
  fuzz_attention(36, [](const FuzzedAttention& f) {
    expect_equals_reference(f.c, f.tolerance, f.what);
    expect_pieces_equal_whole(f.c, f.cuts, f.tolerance, f.what);
  });
}

TEST(AttentionBlock, RepeatsBitForBitForAnyNumberOfThreads) {
  for_each_isa([] {
    for (int64_t heads : {1, 4}) {
      AttentionCase c({1, 700, 700, heads, heads == 4 ? 2 : 1, 16, 16}, kF32);
      int threads = num_threads();
      set_num_threads(1);
      ops::Attention want = c.forward();
      ops::AttentionGrads grads = c.backward(want);
      for (int n : {1, 2, 3, 5}) {
        set_num_threads(n);
        for (int repeat = 0; repeat < 3; ++repeat) {
          ops::Attention got = c.forward();
          expect_same_bits(got.out, want.out, "out");
          expect_same_bits(got.lse, want.lse, "lse");
          ops::AttentionGrads again = c.backward(got);
          expect_same_bits(again.dq, grads.dq, "dq");
          expect_same_bits(again.dk, grads.dk, "dk");
          expect_same_bits(again.dv, grads.dv, "dv");
        }
      }
      set_num_threads(threads);
    }
  });
}

// Gradients of one call are stored, not added to zeros: those of tokens that no pair has are 0 too. New memory is NaN in tests.
TEST(AttentionBlock, GradientsOfTokensWithoutAPairAreZero) {
  auto expect_zeros = [](const Tensor& t, int64_t begin, int64_t end, const char* what) {
    for (double x : reference::numbers(t.slice(1, begin, end))) ASSERT_EQ(x, 0) << what;
  };
  for_each_isa([&] {
    for (DType dtype : {kF32, kBF16, kF64}) {
      // Queries 300 to 399 see nothing, and nothing sees keys from 300 on.
      AttentionCase c({2, 400, 3500, 4, 2, 16, 8}, dtype);
      c.use_documents(300);
      for (int64_t b = 0; b < 2; ++b)
        for (int64_t i = 300; i < 400; ++i) c.queries.documents.mutable_data<int32_t>()[b * 400 + i] = -1;
      const ops::AttentionGrads grads = c.backward(c.forward());
      expect_zeros(grads.dq, 300, 400, "dq");
      expect_zeros(grads.dk, 300, 3500, "dk");
      expect_zeros(grads.dv, 300, 3500, "dv");
      for (const Tensor& t : {grads.dq, grads.dk, grads.dv})
        for (double x : reference::numbers(t)) ASSERT_TRUE(std::isfinite(x));
    }
    for (auto [queries, keys] : {std::pair<int64_t, int64_t>{0, 130}, std::pair<int64_t, int64_t>{130, 0}}) {
      AttentionCase c({1, queries, keys, 2, 1, 8, 8}, kF32);
      const ops::AttentionGrads grads = c.backward(c.forward());
      expect_zeros(grads.dq, 0, queries, "dq without keys");
      expect_zeros(grads.dk, 0, keys, "dk without queries");
      expect_zeros(grads.dv, 0, keys, "dv without queries");
    }
  });
}

TEST(AttentionBlock, MemoryBeyondTheResultsIsSmall) {
  AttentionCase c({1, 2048, 2048, 2, 2, 16, 16}, kF32);
  for (int warm = 0; warm < 3; ++warm) c.backward(c.forward());
  allocator(Device::cpu()).reset_peak();
  int64_t before = allocator(Device::cpu()).stats().current_bytes;
  int64_t system = allocator(Device::cpu()).stats().num_system_allocations;
  { ops::AttentionGrads grads = c.backward(c.forward()); }
  MemoryStats stats = allocator(Device::cpu()).stats();
  int64_t tensor = 2048 * 2 * 16 * 4;
  EXPECT_LT(stats.peak_bytes - before, 5 * tensor);
#if !defined(__SANITIZE_ADDRESS__)  // there every block comes from the system, so that its redzones are real
  EXPECT_EQ(stats.num_system_allocations, system);
#else
  (void)system;
#endif
}

// d(out, lse) by central differences, through the state that goes in and out.
TEST(AttentionBlock, GradientsEqualFiniteDifferences) {
  AttentionCase c({1, 7, 9, 2, 1, 3, 2}, kF64);
  c.options.score.softcap = 1.2;
  auto loss = [&] {
    ops::Attention y = c.forward();
    double sum = 0;
    for (int64_t i = 0; i < y.out.num_elements(); ++i) sum += y.out.data<double>()[i] * c.dout.data<double>()[i];
    for (int64_t i = 0; i < y.lse.num_elements(); ++i) sum += y.lse.data<double>()[i] * c.dlse.data<double>()[i];
    return sum;
  };
  ops::AttentionGrads grads = c.backward(c.forward());
  std::pair<Tensor*, Tensor*> pairs[] = {{&c.q, &grads.dq}, {&c.k, &grads.dk}, {&c.v, &grads.dv}};
  for (auto [x, dx] : pairs)
    for (int64_t i = 0; i < x->num_elements(); ++i) {
      double& at = x->mutable_data<double>()[i];
      double old = at;
      at = old + 1e-5;
      double high = loss();
      at = old - 1e-5;
      double low = loss();
      at = old;
      EXPECT_NEAR((high - low) / 2e-5, dx->data<double>()[i], 1e-8);
    }
}

}  // namespace
}  // namespace weft
