// Many small collectives in a row: what goes wrong once in a thousand calls shows here.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "tests/distributed/ranks.h"
#include "tests/support/random.h"

namespace weft::dist {
namespace {

// Collectives of random kind, size and group, the same on all ranks; their results are checked. Groups come and go.
void soak(int ranks, int64_t calls) {
  test::run_ranks(ranks, [&](Communicator& world) {
    std::mt19937 choice(static_cast<unsigned>(test::seed()));  // the same on every rank
    std::unique_ptr<Communicator> groups[3];
    for (int64_t i = 0; i < calls; ++i) {
      if (i % 500 == 0)
        for (auto& group : groups)
          group = world.split(world.rank() / static_cast<int>(1 + choice() % 4),
                              choice() % 2 ? world.rank() : -world.rank(), "part");
      const unsigned group = choice() % 4, kind = choice() % 6;
      const int64_t n = static_cast<int64_t>(choice() % (choice() % 50 == 0 ? 20000 : 40));
      Communicator& comm = group < 3 ? *groups[group] : world;
      const int size = comm.size(), me = comm.rank();
      auto all_are = [&](const Tensor& x, int64_t begin, int64_t end, double value) {
        for (int64_t e = begin; e < end; ++e)
          if (x.data<float>()[e] != static_cast<float>(value)) return false;
        return true;
      };
      switch (kind) {
        case 0: comm.barrier(); break;
        case 1: {
          Tensor x = Tensor::full({n}, me + 1);
          comm.all_reduce(x);
          ASSERT_TRUE(all_are(x, 0, n, size * (size + 1) / 2.0)) << "call " << i;
          break;
        }
        case 2: {
          Tensor all = comm.all_gather(Tensor::full({n}, me));
          for (int r = 0; r < size; ++r) ASSERT_TRUE(all_are(all, r * n, (r + 1) * n, r)) << "call " << i;
          break;
        }
        case 3:
          ASSERT_TRUE(all_are(comm.reduce_scatter(Tensor::full({size * n}, me)), 0, n, size * (size - 1) / 2.0))
              << "call " << i;
          break;
        case 4: {
          Tensor parts = comm.all_to_all(Tensor::full({size * n}, me));
          for (int r = 0; r < size; ++r) ASSERT_TRUE(all_are(parts, r * n, (r + 1) * n, r)) << "call " << i;
          break;
        }
        default: {
          Tensor from = Tensor::full({n}, me), to = Tensor::empty({n});
          const int next = (me + 1) % size, previous = (me + size - 1) % size;
          comm.exchange(std::vector<Send>{{from, next}}, std::vector<Receive>{{to, previous}});
          ASSERT_TRUE(all_are(to, 0, n, previous)) << "call " << i;
        }
      }
    }
  });
}

// `comm_test --gtest_filter=*Soak* --calls=100000` makes more of them.
int64_t num_calls() {
  const std::string calls = test::argument("calls");
  return calls.empty() ? 10000 : std::stoll(calls);
}

TEST(CommunicatorSoak, RandomCallsOnThreeAndFourRanksNeitherHangNorErr) {
  const int most = test::rank_counts().back();
  if (most < 3) GTEST_SKIP() << "there are " << most << " ranks";
  for (int ranks = 3; ranks <= std::min(4, most); ++ranks) soak(ranks, num_calls());
}

}  // namespace
}  // namespace weft::dist
