// Equations of times: C_s is the work of the busiest rank at hop s, M(m) = alpha + m / beta.
//   ring      sum over hops s < S - 1 of max(C_s, M(keys)), and C_{S-1}; backward max(C_s, M(keys + sums)) for every hop
//   Ulysses   work, and 4 exchanges in one term: (P-1)/P n (2 H + 2 G) width bytes, 4 alpha
//   gather    work, and (P-1) messages of keys; backward gathers again and reduces the gradients' sums
#include "weft/distributed/cost_model.h"

#include <algorithm>
#include <numeric>

#include "distributed/context/bytes.h"
#include "weft/core/error.h"

namespace weft::dist {

namespace {

int64_t divided_up(int64_t n, int64_t by) { return (n + by - 1) / by; }
int num_nodes(int ranks, int ranks_per_node) { return (ranks + ranks_per_node - 1) / ranks_per_node; }
// The slowest link of a ring over all ranks.
const Link& ring_link(int ranks, const Hardware& hw) { return ranks <= hw.ranks_per_node ? hw.inside : hw.between; }

// Work of a call: of every hop of a ring, and of the busiest and the mean rank in all.
struct Work {
  std::vector<double> hops;
  double busiest = 0, mean = 0;
};
Work work_of(const AttentionCall& call) {
  const HopPlan& plan = call.plan;
  const double each = call.share * static_cast<double>(call.shape.batch) / static_cast<double>(call.rows);
  Work work{.hops = lockstep_pairs(plan)};
  for (double& pairs : work.hops) pairs *= each;
  for (int r = 0; r < plan.ranks; ++r) {
    double sum = 0;
    for (int s = 0; s < plan.ranks; ++s) sum += each * static_cast<double>(plan.pairs_of(r, s));
    work.busiest = std::max(work.busiest, sum);
    work.mean += sum / plan.ranks;
  }
  return work;
}

class Times {
 public:
  Times(const AttentionCall& call, const Hardware& hardware)
      : shape_(call.shape),
        hw_(hardware),
        work_(work_of(call)),
        message_(hop_messages(call.shape)),
        forward_flops_(call.forward_flops > 0 ? call.forward_flops : hardware.attention_forward_flops),
        backward_flops_(call.backward_flops > 0 ? call.backward_flops : hardware.attention_backward_flops) {}

  SchemeCost of(Scheme scheme, const SchemeOptions& options) const {
    const Link& link = ring_link(shape_.ranks, hw_);
    const bool queries_travel = do_queries_travel(scheme, options.backward, shape_);
    const double keys = message_.keys, back = queries_travel ? message_.backward_queries() : message_.backward_keys();
    switch (scheme) {
      case Scheme::ring: return ring(work_.hops, link.time(keys), link.time(back));
      case Scheme::bidirectional_ring:  // half of the packets each way
        return ring(work_.hops, link.time(keys / 2), link.time(back / 2));
      case Scheme::double_ring: {  // a message between nodes has the hops of a node to hide behind
        const Link& outer = options.node >= hw_.ranks_per_node ? hw_.between : hw_.inside;
        auto slower = [&](double bytes) { return std::max(hw_.inside.time(bytes), outer.time(bytes) / options.node); };
        return ring(work_.hops, slower(keys), slower(back));
      }
      case Scheme::all_gather: {
        const double parts =
            static_cast<double>(divided_up(shape_.kv_heads, heads_at_once(scheme, options, shape_.kv_heads)));
        const double exposed = hw_.has_engines ? 1 / parts : 1;  // the first part, which no work hides
        const double gather = exposed * gathered(keys), reduce = exposed * gathered(message_.key_sums);
        return {.forward_s = forward(work_.busiest) + gather, .backward_s = backward(work_.busiest) + gather + reduce};
      }
      case Scheme::ulysses: {
        const double exchange = exchanged(shape_.ranks, link);
        return {.forward_s = forward(work_.mean) + exchange, .backward_s = backward(work_.mean) + exchange};
      }
      case Scheme::usp: {
        const double exchange = exchanged(options.group, ring_link(options.group, hw_));
        const auto hops = static_cast<size_t>(shape_.ranks / options.group);
        // Each hop of the groups is as long as all hops that their ranks would have made.
        const double all = std::accumulate(work_.hops.begin(), work_.hops.end(), 0.0);
        SchemeCost cost =
            ring(std::vector<double>(hops, all / static_cast<double>(hops)), link.time(keys), link.time(back));
        cost.forward_s += exchange, cost.backward_s += exchange;
        return cost;
      }
    }
    return {};
  }

 private:
  // Products of n x n scores: 2 forward, 5 backward with the scores computed again; 2 operations per multiply-add.
  double flops(double pairs, double key_products, double value_products) const {
    const double widths =
        key_products * static_cast<double>(shape_.key_width) + value_products * static_cast<double>(shape_.value_width);
    return 2 * pairs * static_cast<double>(shape_.heads) * widths;
  }
  double forward(double pairs) const { return flops(pairs, 1, 1) / forward_flops_; }
  double backward(double pairs) const { return flops(pairs, 3, 2) / backward_flops_; }

  double beside(double work_s, double message_s) const {
    return hw_.has_engines ? std::max(work_s, message_s) : work_s + message_s;
  }
  SchemeCost ring(const std::vector<double>& hops, double hop_s, double back_hop_s) const {
    SchemeCost cost;
    for (size_t s = 0; s < hops.size(); ++s) {
      const bool is_last = s + 1 == hops.size();
      cost.forward_s += beside(forward(hops[s]), is_last ? 0.0 : hop_s);
      cost.backward_s += beside(backward(hops[s]), hops.size() > 1 ? back_hop_s : 0.0);
    }
    return cost;
  }

  // An all-to-all among `ranks` of a group that hold n tokens each: queries, keys, values, and the output back.
  double exchanged(int ranks, const Link& link) const {
    if (ranks == 1) return 0;
    const double kv_heads = static_cast<double>(std::max<int64_t>(shape_.kv_heads, ranks));  // fewer are replicated
    const double numbers =
        static_cast<double>(shape_.key_width + shape_.value_width) * (static_cast<double>(shape_.heads) + kv_heads);
    const double bytes = (ranks - 1.0) / ranks * static_cast<double>(shape_.batch * shape_.tokens) * numbers *
                         static_cast<double>(size_of(shape_.dtype));
    return bytes / link.bytes_per_s + 4 * link.latency_s;
  }

  // Every rank gets `bytes` of each other rank, as a ring inside a node and by all adapters of a node at once between nodes.
  double gathered(double bytes) const {
    const int ranks = shape_.ranks, nodes = num_nodes(ranks, hw_.ranks_per_node);
    const double inside = (ranks - 1) * bytes / hw_.inside.bytes_per_s;
    const double into_node = (nodes - 1.0) / nodes * ranks * bytes / (hw_.ranks_per_node * hw_.between.bytes_per_s);
    return std::max(inside, nodes > 1 ? into_node : 0.0);
  }

  const ContextShape& shape_;
  const Hardware& hw_;
  Work work_;
  HopMessages message_;
  double forward_flops_, backward_flops_;
};

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

HopMessages hop_messages(const ContextShape& shape) {
  const double n = static_cast<double>(shape.batch * shape.tokens), heads = static_cast<double>(shape.heads),
               kv_heads = static_cast<double>(shape.kv_heads), keys = static_cast<double>(shape.key_width),
               values = static_cast<double>(shape.value_width), b = static_cast<double>(size_of(shape.dtype)),
               sum = shape.dtype == kF64 ? 8 : 4;
  const double of_keys = n * kv_heads * (keys + (shape.are_values_in_keys ? 0 : values));
  return {.keys = of_keys * b,
          .key_sums = of_keys * sum,
          .queries = n * heads * ((keys + values) * b + (shape.has_lse ? 2 * sum : 0)),
          .query_sums = n * heads * keys * sum};
}

HopPlan causal_plan(LayoutKind layout, int64_t tokens, int ranks, int64_t block) {
  WEFT_CHECK(ranks > 0 && tokens > 0 && block > 0,
             str("causal_plan: ", tokens, " tokens over ", ranks, " ranks in blocks of ", block),
             "use at least 1 of each");
  const bool is_zigzag = layout == LayoutKind::zigzag || layout == LayoutKind::balanced;
  const int64_t unit = layout == LayoutKind::striped ? block : is_zigzag ? 2 : 1;
  const int64_t n = divided_up(tokens, unit * ranks) * unit, own = n * (n + 1) / 2;
  // Pairs with the keys of a rank before or behind this one.
  auto other = [&](bool is_before) {
    const int64_t blocks = n / block;
    switch (layout) {
      case LayoutKind::contiguous: return is_before ? n * n : 0;
      case LayoutKind::striped: return block * block * blocks * (is_before ? blocks + 1 : blocks - 1) / 2;
      case LayoutKind::zigzag:
      case LayoutKind::balanced: return n * n / 2;
    }
    return int64_t{0};
  };
  // Of the keys of a rank before or behind this one those that are seen, and the queries that see some.
  auto seen = [&](bool is_before) -> TokenRange {
    return {0, is_before && is_zigzag ? n / 2 : !is_before && layout == LayoutKind::striped ? n - block : n};
  };
  auto seeing = [&](bool is_before) -> TokenRange {
    return {is_before ? 0 : is_zigzag ? n / 2 : layout == LayoutKind::striped ? block : 0, n};
  };
  HopPlan plan{.ranks = ranks, .tokens = n};
  plan.tiles.resize(static_cast<size_t>(ranks) * static_cast<size_t>(ranks));
  for (int r = 0; r < ranks; ++r)
    for (int s = 0; s < ranks; ++s) {
      const int64_t pairs = s == 0 ? own : other(s <= r);
      const TokenRange whole{0, n}, none;
      plan.keys.push_back(pairs == 0 ? none : s == 0 ? whole : seen(s <= r));
      plan.queries.push_back(pairs == 0 ? none : s == 0 ? whole : seeing(s <= r));
      plan.pairs.push_back(pairs);
      plan.cover.push_back(pairs == 0 ? Cover::empty : pairs == n * n ? Cover::full : Cover::partial);
      if (pairs > 0) plan.steps = std::max(plan.steps, s + 1);
    }
  return plan;
}

HopPlan joined(std::span<const HopPlan> rows) {
  WEFT_CHECK(!rows.empty(), "joined: no plans", "give the plan of each row");
  HopPlan all = rows[0];
  for (const HopPlan& row : rows.subspan(1)) {
    WEFT_CHECK(row.ranks == all.ranks, str("joined: plans of ", all.ranks, " and ", row.ranks, " ranks"),
               "give plans of the same ranks");
    if (row.keys.empty()) all.keys.clear(), all.queries.clear();
    for (size_t i = 0; i < all.keys.size(); ++i)
      all.keys[i] = all.keys[i].joined(row.keys[i]), all.queries[i] = all.queries[i].joined(row.queries[i]);
    all.steps = std::max(all.steps, row.steps);
    for (size_t i = 0; i < all.cover.size(); ++i) {
      if (row.cover[i] != all.cover[i]) all.cover[i] = Cover::partial;
      all.pairs[i] += row.pairs[i], all.tiles[i] += row.tiles[i];
    }
  }
  return all;
}

std::vector<double> lockstep_pairs(const HopPlan& plan) {
  std::vector<double> pairs(static_cast<size_t>(plan.steps));
  for (int s = 0; s < plan.steps; ++s)
    for (int r = 0; r < plan.ranks; ++r)
      pairs[static_cast<size_t>(s)] = std::max(pairs[static_cast<size_t>(s)], double(plan.pairs_of(r, s)));
  return pairs;
}

SchemeCost attention_cost(Scheme scheme, const SchemeOptions& options, const AttentionCall& call, const Hardware& hw) {
  const ContextShape& shape = call.shape;
  check_scheme(scheme, shape.ranks, shape.heads, options);
  WEFT_CHECK(call.rows > 0, str("attention_cost: a plan of ", call.rows, " rows"), "say how many rows the plan has");
  SchemeCost cost = Times(call, hw).of(scheme, options);
  const MessageBytes sent = message_bytes(scheme, shape, options, call.plan);
  cost.forward_sent = static_cast<double>(sent.forward), cost.backward_sent = static_cast<double>(sent.backward);
  return cost;
}

OverlapThresholds overlap_thresholds(const ContextShape& shape, const Hardware& hw, const Link& link) {
  const double b = static_cast<double>(size_of(shape.dtype)), sum = shape.dtype == kF64 ? 8 : 4;
  const double g = static_cast<double>(shape.heads) / static_cast<double>(shape.kv_heads), beta = link.bytes_per_s;
  return {.forward = b * hw.attention_forward_flops / (g * beta),
          .backward_keys = (2 * b + 2 * sum) * hw.attention_backward_flops / (5 * g * beta),
          .backward_queries =
              (2 * b + sum + 8 / static_cast<double>(shape.key_width)) * hw.attention_backward_flops / (5 * beta)};
}

double all_reduce_time(double bytes, int ranks, const Hardware& hw) {
  if (ranks == 1) return 0;
  const Link& link = ring_link(ranks, hw);
  return 2.0 * (ranks - 1) * link.time(bytes / ranks);
}

}  // namespace weft::dist
