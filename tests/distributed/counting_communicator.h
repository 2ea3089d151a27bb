// A rank that counts what it sends to others in messages; of collectives it passes those that forwards and backwards need.
#pragma once

#include <gtest/gtest.h>

#include <cstring>

#include "distributed/comm/sent_bytes.h"
#include "weft/comm/communicator.h"
#include "weft/core/error.h"

namespace weft::test {

class CountingCommunicator final : public dist::Communicator {
 public:
  explicit CountingCommunicator(dist::Communicator& to, int node = 0)
      : Communicator(to.rank(), to.size(), to.name()), to_(to), node_(node) {}
  void abort(std::string why) noexcept override { to_.abort(why); }

  int64_t bytes = 0, between_nodes = 0, exchanges = 0;  // of messages
  int64_t collectives = 0, collective_bytes = 0;

 private:
  void run(const dist::Operation& operation, const void* from, void* to) override {
    ++collectives;
    collective_bytes += dist::sent_bytes(operation, size());
    Tensor mine = Tensor::empty({operation.count}, operation.dtype, Device::cpu());
    std::memcpy(mine.mutable_raw(), from, mine.num_bytes());
    Tensor all;
    switch (operation.kind) {
      case dist::Collective::all_gather: all = to_.all_gather(mine); break;
      case dist::Collective::reduce_scatter: all = to_.reduce_scatter(mine); break;
      case dist::Collective::all_reduce: to_.all_reduce(all = mine, operation.reduce); break;
      default: fail(str("not passed on: ", operation), "pass it on");
    }
    std::memcpy(to, all.raw(), all.num_bytes());
  }
  std::unique_ptr<dist::Transfer> start(std::span<const dist::Send> sends,
                                        std::span<const dist::Receive> receives) override {
    ++exchanges;
    for (const dist::Send& s : sends) {
      EXPECT_NE(s.peer, rank());
      bytes += static_cast<int64_t>(s.tensor.num_bytes());
      if (node_ > 0 && s.peer / node_ != rank() / node_) between_nodes += static_cast<int64_t>(s.tensor.num_bytes());
    }
    return to_.start_exchange(sends, receives);
  }
  std::unique_ptr<dist::Communicator> split_off(const dist::Operation&, int color, int key, std::string name) override {
    return to_.split(color, key, name);
  }

  dist::Communicator& to_;
  int node_;
};

}  // namespace weft::test
