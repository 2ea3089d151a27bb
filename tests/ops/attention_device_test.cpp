// The attention core on GPUs: the fuzzed problems of the CPU's tests against the reference, whole and in pieces; repeatability.
#include "tests/ops/attention_case.h"
#include "tests/support/errors.h"
#include "weft/core/stream.h"
#include "weft/ops/attention_core.h"

namespace weft {
namespace {

using namespace test;

TEST(AttentionOnDevices, FuzzedProblemsEqualTheReference) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  fuzz_attention(24, [](const FuzzedAttention& f) {
    expect_equals_reference(f.c, f.tolerance, f.what, Device::cuda());
    expect_pieces_equal_whole(f.c.on(Device::cuda()), f.cuts, f.tolerance, f.what);
  });
}

TEST(AttentionOnDevices, RepeatsBitForBit) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  for (DType dtype : {kF32, kBF16}) {
    AttentionCase c = AttentionCase({1, 130, 150, 4, 2, 64, 64}, dtype, Order::offset).on(Device::cuda());
    ops::Attention y = c.forward(), again = c.forward();
    ops::AttentionGrads grads = c.backward(y), more = c.backward(y);
    expect_same_bits(y.out.cpu(), again.out.cpu(), "out");
    expect_same_bits(y.lse.cpu(), again.lse.cpu(), "lse");
    expect_same_bits(grads.dq.cpu(), more.dq.cpu(), "dq");
    expect_same_bits(grads.dk.cpu(), more.dk.cpu(), "dk");
    expect_same_bits(grads.dv.cpu(), more.dv.cpu(), "dv");
  }
}

TEST(AttentionOnDevices, FunctorsOfTheUsersOwnAreRefused) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  AttentionCase c = AttentionCase({1, 9, 9, 2, 1, 8, 8}, kF32).on(Device::cuda());
  EXPECT_EQ("", error_of(
                    [&] {
                      ops::attend_with(ops::Causal{}, ops::PlainScore{}, ops::SoftmaxNormaliser{}, c.q, c.k, c.v,
                                       c.queries, c.keys, c.options);
                    },
                    {"attend_block_with: q is on cuda:0", "Device::cpu()"}));
}

}  // namespace
}  // namespace weft
