// The backend wgmma of attention on a GPU that has it: more tiles than stages, bits from run to run, what is empty, what it refuses. Every
// variant of it is compared in attention_device_test.cpp.
#include "tests/ops/attention_case.h"
#include "tests/support/errors.h"
#include "weft/core/stream.h"

namespace weft {
namespace {

using namespace test;

// Why the kernels cannot run here, or "".
std::string no_wgmma() {
  if (num_cuda_devices() == 0) return "no GPU: " + cuda_problem();
  const CudaDeviceInfo gpu = cuda_device_info(0);
  return gpu.major == 9 && gpu.minor == 0 ? "" : str(gpu.name, " is not of compute capability 9.0");
}

AttentionCase by_wgmma(const AttentionSizes& s, DType dtype = kBF16, Order queries = Order::sorted) {
  AttentionCase c(s, dtype, queries);
  c.options.backend = ops::AttentionBackend::wgmma;
  return c;
}

// 530 keys are five tiles of 128, and 270 queries with two heads ten of 64: rings of two and three stages go round.
TEST(AttentionOnHopperDevices, MoreTilesThanStagesEqualTheReferenceAndRepeatBitForBit) {
  if (const std::string why = no_wgmma(); !why.empty()) GTEST_SKIP() << why;
  for (int64_t width : {64, 128}) {
    AttentionCase c = by_wgmma({1, 270, 530, 2, 1, width, width}, kBF16, Order::offset);
    expect_equals_reference(c, 0x1p-6, str("width ", width), Device::cuda());
    expect_repeats(c.on(Device::cuda()));
  }
}

TEST(AttentionOnHopperDevices, NoKeysOrNoQueriesAreLegal) {
  if (const std::string why = no_wgmma(); !why.empty()) GTEST_SKIP() << why;
  AttentionCase c = by_wgmma({2, 5, 0, 2, 1, 8, 8}).on(Device::cuda());
  ops::Attention y = c.forward();
  for (double x : reference::numbers(y.out)) EXPECT_EQ(x, 0);
  for (double x : reference::numbers(c.backward(y).dq)) EXPECT_EQ(x, 0);
  AttentionCase none = by_wgmma({2, 0, 5, 2, 1, 8, 8}).on(Device::cuda());
  ops::AttentionGrads grads = none.backward(none.forward());
  for (const Tensor& t : {grads.dk, grads.dv})
    for (double x : reference::numbers(t)) EXPECT_EQ(x, 0);
}

TEST(AttentionOnHopperDevices, RefusesByNameWhatItDoesNotTake) {
  EXPECT_EQ("", error_of(
                    [] {
                      by_wgmma({1, 9, 9, 2, 1, 8, 8}).forward();
                    },
                    {"attend: the backend wgmma is for GPUs, q is on cpu", "automatic"}));
  if (const std::string why = no_wgmma(); !why.empty()) GTEST_SKIP() << why;
  auto refusal = [](const AttentionCase& c, std::string_view text) {
    return error_of([&] { c.on(Device::cuda()).forward(); },
                    {"the backend wgmma does not take this call", text, "automatic"});
  };
  EXPECT_EQ("", refusal(by_wgmma({1, 9, 9, 2, 1, 8, 8}, kF32), "q is not bf16"));
  EXPECT_EQ("", refusal(by_wgmma({1, 9, 9, 2, 1, 136, 8}), "heads are 136 and 8 wide, they take up to 128"));
  EXPECT_EQ("", refusal(by_wgmma({1, 9, 9, 2, 1, 8, 12}), "of v: a stride of 24 bytes"));
  AttentionCase crooked = by_wgmma({1, 9, 9, 2, 1, 8, 8});
  crooked.gap = 3;
  EXPECT_EQ("", refusal(crooked, "of q: its memory does not start at a multiple of 16 bytes"));
  AttentionCase biased = by_wgmma({1, 9, 9, 2, 1, 8, 8});
  biased.use_biases(true);
  EXPECT_EQ("", refusal(biased, "scores have a query_bias or key_bias"));
  AttentionCase c = by_wgmma({1, 9, 9, 2, 1, 8, 8}).on(Device::cuda());
  ops::Attention y = c.forward();
  c.dout = ops::cast(c.dout, kF32);
  EXPECT_EQ("", error_of([&] { c.backward(y); }, {"does not take this call: the gradient of out is not bf16"}));
}

}  // namespace
}  // namespace weft
