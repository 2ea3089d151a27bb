#include "distributed/context/route.h"

#include <algorithm>

#include "weft/core/error.h"

namespace weft::dist {

int Route::moved(int rank, int hop, int direction) const {
  const Hop& h = hops[static_cast<size_t>(hop)];
  auto step = [&](int place, int distance, int size) { return (place + direction * distance + size) % size; };
  return step(rank / per_node, h.node, nodes) * per_node + step(rank % per_node, h.local, per_node);
}

// Within a node from place to place. The packet with which a round in the node begins also goes to the next node, which needs it a round later.
Route ring_route(int nodes, int per_node) {
  Route route{.nodes = nodes, .per_node = per_node};
  for (int node = 0; node < nodes; ++node)
    for (int local = 0; local < per_node; ++local) {
      const int t = node * per_node + local;
      const int from = local > 0 ? t - 1 : t - per_node;
      // The sums of a rank's own packet stay at home.
      route.hops.push_back({.node = node,
                            .local = local,
                            .from = t > 0 ? from : -1,
                            .sent_in = t > 0 ? from : -1,
                            .due = t,
                            .sums_from = t > 1 ? t - 1 : -1,
                            .sums_sent_in = t > 1 ? t : -1,
                            .home_in = t > 0 ? t + 1 : -1});
    }
  return route;
}

// Hops 2 k - 1 and 2 k are those of k ranks behind and k ranks ahead; their packets travel together.
Route bidirectional_route(int ranks) {
  Route route{.per_node = ranks};
  route.hops.emplace_back();
  for (int t = 1; t < ranks; ++t) {
    const int distance = (t + 1) / 2, pair = 2 * distance - 1;
    const bool is_first = distance == 1;
    route.hops.push_back({.local = t == pair ? distance : ranks - distance,
                          .from = is_first ? 0 : t - 2,
                          .sent_in = is_first ? 0 : pair - 2,
                          .due = pair,
                          .sums_from = is_first ? -1 : t - 2,
                          .sums_sent_in = is_first ? -1 : pair,
                          .home_in = t + 1});
  }
  return route;
}

// Every rank sends its packet to all at once, the next part during the work of this one. Sums go home part by part, when the next part's
// packets have come: so the messages of two ranks are taken in the order in which they were sent.
Route all_gather_route(int ranks, int parts) {
  Route route{.per_node = ranks, .parts = parts};
  for (int part = 0; part < parts; ++part)
    for (int distance = 0; distance < ranks; ++distance) {
      const int own = part * ranks, next = own + ranks;
      route.hops.push_back({.local = distance,
                            .part = part,
                            .from = distance > 0 ? own : -1,
                            .sent_in = distance == 0 ? -1
                                       : part == 0   ? 0
                                                     : own - ranks + 1,
                            .due = distance > 0 ? own + 1 : own,
                            .home_in = distance == 0      ? -1
                                       : part + 1 < parts ? next + 1
                                                          : next});
    }
  return route;
}

Route route_of(Scheme scheme, int ranks, int node, int parts) {
  switch (scheme) {
    case Scheme::ring:
    case Scheme::usp: return ring_route(1, ranks);
    case Scheme::bidirectional_ring: return bidirectional_route(ranks);
    case Scheme::double_ring: return ring_route(ranks / node, node);
    case Scheme::all_gather: return all_gather_route(ranks, parts);
    case Scheme::ulysses: return ring_route(1, 1);
  }
  fail("context attention: no such scheme", "use one of Scheme");
}

Traffic::Traffic(const Route& route, const std::function<TokenRange(int rank, int owner)>& work) : route_(&route) {
  const int hops = static_cast<int>(route.hops.size()), ranks = route.ranks();
  cells_.resize(static_cast<size_t>(hops * ranks));
  for (int t = 0; t < hops; ++t)
    for (int r = 0; r < ranks; ++r) {
      const int sums_from = route.hops[static_cast<size_t>(t)].sums_from, owner = route.owner(r, t);
      Cell& cell = at(r, t);
      cell.tokens = owner == r ? TokenRange::all() : work(r, owner);
      cell.work = cell.packet = !work(r, owner).is_empty();
      cell.sums = cell.work || (sums_from >= 0 && at(route.holder(owner, sums_from), sums_from).sums);
    }
  for (int t = hops - 1; t >= 0; --t)
    for (int r = 0; r < ranks; ++r) {
      const Hop& hop = route.hops[static_cast<size_t>(t)];
      Cell& cell = at(r, t);
      const int owner = route.owner(r, t);
      cell.sums = cell.sums && (cell.work || cell.more);  // otherwise they went home before
      if (hop.from >= 0 && cell.packet) {
        Cell& before = at(route.holder(owner, hop.from), hop.from);
        before.packet = true;
        before.tokens = before.tokens.joined(cell.tokens);
      }
      if (hop.sums_from >= 0 && (cell.work || cell.more))
        at(route.holder(owner, hop.sums_from), hop.sums_from).more = true;
    }
  for (int t = 0; t < hops; ++t)
    for (int r = 0; r < ranks; ++r) {
      Cell& cell = at(r, t);
      if (cell.work) cell.of_sums = cell.tokens;
      if (!gets_sums(r, t)) continue;
      const int from = route.hops[static_cast<size_t>(t)].sums_from;
      cell.of_sums = cell.of_sums.joined(at(route.holder(route.owner(r, t), from), from).of_sums);
    }
}

bool Traffic::passes_sums(int rank, int hop) const { return at(rank, hop).sums && at(rank, hop).more; }

bool Traffic::gets_sums(int rank, int hop) const {
  const int from = route_->hops[static_cast<size_t>(hop)].sums_from;
  return from >= 0 && passes_sums(route_->holder(route_->owner(rank, hop), from), from);
}

bool Traffic::sends_home(int rank, int hop) const {
  return route_->owner(rank, hop) != rank && at(rank, hop).sums && !at(rank, hop).more;
}

HopPlan plan_of_groups(const HopPlan& plan, int size) {
  if (size == 1) return plan;
  const int ranks = plan.ranks / size;
  HopPlan of{.ranks = ranks, .tile = plan.tile, .tokens = plan.tokens * size};
  for (int r = 0; r < ranks; ++r)
    for (int hop = 0; hop < ranks; ++hop) {
      int64_t pairs = 0, tiles = 0;
      bool has_work = false, is_full = true;
      TokenRange keys, queries;
      auto at_place = [&](TokenRange range, int place) -> TokenRange {
        if (range.is_empty() || plan.keys.empty()) return range;
        return {range.begin + place * plan.tokens, range.end + place * plan.tokens};
      };
      for (int query = r * size; query < (r + 1) * size; ++query)
        for (int place = 0; place < size; ++place) {
          const int key = (r - hop + ranks) % ranks * size + place, of_ranks = (query - key + plan.ranks) % plan.ranks;
          pairs += plan.pairs_of(query, of_ranks);
          tiles += plan.tiles[static_cast<size_t>(query * plan.ranks + of_ranks)];
          has_work |= plan.has_work(query, of_ranks);
          keys = keys.joined(at_place(plan.keys_of(query, of_ranks), place));
          queries = queries.joined(at_place(plan.queries_of(query, of_ranks), query - r * size));
          is_full &= plan.cover_of(query, of_ranks) == Cover::full;
        }
      of.pairs.push_back(pairs), of.tiles.push_back(tiles);
      of.cover.push_back(!has_work ? Cover::empty : is_full ? Cover::full : Cover::partial);
      if (!plan.keys.empty()) of.keys.push_back(keys), of.queries.push_back(queries);
      if (has_work) of.steps = std::max(of.steps, hop + 1);
    }
  return of;
}

Route reversed_of(const Route& route) {
  Route of = route;
  of.is_reversed = true;
  return of;
}

Traffic traffic_of_keys(const Route& route, const HopPlan& plan) {
  const int ranks = route.ranks();
  return Traffic(route, [&](int rank, int owner) { return plan.keys_of(rank, (rank - owner + ranks) % ranks); });
}

Traffic traffic_of_queries(const Route& route, const HopPlan& plan) {
  const int ranks = route.ranks();
  return Traffic(route, [&](int rank, int owner) { return plan.queries_of(owner, (owner - rank + ranks) % ranks); });
}

}  // namespace weft::dist
