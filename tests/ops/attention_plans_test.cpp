// Plans that calls over the same tokens keep: the same bits with and without, and nothing stale.
#include <cstring>

#include "tests/ops/attention_case.h"
#include "weft/ops/attention/plans.h"

namespace weft {
namespace {

using namespace test;

bool are_same_bits(const Tensor& a, const Tensor& b) {
  if (a.defined() != b.defined()) return false;
  return !a.defined() ||
         (a.shape() == b.shape() && a.dtype() == b.dtype() && std::memcmp(a.raw(), b.raw(), a.num_bytes()) == 0);
}

// A case whose queries and keys are the same tokens.
AttentionCase self_case(const AttentionSizes& sizes, DType dtype, Order order) {
  AttentionCase c(sizes, dtype, order);
  c.keys = c.queries;
  return c;
}

AttentionCase keeping(AttentionCase c) {
  c.queries = ops::with_plans(c.queries);
  c.keys = c.queries;
  return c;
}

void expect_same(const AttentionCase& kept, const AttentionCase& made, const std::string& what) {
  const ops::Attention got = kept.forward(), want = made.forward();
  EXPECT_TRUE(are_same_bits(got.out, want.out)) << what << " out";
  EXPECT_TRUE(are_same_bits(got.lse, want.lse)) << what << " lse";
  const ops::AttentionGrads dgot = kept.backward(got), dwant = made.backward(want);
  EXPECT_TRUE(are_same_bits(dgot.dq, dwant.dq)) << what << " dq";
  EXPECT_TRUE(are_same_bits(dgot.dk, dwant.dk)) << what << " dk";
  EXPECT_TRUE(are_same_bits(dgot.dv, dwant.dv)) << what << " dv";
}

std::vector<ops::AttentionMask> masks() {
  return {{},
          {.is_causal = false},
          {.window = 50},
          {.is_causal = false, .window = 13},
          {.window = 30, .prefix = 5},
          {.prefix = 120}};
}

TEST(AttentionPlans, GiveTheBitsOfCallsWithoutThem) {
  for (Order order : {Order::sorted, Order::striped, Order::shuffled})
    for (int64_t tokens : {1, 96, 203})
      for (int64_t length : {0, 7, 100})  // of documents
        for (DType dtype : {kF32, kBF16, kF64}) {
          AttentionCase made = self_case({2, tokens, tokens, 4, 2, 8, 16}, dtype, order);
          if (length > 0) made.use_documents(length), made.keys = made.queries;
          AttentionCase kept = keeping(made);
          for_each_isa([&] {
            for (const ops::AttentionMask& mask : masks()) {
              made.options.mask = kept.options.mask = mask;
              made.options.mask.same_document = kept.options.mask.same_document = length > 0;
              const std::string what = str(dtype, " T", tokens, " documents of ", length, " order ",
                                           static_cast<int>(order), " window ", mask.window, " prefix ", mask.prefix);
              expect_same(kept, made, what);
            }
          });
        }
}

TEST(AttentionPlans, AreMadeOnceForAllCalls) {
  AttentionCase c = self_case({2, 300, 300, 2, 1, 8, 8}, kF32, Order::sorted);
  c.use_documents(40);
  c = keeping(c);
  const ops::AttentionPlans& plans = *c.queries.plans;
  EXPECT_EQ(plans.num_kept(), 0);
  c.backward(c.forward());
  const int64_t made = plans.num_kept();
  EXPECT_EQ(made, 4);  // ranges of panels and of groups, tiles of the forward and of the backward
  for (int layer = 0; layer < 3; ++layer) c.backward(c.forward());
  EXPECT_EQ(plans.num_kept(), made);
  c.options.mask.window = 20;  // of another layer
  c.backward(c.forward());
  EXPECT_EQ(plans.num_kept(), made + 2);
}

TEST(AttentionPlans, AreMadeAnewWhenTheTokensWereWritten) {
  AttentionCase c = keeping(self_case({1, 200, 200, 2, 1, 8, 8}, kF32, Order::sorted));
  const ops::Attention before = c.forward();
  auto* positions = c.queries.positions.mutable_data<int32_t>();
  std::reverse(positions, positions + 200);
  AttentionCase made = c;
  made.queries.plans = made.keys.plans = nullptr;
  expect_same(c, made, "reversed");
  EXPECT_FALSE(are_same_bits(c.forward().out, before.out));
}

// Who copies the tokens and gives the copy other numbers also copies the plans: they are not those of other tokens.
TEST(AttentionPlans, ServeTheirOwnTokensOnly) {
  AttentionCase c = keeping(self_case({1, 200, 200, 2, 1, 8, 8}, kF32, Order::sorted));
  c.forward();
  AttentionCase other = c;
  other.queries.positions = other.keys.positions = make_positions(1, 200, Order::striped, 5);
  AttentionCase made = other;
  made.queries.plans = made.keys.plans = nullptr;
  expect_same(other, made, "other positions");
  AttentionCase part = c;  // some of the keys
  part.k = c.k.slice(1, 50, 200), part.v = c.v.slice(1, 50, 200);
  part.keys.positions = c.keys.positions.slice(1, 50, 200);
  made = part;
  made.queries.plans = made.keys.plans = nullptr;
  expect_same(part, made, "a part of the keys");
}

TEST(AttentionPlans, KeepLittleWhereEveryTileIsPartial) {
  AttentionCase c = self_case({1, 3000, 3000, 1, 1, 4, 4}, kF32, Order::sorted);
  auto* positions = c.queries.positions.mutable_data<int32_t>();
  for (int64_t i = 0; i < 3000; ++i) positions[i] = static_cast<int32_t>(i * 1597 % 3000);  // every block has all parts
  const AttentionCase made = c;
  c = keeping(c);
  const int64_t bytes = allocator(Device::cpu()).stats().current_bytes;
  expect_same(c, made, "scattered");
  EXPECT_LT(allocator(Device::cpu()).stats().current_bytes - bytes, 32 << 10);
}

}  // namespace
}  // namespace weft
