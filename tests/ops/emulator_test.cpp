// The emulator of GPU kernels itself: barriers, warp functions, matrix instructions, and what it refuses.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "ops/cuda/ptx.cuh"
#include "tests/support/errors.h"

namespace weft::cuda {
namespace {

__global__ void sum_rows(const float* x, float* y, int n) {
  float sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) sum += x[blockIdx.x * n + i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) y[blockIdx.x] = sum;
}

TEST(Emulator, SumsRowsByBlocks) {
  constexpr int kRows = 9, kWidth = 777;
  std::vector<float> x(kRows * kWidth), y(kRows);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 13);
  launch("sum_rows", sum_rows, kRows, 256, 0, nullptr, x.data(), y.data(), kWidth);
  for (size_t r = 0; r < kRows; ++r) {
    float want = 0;
    for (size_t i = 0; i < kWidth; ++i) want += x[r * kWidth + i];
    EXPECT_EQ(y[r], want);
  }
}

__global__ void reverse(int* x) {
  auto* memory = reinterpret_cast<int*>(dynamic_shared());
  int i = static_cast<int>(threadIdx.x + threadIdx.y * blockDim.x), n = static_cast<int>(blockDim.x * blockDim.y);
  memory[i] = x[i];
  __syncthreads();
  x[i] = memory[n - 1 - i] + __shfl_down_sync(0xffffffffu, 1, 1) + static_cast<int>(__ballot_sync(0xffffffffu, i % 2));
}

TEST(Emulator, SharesMemoryAndTalksInWarps) {
  std::vector<int> x(64);
  for (int i = 0; i < 64; ++i) x[static_cast<size_t>(i)] = i;
  launch("reverse", reverse, 1, dim3(16, 4), 64 * 4, nullptr, x.data());
  for (int i = 0; i < 64; ++i) EXPECT_EQ(x[static_cast<size_t>(i)], 63 - i + 1 + static_cast<int>(0xaaaaaaaau));
}

// c[16, 8] = a[16, 16] b[16, 8], a row-major and b by columns, through shared memory and load_matrices.
__global__ void multiply(const BFloat16* a, const BFloat16* b, float* c) {
  auto* at = reinterpret_cast<BFloat16*>(dynamic_shared());
  BFloat16* bt = at + 256;
  int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) at[i] = a[i];
  for (int i = lane; i < 128; i += 32) bt[i] = b[i];
  __syncthreads();
  uint32_t fa[4], fb[4];
  load_matrices<false>(fa, at + (lane % 16) * 16 + lane / 16 * 8);
  load_matrices<false>(fb, bt + (lane % 8) * 16 + lane / 8 % 2 * 8);
  float d[4] = {1, 1, 1, 1};
  uint32_t two[2] = {fb[0], fb[1]};
  mma_bf16_16x8x16(d, fa, two);
  for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

TEST(Emulator, MultipliesTilesAsTheInstructionDoes) {
  std::vector<BFloat16> a(256), b(128);  // b[n, k]
  for (size_t i = 0; i < 256; ++i) a[i] = BFloat16(static_cast<float>(i % 7) - 3);
  for (size_t i = 0; i < 128; ++i) b[i] = BFloat16(static_cast<float>(i % 5) - 2);
  std::vector<float> c(128);
  launch("multiply", multiply, 1, 32, 1024, nullptr, a.data(), b.data(), c.data());
  for (size_t i = 0; i < 16; ++i)
    for (size_t j = 0; j < 8; ++j) {
      float want = 1;
      for (size_t k = 0; k < 16; ++k) want += float(a[i * 16 + k]) * float(b[j * 16 + k]);
      EXPECT_EQ(c[i * 8 + j], want) << i << ", " << j;
    }
}

__global__ void leaves_early(int n) {
  if (static_cast<int>(threadIdx.x) >= n) return;
  __syncthreads();
}
__global__ void splits_a_warp() {
  if (threadIdx.x % 2) __syncwarp();
  else __shfl_sync(0xffffffffu, 1, 0);
}

TEST(Emulator, RefusesWhatAGpuWouldHangOn) {
  EXPECT_EQ("", test::error_of([] { launch("x", leaves_early, 1, 64, 0, nullptr, 60); }, {"ended while others wait"}));
  EXPECT_EQ("", test::error_of([] { launch("x", splits_a_warp, 1, 32, 0, nullptr); }, {"lanes of one warp are at"}));
  launch("x", leaves_early, 1, 64, 0, nullptr, 64);
}

// Kernels with one mistake each, if `is_wrong`.
__global__ void reads_a_neighbour(float* y, bool is_wrong) {
  __shared__ float x[64];
  x[threadIdx.x] = 1;
  if (is_wrong) __shfl_sync(0xffffffffu, 1, 0);  // gives values, orders nothing
  else __syncthreads();
  y[threadIdx.x] = x[threadIdx.x ^ 1];
}
__global__ void reads_another_warp(float* y, bool is_wrong) {
  auto* x = reinterpret_cast<float*>(dynamic_shared());
  x[threadIdx.x] = 1;
  if (is_wrong) __syncwarp();
  else __syncthreads();
  y[threadIdx.x] = x[threadIdx.x ^ 32];
}
__global__ void overwrites(float* y, bool is_wrong) {  // what the block before has used: only a second barrier keeps it
  __shared__ float x[64];
  for (int i = 0; i < 2; ++i) {
    x[threadIdx.x] = static_cast<float>(i);
    __syncthreads();
    y[threadIdx.x] = x[63 - threadIdx.x];
    if (!is_wrong) __syncthreads();
  }
}
__global__ void reads_counts(unsigned* y, bool is_wrong) {
  __shared__ unsigned count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  atomicAdd(&count, 1u);
  if (!is_wrong) __syncthreads();
  if (threadIdx.x == 63) *y = count;
}
__global__ void uses_a_copy(const float* from, float* y, bool is_wrong) {
  auto* x = reinterpret_cast<float*>(dynamic_shared());
  copy_async_4(x + threadIdx.x, from + threadIdx.x);
  copy_commit();
  if (is_wrong) __syncthreads();
  copy_wait<0>();
  if (!is_wrong) __syncthreads();
  y[threadIdx.x] = x[threadIdx.x ^ 1];
}
__global__ void takes_a_copy_early(const float* from, float* y, bool is_wrong) {
  auto* x = reinterpret_cast<float*>(dynamic_shared());
  copy_async_4(x + threadIdx.x, from + threadIdx.x);
  copy_commit();
  copy_async_4(x + 64 + threadIdx.x, from + threadIdx.x);
  copy_commit();
  if (is_wrong) copy_wait<1>();
  else copy_wait<0>();
  y[threadIdx.x] = x[threadIdx.x] + x[64 + threadIdx.x];
}
__global__ void sums_blocks(float* y, bool is_wrong) {
  if (threadIdx.x == 0) y[is_wrong ? 0 : blockIdx.x] = 1;
}
__global__ void leaves_to_next_block(float* y, bool is_wrong) {
  if (threadIdx.x != 0) return;
  if (is_wrong && blockIdx.x > 0) y[blockIdx.x] = y[blockIdx.x - 1];
  else y[blockIdx.x] = 1;
}
__global__ void reads_before_another_writes(float* y, bool is_wrong) {
  if (threadIdx.x != 0) return;
  float next = is_wrong && blockIdx.x + 1 < gridDim.x ? y[blockIdx.x + 1] : 0;
  y[blockIdx.x] = next;
}

TEST(Emulator, FindsRacesThatAGpuMightHide) {
  Tensor y = Tensor::zeros({64}, kF32, Device::cuda(0)), from = Tensor::full({64}, 2, kF32, Device::cuda(0));
  auto* out = y.mutable_data<float>();
  for (bool is_wrong : {false, true}) {
    auto check = [&](const char* name, auto kernel, unsigned blocks, std::string_view problem) {
      auto run = [&] { launch(name, kernel, blocks, 64, 64 * 4, nullptr, out, is_wrong); };
      if (is_wrong) EXPECT_EQ("", test::error_of(run, {name, problem}));
      else run();
    };
    check("reads_a_neighbour", reads_a_neighbour, 1, "4 bytes of static memory that thread");
    check("reads_another_warp", reads_another_warp, 1, "4 bytes of shared memory that thread");
    check("overwrites", overwrites, 1, "4 bytes of static memory that thread");
    check("sums_blocks", sums_blocks, 2, "writes 4 bytes of device memory that another block has written");
    check("leaves_to_next_block", leaves_to_next_block, 3, "reads 4 bytes of device memory that another block");
    check("reads_before_another_writes", reads_before_another_writes, 3, "device memory that another block has read");
    auto count = [&] {
      launch("reads_counts", reads_counts, 1, 64, 0, nullptr, reinterpret_cast<unsigned*>(out), is_wrong);
    };
    if (is_wrong) EXPECT_EQ("", test::error_of(count, {"reads_counts", "changed atomically"}));
    else count();
  }
}

TEST(Emulator, CopiesArriveNoSoonerThanTheyAreWaitedFor) {
  Tensor y = Tensor::zeros({64}, kF32, Device::cuda(0)), from = Tensor::full({64}, 2, kF32, Device::cuda(0));
  auto run = [&](auto kernel, bool is_wrong) {
    launch("copies", kernel, 1, 64, 2 * 64 * 4, nullptr, from.data<float>(), y.mutable_data<float>(), is_wrong);
    float value = 0;
    copy_bytes(&value, y.data<float>() + 7, sizeof value, Device::cpu(), Device::cuda(0));
    return value;
  };
  EXPECT_EQ(2, run(uses_a_copy, false));
  EXPECT_EQ("", test::error_of([&] { run(uses_a_copy, true); }, {"copies", "shared memory that thread"}));
  EXPECT_EQ(4, run(takes_a_copy_early, false));
  EXPECT_TRUE(std::isnan(run(takes_a_copy_early, true)));
}

}  // namespace
}  // namespace weft::cuda
