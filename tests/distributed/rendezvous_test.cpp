// Ranks that find each other at a TCP address of this host.
#include "distributed/comm/rendezvous.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "tests/support/errors.h"

namespace weft::dist {
namespace {

// A port of this host that nobody listens at.
std::string free_address() {
  const int file = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  bind(file, reinterpret_cast<sockaddr*>(&address), size);
  getsockname(file, reinterpret_cast<sockaddr*>(&address), &size);
  close(file);
  return str("127.0.0.1:", ntohs(address.sin_port));
}

TEST(Rendezvous, EveryRankHasTheTextsOfAllWhoeverComesFirst) {
  for (int size : {1, 2, 5}) {
    const std::string address = free_address();
    std::vector<std::vector<std::string>> texts(static_cast<size_t>(size));
    std::vector<std::thread> ranks;
    for (int r = size - 1; r >= 0; --r)
      ranks.emplace_back([&, r] {
        if (r == 0) std::this_thread::sleep_for(std::chrono::milliseconds(50));
        texts[static_cast<size_t>(r)] =
            gather_by_tcp(address, r, size, std::string(static_cast<size_t>(r) * 1000, 'x') + str(r), 30);
      });
    for (auto& rank : ranks) rank.join();
    for (const auto& all : texts) {
      ASSERT_EQ(all.size(), static_cast<size_t>(size));
      for (size_t r = 0; r < all.size(); ++r) EXPECT_EQ(all[r], std::string(r * 1000, 'x') + str(r));
    }
  }
}

TEST(Rendezvous, RanksThatDoNotComeAreNamedAfterTheTimeOut) {
  const std::string address = free_address();
  EXPECT_EQ(test::error_of([&] { gather_by_tcp(address, 0, 3, "", 0.1); },
                           {"rank 1, 2 did not come to " + address, "MASTER_ADDR"}),
            "");
}

// Whoever comes to the port and says nothing does not keep rank 0 there.
TEST(Rendezvous, StrangersDoNotProlongTheTimeOut) {
  const std::string address = free_address();
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  to.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(address.find(':') + 1))));
  std::vector<int> strangers;
  std::atomic<bool> is_over{false};
  std::thread others([&] {
    while (strangers.size() < 6 && !is_over) {
      const int file = socket(AF_INET, SOCK_STREAM, 0);
      if (connect(file, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0) strangers.push_back(file);
      else close(file);
    }
  });
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(test::error_of([&] { gather_by_tcp(address, 0, 2, "", 1); }, {"rank 1 did not come to " + address}), "");
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(15));
  is_over = true;
  others.join();
  EXPECT_EQ(strangers.size(), 6u);
  for (int file : strangers) close(file);
}

// A signal that the program handles interrupts what its threads wait in.
TEST(Rendezvous, ASignalDoesNotEndTheWait) {
  struct sigaction action {
  }, before{};
  action.sa_handler = [](int) {};
  sigaction(SIGUSR1, &action, &before);
  const std::string address = free_address();
  std::vector<std::vector<std::string>> texts(3);
  std::vector<std::thread> ranks;
  auto start = [&](int rank) {
    ranks.emplace_back([&, rank] {
      try {
        texts[static_cast<size_t>(rank)] = gather_by_tcp(address, rank, 3, str(rank), 30);
      } catch (const Error& error) { ADD_FAILURE() << error.what(); }
    });
  };
  start(0), start(1);  // for rank 2 the first waits at its door, and the other for the first
  for (int i = 0; i < 10; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    for (std::thread& rank : ranks) pthread_kill(rank.native_handle(), SIGUSR1);
  }
  start(2);
  for (std::thread& rank : ranks) rank.join();
  for (const auto& all : texts) EXPECT_EQ(all, (std::vector<std::string>{"0", "1", "2"}));
  sigaction(SIGUSR1, &before, nullptr);
}

TEST(Rendezvous, AnAddressWhereNobodyListensIsAnErrorThatNamesIt) {
  const std::string address = free_address();
  EXPECT_EQ(test::error_of([&] { gather_by_tcp(address, 1, 2, "", 0.1); },
                           {"rank 0 did not answer at " + address, "refused"}),
            "");
  EXPECT_EQ(test::error_of([&] { gather_by_tcp("node7", 1, 2, "", 0.1); }, {"'node7' is not host:port"}), "");
  EXPECT_EQ(test::error_of([&] { gather_by_tcp("no.such.host.invalid:1", 1, 2, "", 0.1); }, {"no.such.host.invalid:1"}),
            "");
}

TEST(Rendezvous, StrangersAreNotRanksAndOtherProgramsAreRefused) {
  const std::string address = free_address();
  std::string of_first;
  std::thread first([&] {
    of_first = test::error_of([&] { gather_by_tcp(address, 0, 2, "", 30); }, {"rank 1 of 7 came to", "2 ranks meet"});
  });
  const int file = [&] {  // says something else
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(address.find(':') + 1))));
    for (;;) {
      const int stranger = socket(AF_INET, SOCK_STREAM, 0);
      if (connect(stranger, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0) return stranger;
      close(stranger);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }();
  const std::string words = "GET / HTTP/1.1 and more than a greeting";
  EXPECT_EQ(write(file, words.data(), words.size()), static_cast<ssize_t>(words.size()));
  EXPECT_EQ(test::error_of([&] { gather_by_tcp(address, 1, 7, "", 30); }, {"rank 0 at " + address + " left"}), "");
  first.join();
  close(file);
  EXPECT_EQ(of_first, "");
}

}  // namespace
}  // namespace weft::dist
