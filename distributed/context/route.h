// Schedules as data. A packet is what travels of one rank: its keys, or its queries. A route says, hop by hop, whose packet every rank has in
// its hands. The same offset holds for all ranks, so a route is a list of a few numbers per hop, and travel.h walks any of them.
// At hop t a rank works on packet t while others are under way; what it has to do with whom follows from the plan, which all ranks share.
#pragma once

#include <functional>
#include <vector>

#include "weft/comm/communicator.h"
#include "weft/distributed/context_attention.h"

namespace weft::dist {

// `parts`: packets of a rank, for all_gather: one per chunk of heads.
struct Hop {
  int node = 0, local = 0;  // how far behind this rank the owner of the packet is, in nodes and in places of a node
  int part = 0;
  int from = -1;     // the hop at which the sender has the packet; -1: it is this rank's own
  int sent_in = -1;  // when it is sent: during the work of that hop
  int due = 0;       // when it must be there: before the work of that hop
  // Sums of gradients follow the packet from rank to rank, one hop behind it, and then go home to its owner.
  int sums_from = -1;     // the hop at whose rank they were before; -1: they begin here
  int sums_sent_in = -1;  // they must be there one hop later
  int home_in = -1;       // when they go home if no hop after this one adds to them
};

struct Route {
  int nodes = 1, per_node = 1, parts = 1;
  bool is_reversed = false;  // the owner is ahead instead of behind
  std::vector<Hop> hops = {};

  int ranks() const { return nodes * per_node; }
  int owner(int rank, int hop) const { return moved(rank, hop, is_reversed ? 1 : -1); }
  int holder(int owner, int hop) const { return moved(owner, hop, is_reversed ? -1 : 1); }

 private:
  int moved(int rank, int hop, int direction) const;
};

Route ring_route(int nodes, int per_node);  // a double ring; with one node a ring
Route bidirectional_route(int ranks);
Route all_gather_route(int ranks, int parts);
Route route_of(Scheme scheme, int ranks, int node, int parts);

// Which messages of a route there are. A packet goes only where it is worked on or passed on, with the tokens that are needed there, and sums
// begin where the first work is: each is known to both sides.
class Traffic {
 public:
  // work(rank, owner): the tokens of the owner's packet that the rank has work with.
  Traffic(const Route& route, const std::function<TokenRange(int rank, int owner)>& work);

  bool has_work(int rank, int hop) const { return at(rank, hop).work; }
  bool has_packet(int rank, int hop) const { return at(rank, hop).packet; }
  bool gets_sums(int rank, int hop) const;    // from the rank of the hop before
  bool passes_sums(int rank, int hop) const;  // to the rank of the hop after
  bool sends_home(int rank, int hop) const;
  // Of the owner's tokens, those of the packet that the rank gets, and those of the sums that it passes on or sends home. A rank has its own
  // packet as a whole.
  TokenRange packet_range(int rank, int hop) const { return at(rank, hop).tokens; }
  TokenRange sums_range(int rank, int hop) const { return at(rank, hop).of_sums; }
  const Route& route() const { return *route_; }

 private:
  // Whether there is work, the packet is needed, sums are there, and a later hop of the chain of sums has work.
  struct Cell {
    bool work = false, packet = false, sums = false, more = false;
    TokenRange tokens = {}, of_sums = {};
  };
  const Cell& at(int rank, int hop) const { return cells_[static_cast<size_t>(hop * route_->ranks() + rank)]; }
  Cell& at(int rank, int hop) { return cells_[static_cast<size_t>(hop * route_->ranks() + rank)]; }

  const Route* route_;
  std::vector<Cell> cells_;
};

// Keys go to the ranks whose queries see them, or queries, on a route in the other direction, to the ranks whose keys they see.
Traffic traffic_of_keys(const Route& route, const HopPlan& plan);
Traffic traffic_of_queries(const Route& route, const HopPlan& plan);
Route reversed_of(const Route& route);
// A plan of groups of `size` ranks from that of the ranks.
HopPlan plan_of_groups(const HopPlan& plan, int size);

}  // namespace weft::dist
