// Collectives and messages, against what plain loops over all ranks' tensors give: with ranks that are threads, and with those of mpirun.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "tests/distributed/ranks.h"
#include "weft/comm/communicator.h"

namespace weft::dist {
namespace {

using test::rank_counts;
using test::run_ranks;

constexpr DType kAll[] = {kF32, kBF16, kF64, kI64, kI32, kU8};

// Small whole numbers that tell rank and index apart; every dtype holds them and their sums over 8 ranks.
double value(int rank, int64_t i) { return static_cast<double>((rank * 7 + i * 3) % 11); }

Tensor of_rank(int rank, const Shape& shape, DType dtype) {
  Tensor x = Tensor::empty(shape, dtype);
  with_type<float, BFloat16, double, int64_t, int32_t, uint8_t>(dtype, "of_rank", [&](auto tag) {
    using T = typename decltype(tag)::type;
    for (int64_t i = 0; i < x.num_elements(); ++i)
      x.mutable_data<T>()[i] = static_cast<T>(static_cast<float>(value(rank, i)));
  });
  return x;
}

std::vector<double> numbers(const Tensor& x) {
  std::vector<double> result;
  with_type<float, BFloat16, double, int64_t, int32_t, uint8_t>(x.dtype(), "numbers", [&](auto tag) {
    using T = typename decltype(tag)::type;
    for (int64_t i = 0; i < x.num_elements(); ++i) result.push_back(static_cast<double>(x.data<T>()[i]));
  });
  return result;
}

TEST(Communicator, EveryCollectiveOfEveryDtypeEqualsLoopsOverAllRanks) {
  for (int ranks : rank_counts())
    for (DType dtype : kAll)
      for (int64_t n : {0, 1, 5, 640}) {
        SCOPED_TRACE(str(ranks, " ranks, ", dtype, ", n = ", n));
        run_ranks(ranks, [&](Communicator& comm) {
          const int me = comm.rank();
          ASSERT_EQ(comm.size(), ranks);
          for (Reduce reduce : {Reduce::sum, Reduce::max, Reduce::min}) {
            Tensor x = of_rank(me, {n}, dtype);
            comm.all_reduce(x, reduce);
            std::vector<double> expected;
            for (int64_t i = 0; i < n; ++i) {
              double all = value(0, i);
              for (int r = 1; r < ranks; ++r)
                all = reduce == Reduce::sum   ? all + value(r, i)
                      : reduce == Reduce::max ? std::max(all, value(r, i))
                                              : std::min(all, value(r, i));
              expected.push_back(all);
            }
            EXPECT_EQ(numbers(x), expected) << to_string(reduce);
          }
          std::vector<double> gathered, scattered, exchanged;
          for (int r = 0; r < ranks; ++r)
            for (int64_t i = 0; i < 2 * n; ++i) gathered.push_back(value(r, i));
          EXPECT_EQ(numbers(comm.all_gather(of_rank(me, {n, 2}, dtype))), gathered);
          for (int64_t i = me * n; i < (me + 1) * n; ++i) {
            double sum = 0;
            for (int r = 0; r < ranks; ++r) sum += value(r, i);
            scattered.push_back(sum);
          }
          EXPECT_EQ(numbers(comm.reduce_scatter(of_rank(me, {ranks * n}, dtype))), scattered);
          for (int r = 0; r < ranks; ++r)
            for (int64_t i = me * n; i < (me + 1) * n; ++i) exchanged.push_back(value(r, i));
          EXPECT_EQ(numbers(comm.all_to_all(of_rank(me, {ranks * n}, dtype))), exchanged);
          for (int root = 0; root < ranks; ++root) {
            Tensor x = of_rank(me, {n}, dtype);
            comm.broadcast(x, root);
            EXPECT_EQ(numbers(x), numbers(of_rank(root, {n}, dtype)));
          }
          comm.barrier();
        });
      }
}

TEST(Communicator, MessagesAreExchangedInAnyOrderOfSendsAndReceives) {
  for (int ranks : rank_counts())
    run_ranks(ranks, [&](Communicator& comm) {
      std::mt19937 order(static_cast<unsigned>(comm.rank()));
      std::vector<Send> sends;
      std::vector<Receive> receives;
      for (int r = 0; r < ranks; ++r) {
        sends.push_back({of_rank(comm.rank() * 10 + r, {33}, kF32), r});
        receives.push_back({Tensor::zeros({11, 3}), r});  // the same number of elements in another shape
      }
      std::shuffle(sends.begin(), sends.end(), order);
      std::shuffle(receives.begin(), receives.end(), order);
      comm.exchange(sends, receives);
      for (const Receive& r : receives)
        EXPECT_EQ(numbers(r.tensor), numbers(of_rank(r.peer * 10 + comm.rank(), {33}, kF32)));
    });
}

TEST(Communicator, SumsAreTakenInTheOrderOfRanksAndThoseOfBf16AreRoundedOnce) {
  // ((1e16 + 1) - 1e16) + 1 = 1 in float64: another order gives 0 or 2.
  const double doubles[] = {1e16, 1, -1e16, 1, 3e15, -1, 7, 1e16};
  // In bf16, 256 + 1 is 256; in f32 the sum of four ranks is 259, which rounds to 260.
  const float halves[] = {256, 1, 1, 1, 1, 1, 1, 1};
  for (int repeat = 0; repeat < 20; ++repeat)
    for (int ranks : rank_counts()) {
      double sum = doubles[0];
      float half = halves[0];
      for (int r = 1; r < ranks; ++r) sum += doubles[r], half += halves[r];
      const double rounded = BFloat16(half);
      run_ranks(ranks, [&](Communicator& comm) {
        const auto me = static_cast<size_t>(comm.rank());
        Tensor x = Tensor::full({7}, doubles[me], kF64), y = Tensor::full({7}, halves[me], kBF16);
        EXPECT_EQ(numbers(comm.reduce_scatter(Tensor::full({ranks}, doubles[me], kF64))), std::vector<double>{sum});
        comm.all_reduce(x);
        comm.all_reduce(y);
        EXPECT_EQ(numbers(x), std::vector<double>(7, sum));
        EXPECT_EQ(numbers(y), std::vector<double>(7, rounded));
      });
    }
}

TEST(Communicator, WorkGoesOnWhileMessagesAreOnTheirWayAndTheyArriveInTheirOrder) {
  const int kRanks = rank_counts().back();
  run_ranks(kRanks, [&](Communicator& comm) {
    const int next = (comm.rank() + 1) % kRanks, previous = (comm.rank() + kRanks - 1) % kRanks;
    Tensor here = Tensor::full({16}, comm.rank());
    for (int hop = 1; hop <= 2 * kRanks; ++hop) {
      Tensor coming = Tensor::empty({16}), second = Tensor::empty({1});
      auto transfer = comm.start_exchange(std::vector<Send>{{here, next}, {Tensor::full({1}, hop), next}},
                                          std::vector<Receive>{{coming, previous}, {second, previous}});
      Tensor sum = Tensor::full({3}, 1);
      comm.all_reduce(sum);  // a collective between start and wait
      EXPECT_EQ(sum.to_vector<float>(), std::vector<float>(3, kRanks));
      transfer->wait();
      here = coming;
      EXPECT_EQ(second.item(), hop);
      EXPECT_EQ(here.to_vector<float>(),
                std::vector<float>(16, static_cast<float>((comm.rank() + 2 * kRanks - hop) % kRanks)));
    }
  });
}

TEST(Communicator, MessagesBelongToTheExchangeThatWasStartedFirstWhicheverIsWaitedForFirst) {
  for (int ranks : rank_counts())
    run_ranks(ranks, [&](Communicator& comm) {
      const int next = (comm.rank() + 1) % ranks, previous = (comm.rank() + ranks - 1) % ranks;
      std::vector<Tensor> got;
      std::vector<std::unique_ptr<Transfer>> transfers;
      for (int i = 0; i < 3; ++i) {
        got.push_back(Tensor::empty({1}));
        transfers.push_back(comm.start_exchange(std::vector<Send>{{Tensor::full({1}, 10 * comm.rank() + i), next}},
                                                std::vector<Receive>{{got.back(), previous}}));
      }
      for (size_t i : {2u, 0u, 1u}) transfers[i]->wait();
      for (int i = 0; i < 3; ++i) EXPECT_EQ(got[static_cast<size_t>(i)].item(), 10 * previous + i);
    });
}

TEST(Communicator, TheExampleOfDocsRanksLaunchSumsTheRanks) {
  for (int ranks : rank_counts())
    run_ranks(ranks, [&](Communicator& comm) {
      Tensor sum = Tensor::full({3}, comm.rank());
      comm.all_reduce(sum);
      EXPECT_EQ(sum.to_vector<float>(), std::vector<float>(3, static_cast<float>(ranks * (ranks - 1) / 2)));
    });
}

TEST(Communicator, SplitsByColorInTheOrderOfKeys) {
  for (int ranks : rank_counts())
    run_ranks(ranks, [&](Communicator& world) {
      // Two rows in reverse order, and columns of one or two ranks.
      const int width = (ranks + 1) / 2, me = world.rank();
      auto row = world.split(me / width, -me, "row");
      auto column = world.split(me % width, 0, "column");
      std::vector<float> in_row;
      for (int r = ranks - 1; r >= 0; --r)
        if (r / width == me / width) in_row.push_back(static_cast<float>(r));
      EXPECT_EQ(row->name(), "row");
      EXPECT_EQ(row->all_gather(Tensor::full({1}, me)).to_vector<float>(), in_row);
      EXPECT_EQ(row->size(), static_cast<int>(in_row.size()));
      EXPECT_EQ(in_row[static_cast<size_t>(row->rank())], static_cast<float>(me));
      EXPECT_EQ(column->rank(), me / width);
      double expected = 0;
      for (int r = me % width; r < ranks; r += width) expected += r;
      Tensor sum = Tensor::full({1}, me, kF64);
      column->all_reduce(sum);
      EXPECT_EQ(sum.item(), expected);
    });
}

}  // namespace
}  // namespace weft::dist
