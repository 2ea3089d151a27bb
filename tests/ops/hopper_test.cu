// Hopper's instructions as ops/cuda/hopper.cuh and wgmma.cuh use them: barriers in shared memory, the copy engine, products of
// warpgroups, on a GPU that has them and on the emulator; and the mistakes that the emulator refuses.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "ops/cuda/attention/tile_wgmma.cuh"
#include "tests/support/errors.h"
#include "weft/core/stream.h"
#include "weft/ops/elementwise.h"

namespace weft::cuda {
namespace {

// Why these tests cannot run here, or "".
std::string no_hopper() {
  if (num_cuda_devices() == 0) return "no GPU: " + cuda_problem();
  const int found = architecture(0);
  return found == 90 ? "" : str("the GPU has compute capability ", found / 10, ".", found % 10, ", not 9.0");
}

using attention::hopper::Panel;
using attention::hopper::SharedMemory;

// Numbers that bf16 holds.
float number(int64_t i) { return static_cast<float>((i * 37 + i / 11) % 17 - 8) / 4; }

// [B, T, H, width] bf16 on the device.
Tensor operand(const Shape& shape) {
  Tensor t = Tensor::empty(shape, kBF16, Device::cpu());
  for (int64_t i = 0; i < t.num_elements(); ++i) t.mutable_data<BFloat16>()[i] = BFloat16(number(i));
  return ops::to(t, Device::cuda());
}
TileMap map_of(const Tensor& t, int rows) {
  const ops::core::Operand x{t.raw(), t.strides()[0], t.strides()[1], t.strides()[2], true, 2};
  return make_tile_map(x, t.size(0), t.size(1), t.size(2), t.size(3), rows);
}
float at(const Tensor& cpu, int64_t b, int64_t t, int64_t h, int64_t c) {
  if (t < 0 || t >= cpu.size(1) || c >= cpu.size(3)) return 0;
  return float(cpu.data<BFloat16>()[((b * cpu.size(1) + t) * cpu.size(2) + h) * cpu.size(3) + c]);
}

// s[64, 64] = a . b over channels, o[64, kWidth] = s b over b's tokens, by one warpgroup. a is rows [64, 128) of a panel.
template <int kWidth>
__global__ void products(const __grid_constant__ TileMap a, const __grid_constant__ TileMap b, float* s, float* o) {
  SharedMemory memory;
  const auto own = memory.panels<Panel<128, kWidth>>(1);
  const auto walked = memory.panels<Panel<64, kWidth>>(1);
  auto& there = memory.rest<SharedBarrier>();
  if (threadIdx.x == 0) there.init(1), fence_barriers();
  __syncthreads();
  if (threadIdx.x == 0) {
    there.arrive_expecting(own.kBytes + walked.kBytes);
    own.copy(a, 1, 0, 5, there), walked.copy(b, 0, 1, 7, there);
  }
  there.wait(0);
  float x[8][4], out[kWidth / 8][4] = {};
  uint32_t weights[4][4];
  wgmma_fence();
  attention::hopper::product(x, own, 64, walked);
  wgmma_commit();
  wgmma_wait<0>(), wgmma_settle(x);
  attention::hopper::pack(weights, x);
  wgmma_fence();
  attention::hopper::accumulate(out, weights, walked);
  wgmma_commit();
  wgmma_wait<0>(), wgmma_settle(out), wgmma_settle(weights);
  const int lane = static_cast<int>(threadIdx.x % 32), first = static_cast<int>(threadIdx.x / 32) * 16 + lane / 4;
  for (int i = 0; i < 4; ++i) {
    const int row = first + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int n = 0; n < 8; ++n) s[row * 64 + 8 * n + column] = x[n][i];
    for (int c = 0; c < kWidth / 8; ++c) o[row * kWidth + 8 * c + column] = out[c][i];
  }
}

template <int kWidth>
void expect_products(int64_t width) {
  Tensor a = operand({2, 120, 2, width}), b = operand({1, 60, 2, width}), here_a = a.cpu(), here_b = b.cpu();
  Tensor s = Tensor::zeros({64, 64}, kF32, Device::cuda()), o = Tensor::zeros({64, kWidth}, kF32, Device::cuda());
  launch("products", products<kWidth>, 1, 128, 1024 + 192 * kWidth * 2 + 64, stream_of(s), map_of(a, 128),
         map_of(b, 64), s.mutable_data<float>(), o.mutable_data<float>());
  const std::vector<float> got = s.cpu().to_vector<float>(), sums = o.cpu().to_vector<float>();
  std::vector<float> want(64 * 64);
  for (int64_t i = 0; i < 64; ++i)
    for (int64_t j = 0; j < 64; ++j) {
      for (int64_t c = 0; c < width; ++c)
        want[i * 64 + j] += at(here_a, 1, 5 + 64 + i, 0, c) * at(here_b, 0, 7 + j, 1, c);
      ASSERT_EQ(got[i * 64 + j], want[i * 64 + j]) << i << ", " << j;
    }
  for (int64_t i = 0; i < 64; ++i)
    for (int64_t c = 0; c < kWidth; ++c) {
      double sum = 0;
      for (int64_t j = 0; j < 64; ++j) sum += double{float(BFloat16(want[i * 64 + j]))} * at(here_b, 0, 7 + j, 1, c);
      ASSERT_NEAR(sums[i * kWidth + c], sum, 1e-4 * (1 + std::abs(sum))) << i << ", " << c;
    }
}

TEST(HopperOnDevices, MultipliesWhatTheCopyEngineBrings) {
  if (const std::string why = no_hopper(); !why.empty()) GTEST_SKIP() << why;
  expect_products<64>(64);
  expect_products<64>(40);  // zeros from there on
  expect_products<128>(128);
  expect_products<128>(72);
}

// One warp copies tiles of 64 x 64 to a ring of two stages, four warps sum them; `wrong` is the mistake.
enum class Mistake { none, does_not_wait, does_not_release, overwrites, releases_early, expects_too_much };
__global__ void ring(const __grid_constant__ TileMap map, float* sums, int tiles, Mistake wrong) {
  SharedMemory memory;
  const auto panels = memory.panels<Panel<64, 64>>(2);
  struct Rest {
    SharedBarrier there[2], free[2];
    int first[2];
  };
  Rest& rest = memory.rest<Rest>();
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) rest.there[i].init(1), rest.free[i].init(4);
    fence_barriers();
  }
  __syncthreads();
  attention::hopper::Turn<2> turn;
  if (warp == 4) {
    for (int i = 0; i < tiles; ++i, turn.advance()) {
      if (wrong != Mistake::overwrites) rest.free[turn.stage].wait(turn.parity ^ 1);
      if (lane == 0) rest.first[turn.stage] = 64 * i;
      __syncwarp();
      if (lane == 0) {
        rest.there[turn.stage].arrive_expecting(panels.kBytes + (wrong == Mistake::expects_too_much ? 16 : 0));
        panels[turn.stage].copy(map, 0, 0, 64 * i, rest.there[turn.stage]);
      }
    }
    return;
  }
  float sum = 0;
  for (int i = 0; i < tiles; ++i, turn.advance()) {
    if (wrong != Mistake::does_not_wait) rest.there[turn.stage].wait(turn.parity);
    if (wrong == Mistake::releases_early && lane == 0) rest.free[turn.stage].arrive();
    const auto* x = reinterpret_cast<const BFloat16*>(panels[turn.stage].at);
    for (int j = 0; j < 32; ++j) sum += static_cast<float>(x[static_cast<int>(threadIdx.x) * 32 + j]);
    sum += static_cast<float>(rest.first[turn.stage]);
    if (wrong == Mistake::does_not_release || wrong == Mistake::releases_early) continue;
    __syncwarp();
    if (lane == 0) rest.free[turn.stage].arrive();
  }
  sums[threadIdx.x] = sum;
}

TEST(HopperOnDevices, RingsOfStagesAreCheckedForRaces) {
  if (const std::string why = no_hopper(); !why.empty()) GTEST_SKIP() << why;
  Tensor x = operand({1, 64 * 5, 1, 64}), here = x.cpu();
  auto run = [&](Mistake wrong) {
    Tensor sums = Tensor::zeros({128}, kF32, Device::cuda());
    launch("ring", ring, 1, 160, 1024 + 2 * 64 * 64 * 2 + 64, stream_of(sums), map_of(x, 64),
           sums.mutable_data<float>(), 5, wrong);
    return sums.cpu().to_vector<float>();
  };
  double got = 0, want = 128.0 * 64 * (0 + 1 + 2 + 3 + 4);
  for (float sum : run(Mistake::none)) got += sum;
  for (int64_t i = 0; i < here.num_elements(); ++i) want += float(here.data<BFloat16>()[i]);
  EXPECT_EQ(got, want);
#ifdef WEFT_CUDA_EMULATED
  auto problem = [&](Mistake wrong, std::string_view text) {
    return test::error_of([&] { run(wrong); }, {"ring", text});
  };
  EXPECT_EQ("", problem(Mistake::does_not_wait, "no barrier orders them"));
  EXPECT_EQ("", problem(Mistake::does_not_release, "at barriers in shared memory"));
  EXPECT_EQ("", problem(Mistake::overwrites, "no barrier orders them"));
  EXPECT_EQ("", problem(Mistake::releases_early, "no barrier orders them"));
  EXPECT_EQ("", problem(Mistake::expects_too_much, "at barriers in shared memory"));
#endif
}

#ifdef WEFT_CUDA_EMULATED
// One product of zeros, asked for without a fence or read before it is there, if `wrong` is 1 or 2.
__global__ void careless(float* y, int wrong) {
  SharedMemory memory;
  const auto panel = memory.panels<Panel<64, 64>>(1);
  for (int i = static_cast<int>(threadIdx.x); i < panel.kBytes / 4; i += 128) reinterpret_cast<float*>(panel.at)[i] = 0;
  __syncthreads();
  float x[8][4] = {};
  if (wrong != 1) wgmma_fence();
  attention::hopper::product(x, panel, 0, panel);
  wgmma_commit();
  if (wrong == 2) y[threadIdx.x] = x[3][1];
  wgmma_wait<0>();
  if (wrong != 2) y[threadIdx.x] = x[3][1];
}

TEST(HopperOnDevices, ProductsAreThereWhenTheyHaveBeenWaitedFor) {
  Tensor y = Tensor::zeros({128}, kF32, Device::cuda());
  auto run = [&](int wrong) {
    launch("careless", careless, 1, 128, 1024 + 64 * 64 * 2, stream_of(y), y.mutable_data<float>(), wrong);
    return y.cpu().to_vector<float>()[77];
  };
  EXPECT_EQ(0, run(0));
  EXPECT_EQ("", test::error_of([&] { run(1); }, {"careless", "without wgmma_fence()"}));
  EXPECT_TRUE(std::isnan(run(2)));
}
#endif

}  // namespace
}  // namespace weft::cuda
