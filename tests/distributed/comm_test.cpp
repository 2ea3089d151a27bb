// Collectives and messages of ranks that are threads, against what plain loops over all ranks' tensors give.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "tests/support/errors.h"
#include "weft/comm/communicator.h"
#include "weft/core/parallel.h"
#include "weft/core/scope.h"

namespace weft::dist {
namespace {

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
  for (int ranks : {1, 2, 3, 4, 8})
    for (DType dtype : kAll)
      for (int64_t n : {0, 1, 5, 64}) {
        SCOPED_TRACE(str(ranks, " ranks, ", dtype, ", n = ", n));
        run_thread_ranks(ranks, [&](Communicator& comm) {
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

TEST(Communicator, TheExampleOfDocsParallelSumsTheRanks) {
  run_thread_ranks(4, [](Communicator& comm) {
    Tensor sum = Tensor::full({3}, comm.rank());
    comm.all_reduce(sum);
    EXPECT_EQ(sum.to_vector<float>(), std::vector<float>(3, 6));
  });
}

TEST(Communicator, SumsAreTakenInTheOrderOfRanksAndThoseOfBf16AreRoundedOnce) {
  // ((1e16 + 1) - 1e16) + 1 = 1 in float64: another order gives 0 or 2.
  const double doubles[] = {1e16, 1, -1e16, 1};
  // In bf16, 256 + 1 is 256; in f32 the sum of all is 259, which rounds to 260.
  const float halves[] = {256, 1, 1, 1};
  for (int repeat = 0; repeat < 20; ++repeat)
    run_thread_ranks(4, [&](Communicator& comm) {
      const auto me = static_cast<size_t>(comm.rank());
      Tensor x = Tensor::full({7}, doubles[me], kF64), y = Tensor::full({7}, halves[me], kBF16);
      EXPECT_EQ(numbers(comm.reduce_scatter(Tensor::full({4}, doubles[me], kF64))), std::vector<double>{1});
      comm.all_reduce(x);
      comm.all_reduce(y);
      EXPECT_EQ(numbers(x), std::vector<double>(7, 1));
      EXPECT_EQ(numbers(y), std::vector<double>(7, 260));
    });
}

TEST(Communicator, OneRankCopiesNothing) {
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

TEST(Communicator, MessagesAreExchangedInAnyOrderOfSendsAndReceives) {
  for (int ranks : {1, 2, 3, 5})
    run_thread_ranks(ranks, [&](Communicator& comm) {
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

TEST(Communicator, WorkGoesOnWhileMessagesAreOnTheirWayAndTheyArriveInTheirOrder) {
  constexpr int kRanks = 4;
  run_thread_ranks(kRanks, [&](Communicator& comm) {
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
                std::vector<float>(16, static_cast<float>((comm.rank() + 8 * kRanks - hop) % kRanks)));
    }
  });
}

TEST(Communicator, SplitsByColorInTheOrderOfKeys) {
  run_thread_ranks(6, [&](Communicator& world) {
    // Rows {0, 1, 2}, {3, 4, 5} in reverse order, and columns.
    auto row = world.split(world.rank() / 3, -world.rank(), "row");
    auto column = world.split(world.rank() % 3, 0, "column");
    EXPECT_EQ(row->size(), 3);
    EXPECT_EQ(row->rank(), 2 - world.rank() % 3);
    EXPECT_EQ(row->name(), "row");
    EXPECT_EQ(column->size(), 2);
    EXPECT_EQ(column->rank(), world.rank() / 3);
    const float first = static_cast<float>(world.rank() / 3 * 3);
    EXPECT_EQ(row->all_gather(Tensor::full({1}, world.rank())).to_vector<float>(),
              (std::vector<float>{first + 2, first + 1, first}));
    Tensor sum = Tensor::full({1}, world.rank(), kF64);
    column->all_reduce(sum);
    EXPECT_EQ(sum.item(), 2 * (world.rank() % 3) + 3);
  });
}

TEST(Communicator, RanksHaveTheirLabelAndTheirShareOfTheThreads) {
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

// Collectives of random kind, size and group, the same on all ranks; their results are checked.
void soak(int ranks, int64_t operations) {
  run_thread_ranks(ranks, [&](Communicator& world) {
    auto pair = world.split(world.rank() / 2, 0, "pair");
    auto turned = world.split(0, -world.rank(), "turned");
    Communicator* groups[] = {&world, pair.get(), turned.get()};
    std::mt19937 choice(17);  // the same choices on every rank
    for (int64_t i = 0; i < operations; ++i) {
      Communicator& comm = *groups[choice() % 3];
      const unsigned kind = choice() % 6;
      const int64_t n = static_cast<int64_t>(choice() % 40);
      const int size = comm.size();
      switch (kind) {
        case 0: comm.barrier(); break;
        case 1: {
          Tensor x = Tensor::full({n}, comm.rank() + 1, kF64);
          comm.all_reduce(x);
          ASSERT_EQ(numbers(x), std::vector<double>(static_cast<size_t>(n), size * (size + 1) / 2.0));
          break;
        }
        case 2: ASSERT_EQ(comm.all_gather(Tensor::full({n}, comm.rank())).size(0), n * size); break;
        case 3: {
          Tensor mine = comm.reduce_scatter(Tensor::full({size * n}, comm.rank()));
          ASSERT_EQ(numbers(mine), std::vector<double>(static_cast<size_t>(n), size * (size - 1) / 2.0));
          break;
        }
        case 4: {
          Tensor parts = comm.all_to_all(Tensor::full({size}, comm.rank()));
          for (int r = 0; r < size; ++r) ASSERT_EQ(parts.data<float>()[r], static_cast<float>(r));
          break;
        }
        default: {
          Tensor from = Tensor::full({n + 1}, comm.rank()), to = Tensor::empty({n + 1});
          const int next = (comm.rank() + 1) % size, previous = (comm.rank() + size - 1) % size;
          comm.exchange(std::vector<Send>{{from, next}}, std::vector<Receive>{{to, previous}});
          ASSERT_EQ(to.data<float>()[n], static_cast<float>(previous));
        }
      }
    }
  });
}

TEST(Communicator, TenThousandRandomCallsOnThreeRanksNeitherHangNorErr) { soak(3, 10000); }
TEST(Communicator, TenThousandRandomCallsOnFourRanksNeitherHangNorErr) { soak(4, 10000); }

}  // namespace
}  // namespace weft::dist
