// A rank whose others do not exist counts what a rank of real ones has sent.
#include "weft/comm/dry_ranks.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "tests/support/errors.h"
#include "weft/core/error.h"

namespace weft::test {
namespace {

using dist::Communicator;
using dist::Receive;
using dist::Send;

void call_everything(Communicator& comm) {
  Tensor x = Tensor::zeros({12 * comm.size()}), y = Tensor::zeros({6}, kBF16, Device::cpu());
  comm.barrier();
  comm.broadcast(x, 0);
  comm.all_reduce(x);
  comm.all_gather(y);
  comm.reduce_scatter(x);
  comm.all_to_all(x);
  const auto part = comm.split(0, comm.rank(), "everyone");
  part->all_reduce(y, dist::Reduce::max);
  const int next = (comm.rank() + 1) % comm.size(), before = (comm.rank() + comm.size() - 1) % comm.size();
  Tensor from = Tensor::empty({6}, kBF16, Device::cpu());
  comm.exchange(std::vector<Send>{{y, next}, {y, comm.rank()}},
                std::vector<Receive>{{from, before}, {Tensor::empty({6}, kBF16, Device::cpu()), comm.rank()}});
}

TEST(DryRanks, CountWhatRanksSend) {
  for (int ranks : {2, 3, 4}) {
    std::string folder = std::filesystem::temp_directory_path() / "weft-dry-ranks-XXXXXX";
    ASSERT_NE(mkdtemp(folder.data()), nullptr);
    dist::run_thread_ranks(ranks, [&](Communicator& comm) {
      comm.record_to(folder);
      call_everything(comm);
    });
    for (int r = 0; r < ranks; ++r) {
      SCOPED_TRACE(str("rank ", r, " of ", ranks));
      dist::DryCommunicator dry(ranks, r);
      call_everything(dry);
      EXPECT_EQ(dry.bytes_sent(), dist::recorded_bytes(folder, r));
      const int64_t bytes = 12 * ranks * 4, others = ranks - 1;
      EXPECT_EQ(dry.bytes_sent(), bytes + 2 * others * bytes / ranks + others * 12 + 2 * (others * bytes / ranks) +
                                      2 * others * 12 / ranks + 12);
    }
    std::filesystem::remove_all(folder);
  }
  EXPECT_EQ(error_of([] { dist::recorded_bytes("/nowhere/at/all", 0); }, {"/nowhere/at/all/flight-0.txt", "record_to"}),
            "");
}

TEST(DryRanks, GatheredIntegersAreThoseOfThisRankOrAsTheyAreSaidToBe) {
  dist::DryCommunicator comm(3, 1);
  const Tensor all = comm.all_gather(Tensor::from({4, 7}, {2}));
  EXPECT_EQ(all.to_vector<int32_t>(), (std::vector<int32_t>{4, 7, 4, 7, 4, 7}));
  comm.set_others([](int rank, std::span<int32_t> numbers) {
    for (int32_t& number : numbers) number += 10 * rank;
  });
  const std::vector<int32_t> mine{4, 7};
  const Tensor others = comm.split(0, 1, "part")->all_gather(Tensor::from(std::span<const int32_t>(mine), {2}));
  EXPECT_EQ(others.to_vector<int32_t>(), (std::vector<int32_t>{4, 7, 4, 7, 24, 27}));
}

TEST(DryRanks, OneRankSendsNothing) {
  dist::DryCommunicator comm(1, 0);
  call_everything(comm);
  EXPECT_EQ(comm.bytes_sent(), 0);
  EXPECT_EQ(error_of([] { dist::DryCommunicator(2, 2); }, {"rank 2 of 2"}), "");
}

}  // namespace
}  // namespace weft::test
