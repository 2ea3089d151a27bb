// The one loop under all schedules. Hop by hop a rank starts what leaves it, works on the packet that it has, and takes what has come:
//   packets  as the route says, unchanged
//   sums     of the gradients that ranks have with a packet; each rank adds its own to those that come, and the last one sends them home
// The work is a function of a packet. Keys travel to queries or queries to keys, forward or backward: the loop does not know.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "distributed/context/route.h"
#include "weft/ops/elementwise.h"

namespace weft::dist {

// Rank r of a route is rank first + r * step of `comm`.
struct RingRanks {
  Communicator& comm;
  int first = 0, step = 1;

  int rank() const { return (comm.rank() - first) / step; }
  int operator[](int r) const { return first + r * step; }
};

// What comes of work without sums: forward.
struct NoSums {
  std::vector<Tensor*> parts() { return {}; }
};

// Work has
//   using Packet, Sums;                              // each with parts(), the tensors that travel
//   Sums operator()(int part, const Packet&);        // works; what it adds to the packet's sums
//   Sums zeros(int part), new_sums(int part);        // of a packet, the second with any values
template <class Work>
class Travel {
 public:
  using Packet = typename Work::Packet;
  using Sums = typename Work::Sums;

  // `own`: this rank's packets, one per part.
  Travel(RingRanks ranks, const Traffic& traffic, std::vector<Packet> own, Work& work)
      : ranks_(ranks),
        me_(ranks.rank()),
        traffic_(traffic),
        route_(traffic.route()),
        work_(work),
        own_(std::move(own)) {}

  // The sums of this rank's packets by all ranks.
  std::vector<Sums> run() {
    const int hops = static_cast<int>(route_.hops.size());
    packets_.resize(route_.hops.size()), sums_.resize(route_.hops.size());
    home_.resize(own_.size()), has_home_.resize(own_.size());
    for (int t = 0; t <= hops; ++t) {
      wait_for(t);
      start(t);
      if (t < hops) work_on(t);
    }
    wait_for(hops + 1);
    for (size_t part = 0; part < own_.size(); ++part)
      if (!has_home_[part]) home_[part] = work_.zeros(static_cast<int>(part));
    return std::move(home_);
  }

 private:
  // One exchange on its way. It holds its tensors.
  struct Exchange {
    int due = 0;
    std::vector<Send> sends = {};
    std::vector<Receive> receives = {};
    std::vector<std::pair<int, Sums>> home = {};  // part, sums that come home
    std::unique_ptr<Transfer> transfer = {};

    template <class T>
    void send(T& what, int to) {
      for (Tensor* tensor : what.parts()) sends.push_back({*tensor, to});
    }
    template <class T>
    void receive(T& what, int from) {
      for (Tensor* tensor : what.parts()) receives.push_back({*tensor, from});
    }
  };

  const Packet& packet_at(int hop) const {
    const Hop& h = route_.hops[static_cast<size_t>(hop)];
    return h.from < 0 ? own_[static_cast<size_t>(h.part)] : packets_[static_cast<size_t>(hop)];
  }

  void start(int t) {
    std::map<int, Exchange> by_due;
    for (int w = 0; w < static_cast<int>(route_.hops.size()); ++w) {
      const Hop& hop = route_.hops[static_cast<size_t>(w)];
      if (hop.sent_in == t) move_packet(by_due[hop.due], w, hop);
      if constexpr (std::is_same_v<Sums, NoSums>) continue;
      if (hop.sums_sent_in == t) move_sums(by_due[t + 1], w, hop);
      if (hop.home_in == t) move_home(by_due[t + 1], w, hop);
    }
    for (auto& [due, exchange] : by_due) {
      exchange.due = due;
      exchange.transfer = ranks_.comm.start_exchange(exchange.sends, exchange.receives);
      on_their_way_.push_back(std::move(exchange));
    }
  }

  void move_packet(Exchange& exchange, int w, const Hop& hop) {
    const int owner = route_.owner(me_, hop.from), to = route_.holder(owner, w);
    if (traffic_.has_packet(to, w)) {
      Packet packet = packet_at(hop.from);
      exchange.send(packet, ranks_[to]);
    }
    if (!traffic_.has_packet(me_, w)) return;
    Packet& packet = packets_[static_cast<size_t>(w)] = new_like(own_[static_cast<size_t>(hop.part)]);
    exchange.receive(packet, ranks_[route_.holder(route_.owner(me_, w), hop.from)]);
  }

  void move_sums(Exchange& exchange, int w, const Hop& hop) {
    if (traffic_.passes_sums(me_, hop.sums_from)) {
      Sums sums = std::exchange(sums_[static_cast<size_t>(hop.sums_from)], Sums{});
      exchange.send(sums, ranks_[route_.holder(route_.owner(me_, hop.sums_from), w)]);
    }
    if (!traffic_.gets_sums(me_, w)) return;
    Sums& sums = sums_[static_cast<size_t>(w)] = work_.new_sums(hop.part);
    exchange.receive(sums, ranks_[route_.holder(route_.owner(me_, w), hop.sums_from)]);
  }

  void move_home(Exchange& exchange, int w, const Hop& hop) {
    if (traffic_.sends_home(me_, w)) {
      Sums sums = std::exchange(sums_[static_cast<size_t>(w)], Sums{});
      exchange.send(sums, ranks_[route_.owner(me_, w)]);
    }
    const int last = route_.holder(me_, w);
    if (!traffic_.sends_home(last, w)) return;
    exchange.home.emplace_back(hop.part, work_.new_sums(hop.part));
    exchange.receive(exchange.home.back().second, ranks_[last]);
  }

  void work_on(int t) {
    const Hop& hop = route_.hops[static_cast<size_t>(t)];
    const bool has_work = traffic_.has_work(me_, t);
    Sums mine;
    if (has_work) mine = work_(hop.part, packet_at(t));
    if (packet_ends_at(t)) packets_[static_cast<size_t>(t)] = {};
    wait_for(t + 1);
    if (!has_work) return;
    if (traffic_.gets_sums(me_, t)) add(sums_[static_cast<size_t>(t)], mine);
    else if (route_.owner(me_, t) == me_) add_home(hop.part, std::move(mine));
    else sums_[static_cast<size_t>(t)] = std::move(mine);
  }

  // Whether no later hop sends the packet on: the exchanges under way hold their own.
  bool packet_ends_at(int t) const {
    return std::none_of(route_.hops.begin(), route_.hops.end(),
                        [&](const Hop& hop) { return hop.from == t && hop.sent_in > t; });
  }

  // In the order in which they were started, so that the messages of two ranks are taken in the order in which they were sent.
  void wait_for(int due) {
    std::vector<Exchange> later;
    for (Exchange& exchange : on_their_way_) {
      if (exchange.due > due) {
        later.push_back(std::move(exchange));
        continue;
      }
      exchange.transfer->wait();
      for (auto& [part, sums] : exchange.home) add_home(part, std::move(sums));
    }
    on_their_way_ = std::move(later);
  }

  static Packet new_like(Packet packet) {
    for (Tensor* part : packet.parts()) *part = Tensor::empty(part->shape(), part->dtype(), part->device());
    return packet;
  }
  static void add(Sums& to, Sums& from) {
    const std::vector<Tensor*> sums = to.parts(), more = from.parts();
    for (size_t i = 0; i < sums.size(); ++i) ops::add_(*sums[i], *more[i]);
  }
  void add_home(int part, Sums sums) {
    const auto at = static_cast<size_t>(part);
    if (has_home_[at]) return add(home_[at], sums);
    home_[at] = std::move(sums);
    has_home_[at] = true;
  }

  RingRanks ranks_;
  int me_;
  const Traffic& traffic_;
  const Route& route_;
  Work& work_;
  std::vector<Packet> own_, packets_;  // packets_: of hops
  std::vector<Sums> sums_, home_;      // of hops; of parts
  std::vector<bool> has_home_;
  std::vector<Exchange> on_their_way_;
};

}  // namespace weft::dist
