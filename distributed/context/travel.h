// The one loop under all schedules. Hop by hop a rank starts what leaves it, works on the packet that it has, and takes what has come:
//   packets  as the route says, with the tokens that are needed behind
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
//   Sums zeros(int part), new_sums(int part, int64_t tokens);  // of a packet, the second with any values and of so many tokens
//   int64_t tokens();                                // of a whole packet
// Dimension 1 of every tensor of a packet or of sums is that of tokens.
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
    struct Home {
      int part;
      TokenRange range;
      Sums sums;
    };
    std::vector<Home> home = {};  // sums that come home
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
  // Of the owner's tokens, those of packet_at(), and those of sums at a hop of a rank.
  TokenRange range_at(int hop) const {
    const bool is_own = route_.hops[static_cast<size_t>(hop)].from < 0;
    return (is_own ? TokenRange::all() : traffic_.packet_range(me_, hop)).of(work_.tokens());
  }
  TokenRange sums_range(int rank, int hop) const { return traffic_.sums_range(rank, hop).of(work_.tokens()); }
  // The tokens `which` of what holds those of `range`.
  template <class T>
  static T taken(T what, const TokenRange& range, const TokenRange& which) {
    if (which == range) return what;
    for (Tensor* part : what.parts())
      *part = ops::contiguous(part->slice(1, which.begin - range.begin, which.end - range.begin));
    return what;
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
      const TokenRange wanted = traffic_.packet_range(to, w).of(work_.tokens());
      Packet packet = taken(packet_at(hop.from), range_at(hop.from), wanted);
      exchange.send(packet, ranks_[to]);
    }
    if (!traffic_.has_packet(me_, w)) return;
    Packet& packet = packets_[static_cast<size_t>(w)] = new_like(own_[static_cast<size_t>(hop.part)], range_at(w));
    exchange.receive(packet, ranks_[route_.holder(route_.owner(me_, w), hop.from)]);
  }

  void move_sums(Exchange& exchange, int w, const Hop& hop) {
    if (traffic_.passes_sums(me_, hop.sums_from)) {
      Sums sums = std::exchange(sums_[static_cast<size_t>(hop.sums_from)], Sums{});
      exchange.send(sums, ranks_[route_.holder(route_.owner(me_, hop.sums_from), w)]);
    }
    if (!traffic_.gets_sums(me_, w)) return;
    const int before = route_.holder(route_.owner(me_, w), hop.sums_from);
    const TokenRange range = sums_range(before, hop.sums_from);
    Sums& sums = sums_[static_cast<size_t>(w)] = work_.new_sums(hop.part, range.end - range.begin);
    exchange.receive(sums, ranks_[before]);
  }

  void move_home(Exchange& exchange, int w, const Hop& hop) {
    if (traffic_.sends_home(me_, w)) {
      Sums sums = std::exchange(sums_[static_cast<size_t>(w)], Sums{});
      exchange.send(sums, ranks_[route_.owner(me_, w)]);
    }
    const int last = route_.holder(me_, w);
    if (!traffic_.sends_home(last, w)) return;
    const TokenRange range = sums_range(last, w);
    exchange.home.push_back({hop.part, range, work_.new_sums(hop.part, range.end - range.begin)});
    exchange.receive(exchange.home.back().sums, ranks_[last]);
  }

  void work_on(int t) {
    const Hop& hop = route_.hops[static_cast<size_t>(t)];
    const bool has_work = traffic_.has_work(me_, t);
    Sums mine;
    if (has_work) mine = work_(hop.part, packet_at(t));
    if (packet_ends_at(t)) packets_[static_cast<size_t>(t)] = {};
    wait_for(t + 1);
    if (!has_work) return;
    if (traffic_.gets_sums(me_, t)) sums_[static_cast<size_t>(t)] = with_those_before(t, hop, std::move(mine));
    else if (route_.owner(me_, t) == me_) add_home(hop.part, range_at(t), std::move(mine));
    else sums_[static_cast<size_t>(t)] = std::move(mine);
  }

  Sums with_those_before(int t, const Hop& hop, Sums mine) {
    const TokenRange range = range_at(t), all = sums_range(me_, t),
                     before = sums_range(route_.holder(route_.owner(me_, t), hop.sums_from), hop.sums_from);
    Sums sums = std::exchange(sums_[static_cast<size_t>(t)], Sums{});
    if (before == all) return add(sums, before, mine, range), sums;
    Sums joined = taken(work_.zeros(hop.part), TokenRange::all().of(work_.tokens()), all);
    add(joined, all, sums, before), add(joined, all, mine, range);
    return joined;
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
      for (auto& [part, range, sums] : exchange.home) add_home(part, range, std::move(sums));
    }
    on_their_way_ = std::move(later);
  }

  static Packet new_like(Packet packet, const TokenRange& range) {
    for (Tensor* part : packet.parts()) {
      Shape shape = part->shape();
      shape[1] = range.end - range.begin;
      *part = Tensor::empty(shape, part->dtype(), part->device());
    }
    return packet;
  }
  // `to` has the tokens of `all`, `from` some of them.
  static void add(Sums& to, const TokenRange& all, Sums& from, const TokenRange& some) {
    const std::vector<Tensor*> sums = to.parts(), more = from.parts();
    for (size_t i = 0; i < sums.size(); ++i) {
      if (some == all) {
        ops::add_(*sums[i], *more[i]);
        continue;
      }
      Tensor part = sums[i]->slice(1, some.begin - all.begin, some.end - all.begin);
      ops::add_(part, *more[i]);
    }
  }
  void add_home(int part, const TokenRange& range, Sums sums) {
    const auto at = static_cast<size_t>(part);
    const TokenRange all = TokenRange::all().of(work_.tokens());
    if (!has_home_[at] && range == all) home_[at] = std::move(sums);
    else {
      if (!has_home_[at]) home_[at] = work_.zeros(part);
      add(home_[at], all, sums, range);
    }
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
