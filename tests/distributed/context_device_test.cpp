// Attention over ranks that share one GPU, against one call on that GPU and on the CPU; and NCCL with one rank.
#include <chrono>
#include <cstdio>

#include "tests/distributed/context_case.h"
#include "weft/comm/nccl.h"
#include "weft/core/error.h"
#include "weft/core/stream.h"

namespace weft::test {
namespace {

class ContextOnDevices : public ::testing::Test {
  void SetUp() override {
    if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  }
};

// What a rank has, on its device.
RankCase on(RankCase c, Device device) {
  for (Tensor* x : {&c.here.positions, &c.here.documents, &c.options.score.query_bias, &c.options.score.key_bias, &c.q,
                    &c.k, &c.v, &c.dout, &c.dlse})
    if (x->defined()) *x = ops::to(*x, device);
  return c;
}

Results on_cpu(Results results) {
  for (Tensor& x : results)
    if (x.defined()) {
      EXPECT_TRUE(x.is_cuda());
      x = x.cpu();
    }
  return results;
}

Results on_ranks_of_gpu(const AttentionCase& c, Scheme scheme, const Layout& layout, const HopPlan& plan) {
  JoinedTokens all;
  dist::run_thread_ranks(layout.ranks(), [&](Communicator& comm) {
    const RankCase mine = on(RankCase(c, layout, comm.rank()), Device::cuda());
    const dist::ContextRanks ranks(comm, dist::default_options(scheme, layout.ranks(), c.q.size(2)));
    const ops::Attention y = context_attention(ranks, scheme, mine.q, mine.k, mine.v, mine.here, mine.options, plan);
    const ops::AttentionGrads grads = context_attention_backward(ranks, scheme, mine.dout, mine.dlse, mine.q, mine.k,
                                                                 mine.v, y, mine.here, mine.options, plan);
    all.add(mine.positions, on_cpu(results_of(y, grads)));
  });
  return all.joined();
}

TEST_F(ContextOnDevices, EverySchemeEqualsOneRankOfTheGpuAndTheCpu) {
  for (int ranks : {2, 3, 4}) {
    const int64_t tokens = 16 * ranks;
    Sequence s = make_sequence("", tokens, kF64, {.B = 1, .H = 12, .G = 2, .K = 8, .V = 8});
    s.c.use_biases(true);
    use_documents(s, 11);
    s.c.options.mask.window = s.mask.window = 20;
    const Results of_cpu = of_one_rank(s.c), of_gpu = on_cpu(of_one_rank(s.c.on(Device::cuda())));
    const Layout layout = ranks == 2   ? Layout::contiguous(tokens, ranks)
                          : ranks == 3 ? Layout::striped(tokens, ranks, 4)
                                       : Layout::balanced(tokens, ranks, s.mask, 4);
    for (Scheme scheme : dist::all_schemes()) {
      SCOPED_TRACE(str(layout, ", ", to_string(scheme)));
      const Results got = on_ranks_of_gpu(s.c, scheme, layout, plan_hops(layout, s.mask));
      expect_equal(got, of_gpu, 1e-10), expect_equal(got, of_cpu, 1e-10);
    }
  }
}

// sqrt(sum (a - b)^2 / sum b^2) of out, dq, dk, dv: the largest.
double error_of(const Results& got, const Results& want) {
  double worst = 0;
  for (size_t i : {0, 2, 3, 4}) {
    const reference::Numbers x = reference::numbers(ops::contiguous(got[i])),
                             y = reference::numbers(ops::contiguous(want[i]));
    double sum = 0, size = 0;
    for (size_t j = 0; j < x.size(); ++j) sum += (x[j] - y[j]) * (x[j] - y[j]), size += y[j] * y[j];
    worst = std::max(worst, std::sqrt(sum / size));
  }
  return worst;
}

TEST_F(ContextOnDevices, RingOfEightRanksOfOneGpuIsAsExactInBf16AsOneRank) {
  constexpr int kRanks = 8;
  const int64_t tokens = 32 * kRanks;
  Sequence s = make_sequence("", tokens, kBF16, {.B = 1, .H = 8, .G = 2, .K = 64, .V = 64});
  AttentionCase exact = s.c;
  for (Tensor* x : {&exact.q, &exact.k, &exact.v, &exact.dout, &exact.dlse}) *x = ops::cast(*x, kF64);
  const Results want = of_one_rank(exact);
  const double of_one = error_of(on_cpu(of_one_rank(s.c.on(Device::cuda()))), want);
  for (const Layout& layout : {Layout::zigzag(tokens, kRanks), Layout::striped(tokens, kRanks, 16)}) {
    const auto begin = std::chrono::steady_clock::now();
    const double of_ring = error_of(on_ranks_of_gpu(s.c, Scheme::ring, layout, plan_hops(layout, {})), want);
    const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
    std::printf(
        "ring on one GPU: %s, bf16, 8 heads of 64, forward and backward: error against f64 %.2e, of one rank %.2e; "
        "%.0f ms\n",
        to_string(layout).c_str(), of_ring, of_one, ms);
    EXPECT_LE(of_ring, 1.2 * of_one);
  }
}

TEST_F(ContextOnDevices, NcclOfOneRankLeavesNumbersAndSendsMessagesToItself) {
  if (!dist::has_nccl()) GTEST_SKIP() << "this build has no NCCL";
  const auto self = dist::make_self_communicator();
  const auto begin = std::chrono::steady_clock::now();
  const auto comm = dist::make_nccl_communicator(*self, {.timeout_s = 60});
  const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
  const Tensor x = random_normal({1000}, "x", kF32), there = ops::to(x, Device::cuda());
  Tensor sum = ops::to(x, Device::cuda()), received = Tensor::zeros({1000}, kF32, Device::cuda());
  comm->all_reduce(sum);
  comm->broadcast(sum, 0);
  comm->barrier();
  comm->exchange(std::vector<dist::Send>{{there, 0}}, std::vector<dist::Receive>{{received, 0}});
  const Tensor of_part = comm->split(0, 0, "part")->all_gather(there);
  for (const Tensor& got : {sum, received, of_part, comm->reduce_scatter(there), comm->all_to_all(there)})
    expect_same_bits(got.cpu(), x, "NCCL of one rank");
  Sequence s = make_sequence("", 64, kBF16, {.B = 1, .H = 4, .G = 2, .K = 16, .V = 16});
  const AttentionCase c = s.c.on(Device::cuda());
  const ops::Attention want = c.forward(), got = context_attention(*comm, Scheme::ring, c.q, c.k, c.v, c.queries,
                                                                   c.options, HopPlan::every_hop(1));
  expect_same_bits(got.out.cpu(), want.out.cpu(), "out");
  std::printf(
      "NCCL of one rank: started in %.0f ms; every collective, a message to itself, a split and a ring of one rank\n",
      ms);
}

}  // namespace
}  // namespace weft::test
