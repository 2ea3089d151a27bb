// What only ranks that are threads, and one rank alone, promise.
#include <gtest/gtest.h>

#include "weft/comm/communicator.h"
#include "weft/core/parallel.h"
#include "weft/core/scope.h"

namespace weft::dist {
namespace {

TEST(ThreadRanks, TheExampleOfDocsParallelSumsTheRanks) {
  run_thread_ranks(4, [](Communicator& comm) {
    Tensor sum = Tensor::full({3}, comm.rank());
    comm.all_reduce(sum);
    EXPECT_EQ(sum.to_vector<float>(), std::vector<float>(3, 6));
  });
}

TEST(ThreadRanks, RanksHaveTheirLabelAndTheirShareOfTheThreads) {
  const int before = num_threads();
  set_num_threads(4);
  run_thread_ranks(2, [&](Communicator& comm) {
    EXPECT_EQ(rank_label().rank, comm.rank());
    EXPECT_EQ(rank_label().size, 2);
    EXPECT_EQ(num_threads(), 2);
  });
  EXPECT_EQ(num_threads(), 4);
  EXPECT_EQ(rank_label().size, 1);
  set_num_threads(before);
}

TEST(OneRank, CopiesNothing) {
  auto comm = make_self_communicator();
  Tensor x = Tensor::full({4, 3}, 2);
  EXPECT_TRUE(comm->all_gather(x).shares_memory_with(x));
  EXPECT_TRUE(comm->reduce_scatter(x).shares_memory_with(x));
  EXPECT_TRUE(comm->all_to_all(x).shares_memory_with(x));
  comm->all_reduce(x);
  comm->broadcast(x, 0);
  comm->barrier();
  EXPECT_EQ(x.to_vector<float>(), std::vector<float>(12, 2));
  Tensor y = Tensor::zeros({4, 3});
  comm->exchange(std::vector<Send>{{x, 0}}, std::vector<Receive>{{y, 0}});
  EXPECT_EQ(y.to_vector<float>(), x.to_vector<float>());
  EXPECT_EQ(comm->split(3, 1, "part")->size(), 1);
}

}  // namespace
}  // namespace weft::dist
