// What ranks say when one of them does something else, fails, or does not come.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "tests/support/errors.h"
#include "weft/comm/communicator.h"
#include "weft/core/scope.h"

namespace weft::dist {
namespace {

std::string message_of(int ranks, const std::function<void(Communicator&)>& f, double timeout_s = 60) {
  try {
    run_thread_ranks(ranks, f, {.timeout_s = timeout_s});
  } catch (const std::exception& e) { return e.what(); }
  return "no error";
}

void expect_parts(const std::string& message, std::initializer_list<const char*> parts) {
  for (const char* part : parts) EXPECT_NE(message.find(part), std::string::npos) << part << " is not in:\n" << message;
}

TEST(CommunicatorFaults, RanksThatCallDifferentThingsAreNamedWithWhatEachCalls) {
  expect_parts(message_of(3,
                          [](Communicator& comm) {
                            Scope model("model");
                            Tensor x = Tensor::zeros({4});
                            if (comm.rank() == 2) comm.barrier();
                            else comm.all_reduce(x);
                          }),
               {"ranks disagree", "rank 0 calls all_reduce sum of 4 f32 (number 1) at model", "rank 2 calls barrier"});
  expect_parts(message_of(2,
                          [](Communicator& comm) {
                            Tensor x = Tensor::zeros({comm.rank() + 3});
                            comm.all_reduce(x);
                          }),
               {"of 3 f32", "rank 1 calls all_reduce sum of 4 f32"});
  expect_parts(
      message_of(2, [](Communicator& comm) { comm.all_gather(Tensor::zeros({1}, comm.rank() ? kF64 : kF32)); }),
      {"1 f32", "1 f64"});
  expect_parts(message_of(2,
                          [](Communicator& comm) {
                            Tensor x = Tensor::zeros({1});
                            comm.broadcast(x, comm.rank());
                          }),
               {"from rank 0", "from rank 1"});
  expect_parts(message_of(2,
                          [](Communicator& comm) {
                            Tensor x = Tensor::zeros({1});
                            comm.all_reduce(x, comm.rank() ? Reduce::max : Reduce::sum);
                          }),
               {"all_reduce sum", "all_reduce max"});
}

TEST(CommunicatorFaults, ARankThatDoesNotComeIsNamedWithinTheTimeOut) {
  const auto begin = std::chrono::steady_clock::now();
  expect_parts(message_of(
                   4,
                   [](Communicator& comm) {
                     if (comm.rank() != 1 && comm.rank() != 3) comm.barrier();
                   },
                   0.3),
               {"waited 0.3 s for rank 1, 3", "barrier (number 1)"});
  expect_parts(message_of(
                   2,
                   [](Communicator& comm) {
                     Tensor x = Tensor::zeros({5});
                     Scope model("model");
                     if (comm.rank() == 0) comm.exchange({}, std::vector<Receive>{{x, 1}});
                   },
                   0.3),
               {"rank 0 waited 0.3 s to receive [5] f32 cpu from rank 1 at model"});
  expect_parts(message_of(
                   2,
                   [](Communicator& comm) {
                     Tensor x = Tensor::zeros({5});
                     if (comm.rank() == 0) comm.exchange(std::vector<Send>{{x, 1}}, {});
                   },
                   0.3),
               {"rank 0 waited 0.3 s for rank 1 to receive [5] f32 cpu"});
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30));
}

TEST(CommunicatorFaults, InARingTheRankThatIsBehindIsNamedByThoseThatWaitForOthers) {
  expect_parts(message_of(
                   3,
                   [](Communicator& comm) {
                     Scope model("model");
                     auto ring = comm.split(0, -comm.rank(), "ring");  // whose ranks have other numbers
                     if (comm.rank() == 1) return;
                     Tensor x = Tensor::zeros({5}), y = Tensor::zeros({5});
                     ring->exchange(std::vector<Send>{{x, (ring->rank() + 1) % 3}},
                                    std::vector<Receive>{{y, (ring->rank() + 2) % 3}});
                   },
                   1),
               {"ring: rank ", "waited 1 s ", "[5] f32 cpu", "at model", "; rank 1 of the world is in no call",
                " of the world is in an exchange with rank "});
}

TEST(CommunicatorFaults, AnErrorOfOneRankEndsAllAndIsTheOneThatIsThrown) {
  for (bool is_split : {false, true})
    expect_parts(message_of(4,
                            [&](Communicator& comm) {
                              auto half = comm.split(comm.rank() / 2, 0, "half");
                              if (comm.rank() == 2) throw std::runtime_error("the disk is full");
                              if (is_split) half->barrier();  // rank 3 waits in it for rank 2
                              comm.barrier();
                            }),
                 {"the disk is full"});
}

TEST(CommunicatorFaults, AbortWakesRanksThatWaitAndRefusesLaterCalls) {
  std::string of_waiting, of_later;
  EXPECT_EQ(message_of(2,
                       [&](Communicator& comm) {
                         try {
                           if (comm.rank() == 0) {
                             std::this_thread::sleep_for(std::chrono::milliseconds(50));
                             comm.abort("the user stopped the run");
                             comm.barrier();
                           } else {
                             comm.barrier();
                           }
                         } catch (const Error& e) { (comm.rank() ? of_waiting : of_later) = e.what(); }
                       }),
            "no error");
  expect_parts(of_waiting, {"the user stopped the run"});
  expect_parts(of_later, {"the user stopped the run"});
}

TEST(CommunicatorFaults, AbortOfAGroupEndsTheRanksOfAllGroups) {
  expect_parts(message_of(4,
                          [](Communicator& comm) {
                            auto half = comm.split(comm.rank() / 2, 0, "half");
                            if (comm.rank() == 3) half->abort("rank 3 is out of memory");
                            else comm.barrier();
                          }),
               {"out of memory"});
}

// Rank 1 has nothing to do in its broadcast but to wait for rank 0, which copies. An abort ends the wait: not before the copy.
// The last abort comes when the broadcast has ended, however long that takes, so that one copy at least is whole.
TEST(CommunicatorFaults, AfterAnAbortNoRankGoesOnWhileAnotherOneReadsItsMemory) {
  constexpr int64_t kBytes = int64_t{64} << 20;
  constexpr int kUntilItEnds = -1;
  int copied = 0;
  for (int milliseconds : {1, 5, 10, 15, 20, 30, 50, kUntilItEnds}) {
    std::atomic<int> num_begun{0};
    std::atomic<bool> has_ended{false};
    Tensor came = Tensor::zeros({kBytes}, kU8), sent = Tensor::full({kBytes}, 1, kU8);
    EXPECT_EQ(message_of(3,
                         [&](Communicator& comm) {
                           auto pair = comm.split(comm.rank() / 2, 0, "pair");
                           if (comm.rank() == 2) {
                             while (num_begun < 2) std::this_thread::yield();
                             if (milliseconds == kUntilItEnds) has_ended.wait(false);
                             else std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
                             return comm.abort("the user stopped the run");
                           }
                           Tensor& mine = comm.rank() ? sent : came;
                           ++num_begun;
                           try {
                             pair->broadcast(mine, 1);
                             pair->barrier();
                           } catch (const Error&) {}
                           if (comm.rank() == 0) has_ended = true, has_ended.notify_one();
                           if (comm.rank() == 1) mine.mutable_data<uint8_t>()[kBytes - 1] = 2;
                         }),
              "no error");
    const auto* bytes = came.data<uint8_t>();
    ASSERT_NE(bytes[kBytes - 1], 2);
    copied += bytes[kBytes - 1] == 1;
  }
  EXPECT_GT(copied, 0);
}

TEST(CommunicatorFaults, ASlowRankIsWaitedFor) {
  EXPECT_EQ(message_of(
                3,
                [](Communicator& comm) {
                  if (comm.rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(300));
                  comm.barrier();
                },
                30),
            "no error");
}

std::string flight_of(const std::string& folder, int rank) {
  std::ifstream file(str(folder, "/flight-", rank, ".txt"));
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// The line in which `part` stands.
std::string line_of(const std::string& text, const std::string& part) {
  const size_t at = text.find(part);
  if (at == std::string::npos) return "";
  const size_t begin = text.rfind('\n', at) + 1;
  return text.substr(begin, text.find('\n', at) - begin);
}

TEST(CommunicatorFaults, FlightRecordsTellWhichRankWasBehindAndWhere) {
  std::string folder = std::filesystem::temp_directory_path() / "weft-flights-XXXXXX";
  ASSERT_NE(mkdtemp(folder.data()), nullptr);
  message_of(
      2,
      [&](Communicator& comm) {
        comm.record_to(folder);
        Scope model("model");
        Tensor x = Tensor::zeros({6});
        comm.all_reduce(x);
        auto part = comm.split(0, 0, "everyone");
        Tensor y = Tensor::empty({6});
        comm.exchange(std::vector<Send>{{x, 1 - comm.rank()}}, std::vector<Receive>{{y, 1 - comm.rank()}});
        if (comm.rank() == 0) part->broadcast(x, 0);
      },
      0.3);
  const std::string first = flight_of(folder, 0), second = flight_of(folder, 1);
  std::filesystem::remove_all(folder);
  expect_parts(first.substr(0, first.find('\n')), {"state", "seconds", "bytes", "operation", "rank 0 of 2", "process"});
  expect_parts(line_of(first, "all_reduce sum of 6 f32 (number 1) at model"), {"done", " 24 world"});
  expect_parts(line_of(first, "exchange (number 1) at model to 1 from 1"), {"done", " 24 world"});
  expect_parts(line_of(first, "broadcast of 6 f32 from rank 0 (number 1) at model"), {"failed", "0.3", " 24 everyone"});
  expect_parts(line_of(second, "exchange (number 1) at model to 0 from 0"), {"done"});
  EXPECT_EQ(line_of(second, "broadcast"), "");
}

// A rank that sends several tensors to each of many others, deep in a model: a line of the record has room for all of it.
TEST(CommunicatorFaults, FlightRecordsNameTheModuleOfAnExchangeOfManyMessages) {
  std::string folder = std::filesystem::temp_directory_path() / "weft-flights-XXXXXX";
  ASSERT_NE(mkdtemp(folder.data()), nullptr);
  constexpr int kRanks = 8;
  run_thread_ranks(kRanks, [&](Communicator& comm) {
    comm.record_to(folder);
    Scope model("model"), layer("layers.23"), mixer("mixer.experts.attention");
    const Tensor sent = Tensor::zeros({6});
    std::vector<Send> sends;
    std::vector<Receive> receives;
    for (int message = 0; message < 5; ++message)
      for (int r = 0; r < kRanks; ++r)
        if (r != comm.rank()) sends.push_back({sent, r}), receives.push_back({Tensor::empty({6}), r});
    comm.exchange(sends, receives);
    if (comm.rank() == 0) comm.exchange(std::vector<Send>{{sent, 1}, {sent, 2}, {sent, 5}}, {});
    else if (comm.rank() == 1 || comm.rank() == 2 || comm.rank() == 5)
      comm.exchange({}, std::vector<Receive>{{Tensor::empty({6}), 0}});
  });
  const std::string first = flight_of(folder, 0), third = flight_of(folder, 2);
  std::filesystem::remove_all(folder);
  expect_parts(line_of(first, "(number 1)"),
               {"done", "exchange (number 1) at model.layers.23.mixer.experts.attention to 1-7 from 1-7"});
  expect_parts(line_of(first, "(number 2)"), {"(number 2) at model.layers.23.mixer.experts.attention to 1, 2, 5"});
  expect_parts(line_of(third, "(number 1)"), {"attention to 0, 1, 3-7 from 0, 1, 3-7"});
  expect_parts(line_of(third, "(number 2)"), {"(number 2) at model.layers.23.mixer.experts.attention from 0"});
}

TEST(CommunicatorFaults, AFlightRecordThatCannotBeMadeIsAnErrorWithItsPath) {
  auto comm = make_self_communicator();
  EXPECT_EQ(test::error_of([&] { comm->record_to("/nowhere/at/all"); },
                           {"/nowhere/at/all/flight-0.txt", "No such file", "a folder that exists"}),
            "");
}

TEST(CommunicatorFaults, WithoutMpiItsCommunicatorIsRefusedWithTheFix) {
  if (has_mpi()) GTEST_SKIP() << "this build has MPI";
  EXPECT_EQ(test::error_of([] { make_mpi_communicator(); }, {"no MPI", "libopenmpi-dev", "WEFT_MPI=ON"}), "");
}

TEST(CommunicatorFaults, MessagesOfAnotherSizeOrDtypeAreRefused) {
  auto exchange = [](Tensor sent, Tensor received) {
    return message_of(2, [=](Communicator& comm) {
      Tensor to = received;
      if (comm.rank() == 0) comm.exchange(std::vector<Send>{{sent, 1}}, {});
      else comm.exchange({}, std::vector<Receive>{{to, 0}});
    });
  };
  expect_parts(exchange(Tensor::zeros({3}), Tensor::zeros({4})), {"rank 0 sent [3] f32", "rank 1 receives [4] f32"});
  expect_parts(exchange(Tensor::zeros({3}), Tensor::zeros({3}, kF64)), {"rank 0 sent [3] f32", "receives [3] f64"});
}

TEST(CommunicatorFaults, WrongArgumentsAreRefusedBeforeAnyRankWaits) {
  auto comm = make_self_communicator();
  Tensor x = Tensor::zeros({4, 6}), undefined;
  EXPECT_EQ(test::error_of([&] { comm->all_reduce(undefined); }, {"all_reduce", "undefined"}), "");
  Tensor columns = x.transpose(0, 1);
  EXPECT_EQ(test::error_of([&] { comm->all_reduce(columns); }, {"strides", "contiguous"}), "");
  EXPECT_EQ(test::error_of([&] { comm->broadcast(x, 1); }, {"root 1 of 1 ranks", "name a rank"}), "");
  EXPECT_EQ(test::error_of(
                [&] {
                  comm->exchange(std::vector<Send>{{x, 1}}, {});
                },
                {"peer 1 of 1 ranks", "name a rank"}),
            "");
  EXPECT_EQ(test::error_of([&] { comm->all_gather(Tensor::full({}, 1)); }, {"no first dimension", "reshape"}), "");
  EXPECT_EQ(test::error_of([&] { run_thread_ranks(0, [](Communicator&) {}); }, {"0 ranks", "at least one"}), "");
  expect_parts(message_of(3, [](Communicator& three) { three.all_to_all(Tensor::zeros({4})); }),
               {"does not divide into 3 parts"});
}

}  // namespace
}  // namespace weft::dist
