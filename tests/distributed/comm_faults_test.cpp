// What ranks say when one of them does something else, fails, or does not come.
#include <gtest/gtest.h>

#include <chrono>
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
                     if (comm.rank() == 0) comm.exchange({}, std::vector<Receive>{{x, 1}});
                   },
                   0.3),
               {"rank 0 waited to receive [5] f32 cpu from rank 1"});
  expect_parts(message_of(
                   2,
                   [](Communicator& comm) {
                     Tensor x = Tensor::zeros({5});
                     if (comm.rank() == 0) comm.exchange(std::vector<Send>{{x, 1}}, {});
                   },
                   0.3),
               {"rank 0 waited for rank 1 to receive [5] f32 cpu"});
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30));
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
