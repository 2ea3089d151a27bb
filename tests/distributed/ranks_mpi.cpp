// Every process runs all tests. Rank 0 speaks; of the others only failures are heard.
#include <gtest/gtest.h>

#include <cstdio>

#include "tests/distributed/ranks.h"
#include "tests/support/random.h"
#include "weft/core/scope.h"

namespace weft::test {

namespace {

std::unique_ptr<dist::Communicator> world;

class FailuresOfOtherRanks : public ::testing::EmptyTestEventListener {
  void OnTestPartResult(const ::testing::TestPartResult& result) override {
    if (result.failed())
      std::printf("rank %d: %s:%d: %s\n", rank_label().rank, result.file_name(), result.line_number(),
                  result.message());
  }
};

class World : public ::testing::Environment {
  void SetUp() override {
    // Pieces that are smaller than the largest messages of the suite: those travel in many.
    world = dist::make_mpi_communicator({.timeout_s = 60, .piece_bytes = 1000});
    ASSERT_EQ(std::to_string(world->size()), argument("ranks")) << "mpirun of another MPI than the one of this build?";
    if (world->rank() == 0) return;
    auto& listeners = ::testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new FailuresOfOtherRanks);
  }
  void TearDown() override { world.reset(); }
};

[[maybe_unused]] ::testing::Environment* const registered = ::testing::AddGlobalTestEnvironment(new World);

}  // namespace

std::vector<int> rank_counts() {
  std::vector<int> counts;
  for (int n = 1; n <= world->size(); ++n) counts.push_back(n);
  return counts;
}

void run_ranks(int ranks, const std::function<void(dist::Communicator&)>& f) {
  auto group = world->split(world->rank() < ranks, 0, "ranks");
  if (world->rank() < ranks) f(*group);
  world->barrier();
}

}  // namespace weft::test
