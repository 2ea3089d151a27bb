// Collectives and messages of ranks that share one GPU, against the same on the CPU.
#include <gtest/gtest.h>

#include "weft/comm/communicator.h"
#include "weft/core/stream.h"

namespace weft::dist {
namespace {

constexpr int kRanks = 3;

Tensor on_gpu(const Tensor& x) {
  Tensor moved = Tensor::empty(x.shape(), x.dtype(), Device::cuda(0));
  moved.set_bytes(x);
  return moved;
}

Tensor of_rank(int rank, int64_t n) {
  Tensor x = Tensor::empty({n}, kF32, Device::cpu());
  for (int64_t i = 0; i < n; ++i) x.mutable_data<float>()[i] = static_cast<float>((rank * 7 + i * 3) % 11);
  return x;
}

class CommunicatorOnDevices : public ::testing::Test {
  void SetUp() override {
    if (num_cuda_devices() == 0) GTEST_SKIP() << cuda_problem();
  }
};

TEST_F(CommunicatorOnDevices, EveryCollectiveEqualsThatOfTheCpuAndStaysOnTheGpu) {
  run_thread_ranks(kRanks, [](Communicator& comm) {
    const Tensor mine = of_rank(comm.rank(), 12);
    auto expect_equal = [](const Tensor& gpu, const Tensor& cpu) {
      EXPECT_TRUE(gpu.is_cuda());
      EXPECT_EQ(gpu.to_vector<float>(), cpu.to_vector<float>());
    };
    for (Reduce reduce : {Reduce::sum, Reduce::max, Reduce::min}) {
      Tensor gpu = on_gpu(mine), cpu = of_rank(comm.rank(), 12);
      comm.all_reduce(gpu, reduce);
      comm.all_reduce(cpu, reduce);
      expect_equal(gpu, cpu);
    }
    Tensor gpu = on_gpu(mine), cpu = of_rank(comm.rank(), 12);
    comm.broadcast(gpu, 1);
    comm.broadcast(cpu, 1);
    expect_equal(gpu, cpu);
    expect_equal(comm.all_gather(on_gpu(mine)), comm.all_gather(mine));
    expect_equal(comm.reduce_scatter(on_gpu(mine)), comm.reduce_scatter(mine));
    expect_equal(comm.all_to_all(on_gpu(mine)), comm.all_to_all(mine));
  });
}

TEST_F(CommunicatorOnDevices, MessagesTravelBetweenTensorsOfTheGpuAndToTheCpu) {
  run_thread_ranks(kRanks, [](Communicator& comm) {
    const int next = (comm.rank() + 1) % kRanks, previous = (comm.rank() + 2) % kRanks;
    for (int hop = 0; hop < 20; ++hop) {
      const Tensor sent = on_gpu(of_rank(comm.rank() + hop, 1000));
      Tensor gpu = Tensor::empty({1000}, kF32, Device::cuda(0)), cpu = Tensor::empty({1000}, kF32, Device::cpu());
      comm.exchange(std::vector<Send>{{sent, next}, {sent, next}},
                    std::vector<Receive>{{gpu, previous}, {cpu, previous}});
      EXPECT_EQ(gpu.to_vector<float>(), of_rank(previous + hop, 1000).to_vector<float>());
      EXPECT_EQ(cpu.to_vector<float>(), of_rank(previous + hop, 1000).to_vector<float>());
    }
  });
}

TEST_F(CommunicatorOnDevices, RanksMakeTensorsOnTheDeviceOfTheThreadThatStartsThem) {
  const Device before = default_device();
  set_default_device(Device::cuda(0));
  run_thread_ranks(2, [](Communicator&) { EXPECT_EQ(default_device(), Device::cuda(0)); });
  set_default_device(before);
}

}  // namespace
}  // namespace weft::dist
