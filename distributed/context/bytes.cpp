#include "distributed/context/bytes.h"

#include <algorithm>
#include <numeric>

#include "distributed/context/ring_call.h"
#include "weft/core/error.h"

namespace weft::dist {

int group_size(Scheme scheme, int ranks, const SchemeOptions& options) {
  return scheme == Scheme::ulysses ? ranks : scheme == Scheme::usp ? options.group : 1;
}

int64_t heads_at_once(Scheme scheme, const SchemeOptions& options, int64_t kv_heads) {
  if (scheme != Scheme::all_gather || options.heads_at_once == 0) return kv_heads;
  return std::min(options.heads_at_once, kv_heads);
}

namespace {

int64_t bytes_of(DType dtype) { return static_cast<int64_t>(size_of(dtype)); }
DType sum_type(DType dtype) { return dtype == kF64 ? kF64 : kF32; }
int64_t place_bytes(const ContextShape& s) { return s.has_documents ? 8 : 4; }  // position, document
// Of k and v of a token: what travels, and as many sums of gradients.
int64_t key_numbers(const ContextShape& s) {
  return s.kv_heads * (s.key_width + (s.are_values_in_keys ? 0 : s.value_width));
}

}  // namespace

ContextShape shape_of(const Call& call) {
  const Queries& q = call.queries;
  const Keys& k = call.keys;
  auto heads_of_bias = [](const Tensor& bias) { return bias.defined() ? bias.size(2) : 0; };
  return {.batch = q.q.size(0),
          .tokens = q.q.size(1),
          .heads = q.q.size(2),
          .kv_heads = k.k.size(2),
          .key_width = q.q.size(3),
          .value_width = k.values().size(3),
          .dtype = q.q.dtype(),
          .are_values_in_keys = !k.v.defined(),
          .has_documents = k.documents.defined(),
          .has_lse = call.options.normaliser != ops::Normaliser::sum,
          .query_bias_heads = heads_of_bias(q.bias),
          .key_bias_heads = heads_of_bias(k.bias),
          .bias_dtype = q.bias.defined()   ? q.bias.dtype()
                        : k.bias.defined() ? k.bias.dtype()
                                           : kF32};
}

PacketBytes key_bytes(const ContextShape& s) {
  const int64_t tokens = s.batch * s.tokens;
  return {.data = tokens *
                  (key_numbers(s) * bytes_of(s.dtype) + s.key_bias_heads * bytes_of(s.bias_dtype) + place_bytes(s)),
          .sums = tokens * (key_numbers(s) * bytes_of(sum_type(s.dtype)) + s.key_bias_heads * bytes_of(kF64))};
}

PacketBytes query_bytes(const ContextShape& s) {
  const int64_t tokens = s.batch * s.tokens, row = s.has_lse ? 2 * bytes_of(sum_type(s.dtype)) : 0;  // lse, delta
  const int64_t data = s.heads * ((s.key_width + s.value_width) * bytes_of(s.dtype) + row) +
                       s.query_bias_heads * bytes_of(s.bias_dtype) + place_bytes(s);
  return {.data = tokens * data,
          .sums = tokens * (s.heads * s.key_width * bytes_of(sum_type(s.dtype)) + s.query_bias_heads * bytes_of(kF64))};
}

bool do_queries_travel(Scheme scheme, Travels wanted, const ContextShape& shape) {
  switch (scheme) {
    case Scheme::all_gather:
    case Scheme::ulysses: return false;
    case Scheme::ring:
    case Scheme::bidirectional_ring:
    case Scheme::double_ring:
    case Scheme::usp: break;
  }
  const PacketBytes queries = query_bytes(shape), keys = key_bytes(shape);
  return wanted == Travels::queries ||
         (wanted == Travels::automatic && queries.data + queries.sums < keys.data + keys.sums);
}

namespace {

struct Sent {
  int64_t all = 0, between_nodes = 0;
};

// What rank `me` of a route sends. `rank_of` maps ranks of the route to those of nodes of `node` ranks.
template <class RankOf>
Sent sent_by(int me, const Traffic& traffic, const PacketBytes& bytes, int64_t tokens, int node, RankOf rank_of) {
  const Route& route = traffic.route();
  Sent sent;
  auto count = [&](bool is_sent, int to, int64_t of_whole, const TokenRange& which) {
    if (!is_sent || tokens == 0) return;
    const TokenRange range = which.of(tokens);
    const int64_t size = of_whole / tokens * (range.end - range.begin);
    sent.all += size;
    if (node > 0 && rank_of(to) / node != rank_of(me) / node) sent.between_nodes += size;
  };
  for (int w = 0; w < static_cast<int>(route.hops.size()); ++w) {
    const Hop& hop = route.hops[static_cast<size_t>(w)];
    if (hop.from >= 0) {
      const int to = route.holder(route.owner(me, hop.from), w);
      count(traffic.has_packet(to, w), to, bytes.data, traffic.packet_range(to, w));
    }
    if (hop.sums_from >= 0)
      count(traffic.passes_sums(me, hop.sums_from), route.holder(route.owner(me, hop.sums_from), w), bytes.sums,
            traffic.sums_range(me, hop.sums_from));
    count(traffic.sends_home(me, w), route.owner(me, w), bytes.sums, traffic.sums_range(me, w));
  }
  return sent;
}

}  // namespace

MessageBytes message_bytes(Scheme scheme, const ContextShape& shape, const SchemeOptions& options,
                           const HopPlan& plan) {
  const int ranks = shape.ranks;
  check_scheme(scheme, ranks, shape.heads, options);
  const int group = group_size(scheme, ranks, options), ring = ranks / group;
  WEFT_CHECK(plan.ranks == ranks, str("message_bytes: a plan of ", plan.ranks, " ranks for ", ranks),
             "make the plan from the layout of the shape's ranks");
  ContextShape of = shape;  // in the ring
  MessageBytes most;
  int64_t forward_of_heads = 0, backward_of_heads = 0;
  if (group > 1) {
    const int64_t run = std::gcd(shape.heads / group, shape.heads / shape.kv_heads);
    of.tokens *= group, of.heads /= group, of.kv_heads = of.heads / run;
    auto each = [&](int64_t heads) { return heads == shape.heads ? of.heads : heads ? of.kv_heads : 0; };
    of.query_bias_heads = each(shape.query_bias_heads), of.key_bias_heads = each(shape.key_bias_heads);
    // Every rank gives each other one of its group the same: tokens of `of` that are this rank's own.
    const int64_t tokens = (group - 1) * shape.batch * shape.tokens, b = bytes_of(shape.dtype),
                  f = bytes_of(sum_type(shape.dtype));
    const bool has_copies = of.kv_heads * group > shape.kv_heads;
    const int64_t biases = (of.query_bias_heads + of.key_bias_heads) * bytes_of(shape.bias_dtype);
    const int64_t in = of.heads * of.key_width * b + key_numbers(of) * b + biases + place_bytes(of);
    const int64_t rows = shape.has_lse ? f : 0;
    forward_of_heads = tokens * (in + of.heads * (of.value_width * b + rows));
    backward_of_heads =
        tokens * (in + of.heads * (of.value_width * b + 2 * rows) + of.heads * of.key_width * b +
                  key_numbers(of) * (has_copies ? f : b) + (of.query_bias_heads + of.key_bias_heads) * bytes_of(kF64));
  }
  const int64_t at_once = heads_at_once(scheme, options, of.kv_heads);
  const int64_t parts = (of.kv_heads + at_once - 1) / at_once;
  const HopPlan plan_of_ring = plan_of_groups(plan, group);
  PacketBytes keys = key_bytes(of);
  keys.data += (parts - 1) * of.batch * of.tokens * place_bytes(of);  // every chunk of heads has its positions
  const Route route = route_of(scheme, ring, options.node, 1);
  const Traffic traffic = traffic_of_keys(route, plan_of_ring);
  const bool queries_travel = do_queries_travel(scheme, options.backward, of);
  const Route reversed = reversed_of(route);
  const Traffic back = queries_travel ? traffic_of_queries(reversed, plan_of_ring) : traffic;
  for (int place = 0; place < group; ++place)
    for (int r = 0; r < ring; ++r) {
      auto rank_of = [&](int of_ring) { return of_ring * group + place; };
      const Sent forward = sent_by(r, traffic, {.data = keys.data}, of.tokens, options.node, rank_of);
      const Sent backward = sent_by(r, back, queries_travel ? query_bytes(of) : keys, of.tokens, options.node, rank_of);
      most.forward = std::max(most.forward, forward.all + forward_of_heads);
      most.backward = std::max(most.backward, backward.all + backward_of_heads);
      most.forward_between_nodes = std::max(most.forward_between_nodes, forward.between_nodes);
      most.backward_between_nodes = std::max(most.backward_between_nodes, backward.between_nodes);
    }
  return most;
}

MessageBytes message_bytes(Scheme scheme, const ContextShape& shape, const SchemeOptions& options) {
  return message_bytes(scheme, shape, options, HopPlan::every_hop(shape.ranks));
}

bool is_latent_sent(Scheme scheme, const SchemeOptions& options, const ContextShape& heads,
                    const ContextShape& latent) {
  auto bytes = [&](const ContextShape& shape) {
    const MessageBytes sent = message_bytes(scheme, shape, options);
    return sent.forward + sent.backward;
  };
  return bytes(latent) < bytes(heads);
}

}  // namespace weft::dist
