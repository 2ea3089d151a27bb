// Attention by cuDNN: engines for a described GPU without one, refusals by name, and on a GPU the kernels of both against each other.
#include <dlfcn.h>

#include "ops/cuda/cudnn/attention.h"
#include "tests/ops/attention_case.h"
#include "tests/support/errors.h"
#include "weft/core/stream.h"

namespace weft {
namespace {

using namespace test;

// An H200 in cuDNN's terms: 132 multiprocessors of compute capability 9.0, 227 KiB of shared memory for a block.
constexpr std::string_view kH200 =
    R"({"cudaDeviceId": 0, "deviceName": "NVIDIA H200", "deviceVer": 900, "driverVer": 13000, "multiProcessorCount": 132,
"maxSharedMemoryPerBlockOptin": 232448, "totalGlobalMem": 150000000000, "maxGridSize": [2147483647, 65535, 65535],
"maxBlockSize": [1024, 1024, 64], "regsPerBlock": 65536, "warpSize": 32, "maxSharedMemoryPerBlock": 49152,
"reservedSharedMemoryPerBlock": 1024, "maxRegistersPerSM": 65536, "maxCtasPerSM": 32, "maxThreadsPerBlock": 1024,
"maxThreadsPerSM": 2048, "pciDeviceId": 0, "isTccDriver": 0, "supportCoopLaunch": 1, "smClockRateKHz": 1980000,
"memClockRateKHz": 3201000, "l2CacheSize": 62914560})";

// Without a driver the toolkit's stub stands in for it: cuDNN then matches the graph, finds a deterministic engine and generates its
// kernel, and only loading that fails.
TEST(Cudnn, HasDeterministicEnginesForAnH200) {
  if (!cuda::cudnn_available()) GTEST_SKIP() << "no cuDNN: " << cuda::cudnn_problem();
  const bool has_gpu = num_cuda_devices() > 0;
  if (!has_gpu && !dlopen(WEFT_DRIVER_STUB, RTLD_NOW | RTLD_GLOBAL))
    GTEST_SKIP() << "no driver, nor a stub: " << dlerror();
  for (int64_t width : {64, 128})
    for (const ops::AttentionMask& mask :
         {ops::AttentionMask{.is_causal = false}, ops::AttentionMask{}, ops::AttentionMask{.window = 256}})
      for (bool is_backward : {false, true}) {
        cuda::CudnnEngineCase c{.batch = 1, .tokens = 8192, .heads = 8, .kv_heads = 2};
        c.key_width = c.value_width = width, c.is_backward = is_backward;
        const std::string problem = cuda::cudnn_engine_problem(c, {.mask = mask}, kH200);
        const bool is_loading = problem.find("cuLibraryLoadData returned error") != std::string::npos;
        EXPECT_TRUE(problem.empty() || (!has_gpu && is_loading))
            << "width " << width << (mask.is_causal ? ", causal" : "") << ", window " << mask.window
            << (is_backward ? ", backward: " : ": ") << problem;
      }
}

TEST(Cudnn, SaysWhatItDoesNotTake) {
  if (!cuda::cudnn_available()) GTEST_SKIP() << "no cuDNN: " << cuda::cudnn_problem();
  const cuda::CudnnEngineCase c{.tokens = 512};
  auto problem = [&](const ops::AttentionOptions& o) { return cuda::cudnn_engine_problem(c, o, kH200); };
  EXPECT_EQ(problem({.mask = {.same_document = true}}), "a mask of documents");
  EXPECT_EQ(problem({.mask = {.prefix = 3}}), "a prefix mask");
  EXPECT_EQ(problem({.score = {.softcap = 3}}), "a softcap");
  EXPECT_EQ(problem({.normaliser = ops::Normaliser::signed_softmax}), "the normaliser is not softmax");
  EXPECT_EQ(problem({.dropout = 0.1}), "dropout");
  EXPECT_NE(cuda::cudnn_engine_problem(c, {}, "{}").find("maxGridSize"), std::string::npos);
}

TEST(Cudnn, ByNameIsAnErrorWhereItCannotRun) {
  AttentionCase c({1, 9, 9, 2, 1, 8, 8}, kF32);
  c.options.backend = ops::AttentionBackend::cudnn;
  EXPECT_EQ(error_of([&] { c.forward(); }, {"attend: cuDNN's kernels are for GPUs, q is on cpu", "backend weft"}), "");
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  AttentionCase there = c.on(Device::cuda());
  there.queries.are_consecutive = true;
  there.keys = there.queries;
  EXPECT_EQ(error_of([&] { there.forward(); }, {"attend: cuDNN does not take q", "not bf16 on a GPU"}), "");
  there.keys.positions = ops::clone(there.queries.positions);  // the same numbers, but who knows
  EXPECT_EQ(error_of([&] { there.forward(); }, {"masks by index", "one positions tensor"}), "");
  there.keys = there.queries;
  there.queries.are_consecutive = false;
  EXPECT_EQ(error_of([&] { there.forward(); }, {"masks by index", "are_consecutive"}), "");
}

// Two independent programs: the same numbers, within bf16's rounding of weights and outputs.
TEST(Cudnn, AgreesWithWeftsKernels) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  if (!cuda::cudnn_available()) GTEST_SKIP() << "no cuDNN: " << cuda::cudnn_problem();
  for (int64_t tokens : {64, 200, 1024})
    for (int64_t width : {64, 128})
      for (const ops::AttentionMask& mask :
           {ops::AttentionMask{.is_causal = false}, ops::AttentionMask{}, ops::AttentionMask{.window = 100}}) {
        SCOPED_TRACE(str(tokens, " tokens, width ", width, mask.is_causal ? ", causal" : "", ", window ", mask.window));
        AttentionCase c = AttentionCase({2, tokens, tokens, 4, 2, width, width}, kBF16).on(Device::cuda());
        c.dlse = {};
        c.options.mask = mask;
        c.queries.are_consecutive = true;
        c.keys = c.queries;
        c.options.backend = ops::AttentionBackend::weft;
        ops::Attention ours = c.forward();
        ops::AttentionGrads our_grads = c.backward(ours);
        c.options.backend = ops::AttentionBackend::cudnn;
        auto [theirs, grads] = expect_repeats(c);
        expect_near(theirs.out.cpu(), reference::numbers(ours.out.cpu()), 3e-2, "out");
        expect_near(theirs.lse.cpu(), reference::numbers(ours.lse.cpu()), 1e-2, "lse");
        expect_near(grads.dq.cpu(), reference::numbers(our_grads.dq.cpu()), 5e-2, "dq");
        expect_near(grads.dk.cpu(), reference::numbers(our_grads.dk.cpu()), 5e-2, "dk");
        expect_near(grads.dv.cpu(), reference::numbers(our_grads.dv.cpu()), 5e-2, "dv");
      }
}

}  // namespace
}  // namespace weft
