// Equations of times: C_s is the work of the busiest rank at hop s, M(m) = alpha + m / beta.
//   ring      sum over hops s < S - 1 of max(C_s, M(keys)), and C_{S-1}; backward max(C_s, M(keys + sums)) for every hop
//   Ulysses   work, and 4 exchanges in one term: (P-1)/P n (2 H + 2 G) width bytes, 4 alpha
//   gather    work, and (P-1) messages of keys; backward gathers again and reduces the gradients' sums
#include "weft/distributed/cost_model.h"

#include <algorithm>
#include <numeric>

#include "weft/core/error.h"

namespace weft::dist {

namespace {

// Products of n x n scores: 2 forward, 5 backward with the scores computed again; 2 operations per multiply-add.
double flops_per_pair(const AttentionShape& shape, int products) {
  return 2.0 * products * static_cast<double>(shape.rows * shape.heads * shape.width);
}
double forward_time(const AttentionShape& shape, double pairs, const Hardware& hw) {
  return flops_per_pair(shape, 2) * pairs / hw.attention_forward_flops;
}
double backward_time(const AttentionShape& shape, double pairs, const Hardware& hw) {
  return flops_per_pair(shape, 5) * pairs / hw.attention_backward_flops;
}

int num_nodes(int ranks, int ranks_per_node) { return (ranks + ranks_per_node - 1) / ranks_per_node; }
// The slowest link of a ring over all ranks.
const Link& ring_link(int ranks, const Hardware& hw) { return ranks <= hw.ranks_per_node ? hw.inside : hw.between; }

double ring_forward(const AttentionShape& shape, std::span<const double> pairs, const Hardware& hw, double hop_s) {
  double sum = 0;
  for (size_t s = 0; s < pairs.size(); ++s) {
    const double work = forward_time(shape, pairs[s], hw);
    sum += s + 1 < pairs.size() ? std::max(work, hop_s) : work;
  }
  return sum;
}
double ring_backward(const AttentionShape& shape, std::span<const double> pairs, const Hardware& hw, double hop_s) {
  double sum = 0;
  for (double p : pairs) sum += std::max(backward_time(shape, p, hw), pairs.size() > 1 ? hop_s : 0.0);
  return sum;
}

// Exchanges of an all-to-all among `ranks` of a group that hold n tokens each: queries, keys, values, and the output back.
double exchanged_bytes(const AttentionShape& shape, int ranks) {
  const double kv_heads = static_cast<double>(std::max<int64_t>(shape.kv_heads, ranks));  // fewer are replicated
  const double numbers = 2 * static_cast<double>(shape.heads) + 2 * kv_heads;
  return (ranks - 1.0) / ranks * shape.local_tokens() * numbers * static_cast<double>(shape.width * shape.bytes);
}
double exchange_time(const AttentionShape& shape, int ranks, const Link& link) {
  return ranks > 1 ? exchanged_bytes(shape, ranks) / link.bytes_per_s + 4 * link.latency_s : 0.0;
}

// Every rank gets `bytes` of each other rank, as a ring inside a node and by all adapters of a node at once between nodes.
double gather_time(double bytes, int ranks, const Hardware& hw) {
  const int nodes = num_nodes(ranks, hw.ranks_per_node);
  const double inside = (ranks - 1) * bytes / hw.inside.bytes_per_s;
  const double into_node = (nodes - 1.0) / nodes * ranks * bytes / (hw.ranks_per_node * hw.between.bytes_per_s);
  return std::max(inside, nodes > 1 ? into_node : 0.0);
}

// The hops of the ring of a USP group over nodes: each is as long as all hops that its ranks would have made.
std::vector<double> joined_hops(std::span<const double> pairs, int group) {
  const double all = std::accumulate(pairs.begin(), pairs.end(), 0.0);
  const size_t hops = std::max<size_t>(1, pairs.size() / static_cast<size_t>(group));
  return std::vector<double>(hops, all / static_cast<double>(hops));
}

}  // namespace

std::span<const Hardware> hardware_profiles() {
  static const std::vector<Hardware> kProfiles = {
      {.name = "h200",
       .gemm_flops = 690e12,
       .attention_forward_flops = 600e12,
       .attention_backward_flops = 480e12,
       .memory_bytes = 141e9,
       .memory_bytes_per_s = 4.8e12,
       .ranks_per_node = 8,
       .inside = {6e-6, 370e9},
       .between = {12e-6, 45e9}},
      {.name = "h100",
       .gemm_flops = 690e12,
       .attention_forward_flops = 600e12,
       .attention_backward_flops = 480e12,
       .memory_bytes = 80e9,
       .memory_bytes_per_s = 3.35e12,
       .ranks_per_node = 8,
       .inside = {6e-6, 370e9},
       .between = {12e-6, 45e9}},
  };
  return kProfiles;
}

const Hardware& hardware_profile(std::string_view name) {
  std::string names;
  for (const Hardware& hw : hardware_profiles()) {
    if (hw.name == name) return hw;
    names += (names.empty() ? "" : ", ") + hw.name;
  }
  fail(str("hardware_profile: there is no profile '", name, "'"), "use one of " + names);
}

HopMessages hop_messages(const AttentionShape& shape) {
  const double n = shape.local_tokens(), bytes = static_cast<double>(shape.bytes),
               sum_bytes = static_cast<double>(shape.sum_bytes), width = static_cast<double>(shape.width);
  const double heads = static_cast<double>(shape.heads), kv_heads = static_cast<double>(shape.kv_heads);
  return {.keys = 2 * n * kv_heads * width * bytes,
          .key_sums = 2 * n * kv_heads * width * sum_bytes,
          .queries = n * heads * (2 * width * bytes + 8),
          .query_sums = n * heads * width * sum_bytes};
}

bool keys_travel_cheaper(const AttentionShape& shape) {
  const HopMessages m = hop_messages(shape);
  return m.backward_keys() <= m.backward_queries();
}

std::vector<double> lockstep_pairs(const HopPlan& plan) {
  std::vector<double> pairs(static_cast<size_t>(plan.steps));
  for (int s = 0; s < plan.steps; ++s)
    for (int r = 0; r < plan.ranks; ++r)
      pairs[static_cast<size_t>(s)] = std::max(pairs[static_cast<size_t>(s)], double(plan.pairs_of(r, s)));
  return pairs;
}

std::vector<double> causal_lockstep_pairs(LayoutKind layout, int64_t tokens, int ranks) {
  WEFT_CHECK(ranks > 0 && tokens % ranks == 0, str("causal_lockstep_pairs: ", tokens, " tokens over ", ranks, " ranks"),
             "use a number of tokens that the ranks divide");
  const double n = static_cast<double>(tokens / ranks), own = n * (n + 1) / 2;
  double other = 0;
  switch (layout) {
    case LayoutKind::contiguous: other = n * n; break;
    case LayoutKind::striped: other = own; break;
    case LayoutKind::zigzag:
    case LayoutKind::balanced: other = n * n / 2; break;
  }
  std::vector<double> pairs(static_cast<size_t>(ranks), other);
  pairs[0] = own;
  return pairs;
}

std::string_view to_string(CostedScheme scheme) {
  switch (scheme) {
    case CostedScheme::ring: return "ring";
    case CostedScheme::ring_of_queries: return "ring_of_queries";
    case CostedScheme::bidirectional_ring: return "bidirectional_ring";
    case CostedScheme::double_ring: return "double_ring";
    case CostedScheme::ulysses: return "ulysses";
    case CostedScheme::usp: return "usp";
    case CostedScheme::all_gather: return "all_gather";
    case CostedScheme::chunked_all_gather: return "chunked_all_gather";
  }
  return "?";
}

std::span<const CostedScheme> costed_schemes() {
  using enum CostedScheme;
  static constexpr CostedScheme kAll[] = {ring, ring_of_queries, bidirectional_ring, double_ring, ulysses,
                                          usp,  all_gather,      chunked_all_gather};
  return kAll;
}

// Schemes that join nodes.
static std::string node_problem(int ranks, int per_node) {
  if (ranks <= per_node) return str(ranks, " ranks are within one node");
  return ranks % per_node == 0 ? "" : str(ranks, " ranks are not whole nodes of ", per_node);
}

std::string scheme_problem(CostedScheme scheme, const AttentionShape& shape, int ranks_per_node) {
  const int group = scheme == CostedScheme::ulysses ? shape.ranks : ranks_per_node;
  switch (scheme) {
    case CostedScheme::double_ring: return node_problem(shape.ranks, ranks_per_node);
    case CostedScheme::usp:
      if (std::string problem = node_problem(shape.ranks, ranks_per_node); !problem.empty()) return problem;
      [[fallthrough]];
    case CostedScheme::ulysses:
      if (shape.heads % group != 0) return str(group, " ranks do not divide ", shape.heads, " heads");
      if (shape.kv_heads % group != 0 && group % shape.kv_heads != 0)
        return str(group, " ranks and ", shape.kv_heads, " key/value heads do not divide one another");
      return "";
    case CostedScheme::ring:
    case CostedScheme::ring_of_queries:
    case CostedScheme::bidirectional_ring:
    case CostedScheme::all_gather:
    case CostedScheme::chunked_all_gather: return "";
  }
  return "";
}

SchemeCost attention_cost(CostedScheme scheme, const AttentionShape& shape, std::span<const double> pairs,
                          const Hardware& hw) {
  if (std::string problem = scheme_problem(scheme, shape, hw.ranks_per_node); !problem.empty())
    fail(str("attention_cost: ", to_string(scheme), ": ", problem), "use another scheme or number of ranks");
  const HopMessages m = hop_messages(shape);
  const int ranks = shape.ranks, per_node = hw.ranks_per_node, nodes = num_nodes(ranks, per_node);
  const double all = std::accumulate(pairs.begin(), pairs.end(), 0.0), hops = static_cast<double>(pairs.size()) - 1;
  const double forward = forward_time(shape, all, hw), backward = backward_time(shape, all, hw);
  const Link& link = ring_link(ranks, hw);
  const double ring_sent = hops * m.keys, sums_sent = hops > 0 ? (hops + 1) * m.key_sums : 0;
  const double ring_memory = ranks > 1 ? 2 * m.keys + 2 * m.key_sums : 0;
  switch (scheme) {
    case CostedScheme::ring:
      return {.forward_s = ring_forward(shape, pairs, hw, link.time(m.keys)),
              .backward_s = ring_backward(shape, pairs, hw, link.time(m.backward_keys())),
              .forward_sent = ring_sent,
              .backward_sent = ring_sent + sums_sent,
              .extra_bytes = ring_memory};
    case CostedScheme::ring_of_queries:
      return {.forward_s = ring_forward(shape, pairs, hw, link.time(m.keys)),
              .backward_s = ring_backward(shape, pairs, hw, link.time(m.backward_queries())),
              .forward_sent = ring_sent,
              .backward_sent = hops * m.queries + (hops > 0 ? (hops + 1) * m.query_sums : 0),
              .extra_bytes = ranks > 1 ? 2 * m.queries + 2 * m.query_sums : 0};
    case CostedScheme::bidirectional_ring:  // half of the heads each way
      return {.forward_s = ring_forward(shape, pairs, hw, link.time(m.keys / 2)),
              .backward_s = ring_backward(shape, pairs, hw, link.time(m.backward_keys() / 2)),
              .forward_sent = ring_sent,
              .backward_sent = ring_sent + sums_sent,
              .extra_bytes = ring_memory};
    case CostedScheme::double_ring: {
      // A message between nodes has the hops of a node to hide behind.
      const double inner = hw.inside.time(m.keys), outer = hw.between.time(m.keys) / per_node;
      const double inner_back = hw.inside.time(m.backward_keys()),
                   outer_back = hw.between.time(m.backward_keys()) / per_node;
      return {.forward_s = ring_forward(shape, pairs, hw, std::max(inner, outer)),
              .backward_s = ring_backward(shape, pairs, hw, std::max(inner_back, outer_back)),
              .forward_sent = ring_sent,
              .backward_sent = ring_sent + sums_sent,
              .extra_bytes = ring_memory + m.keys};
    }
    case CostedScheme::ulysses: {
      const double exchange = exchange_time(shape, ranks, link), sent = exchanged_bytes(shape, ranks);
      return {.forward_s = forward + exchange,
              .backward_s = backward + exchange,
              .forward_sent = sent,
              .backward_sent = sent,
              .extra_bytes = ranks > 1 ? 2 * sent : 0};
    }
    case CostedScheme::usp: {
      const double exchange = exchange_time(shape, per_node, hw.inside), sent = exchanged_bytes(shape, per_node);
      const std::vector<double> joined = joined_hops(pairs, per_node);
      return {.forward_s = exchange + ring_forward(shape, joined, hw, hw.between.time(m.keys)),
              .backward_s = exchange + ring_backward(shape, joined, hw, hw.between.time(m.backward_keys())),
              .forward_sent = sent + (nodes - 1) * m.keys,
              .backward_sent = sent + (nodes - 1) * m.keys + nodes * m.key_sums,
              .extra_bytes = ring_memory + 2 * sent};
    }
    case CostedScheme::all_gather:
    case CostedScheme::chunked_all_gather: {
      const double chunks = scheme == CostedScheme::all_gather ? 1 : static_cast<double>(shape.kv_heads);
      const double gather = gather_time(m.keys, ranks, hw), reduce = gather_time(m.key_sums, ranks, hw);
      return {.forward_s = forward + gather / chunks,
              .backward_s = backward + (gather + reduce) / chunks,
              .forward_sent = (ranks - 1) * m.keys,
              .backward_sent = (ranks - 1) * (m.keys + m.key_sums),
              .extra_bytes = ranks > 1 ? ranks * (m.keys + m.key_sums) / chunks : 0};
    }
  }
  return {};
}

OverlapThresholds overlap_thresholds(const AttentionShape& shape, const Hardware& hw, const Link& link) {
  const double b = static_cast<double>(shape.bytes), sum = static_cast<double>(shape.sum_bytes);
  const double g = static_cast<double>(shape.heads) / static_cast<double>(shape.kv_heads), beta = link.bytes_per_s;
  return {.forward = b * hw.attention_forward_flops / (g * beta),
          .backward_keys = (2 * b + 2 * sum) * hw.attention_backward_flops / (5 * g * beta),
          .backward_queries =
              (2 * b + sum + 8 / static_cast<double>(shape.width)) * hw.attention_backward_flops / (5 * beta)};
}

double all_reduce_time(double bytes, int ranks, const Hardware& hw) {
  if (ranks == 1) return 0;
  const Link& link = ring_link(ranks, hw);
  return 2.0 * (ranks - 1) * link.time(bytes / ranks);
}

}  // namespace weft::dist
