// What a training over many ranks will cost, before there are any: the times of context attention and of sums by the alpha-beta model (a message
// of m bytes takes alpha + m / beta seconds). Bytes are those of message_bytes(). Pure functions of sizes and of a machine's figures.
// N tokens of a sequence, P ranks that share it, n = N / P, H query heads, G key/value heads, g = H / G.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "weft/comm/layout.h"
#include "weft/distributed/choose_scheme.h"

namespace weft::dist {

struct Link {
  double latency_s = 0, bytes_per_s = 1;  // one direction
  double time(double bytes) const { return latency_s + bytes / bytes_per_s; }
};

// Rates are those that are reached, not those of a data sheet.
struct Hardware {
  std::string name;
  double gemm_flops = 1, attention_forward_flops = 1, attention_backward_flops = 1;  // per second and rank
  double memory_bytes = 0, memory_bytes_per_s = 1;
  int ranks_per_node = 1;
  Link inside = {}, between = {};  // of a node, of nodes
  bool has_engines = true;  // that move messages beside the work; false: ranks copy them themselves, in its place
};
// h100, h200: 8 GPUs per node with NVLink 4, one InfiniBand NDR adapter each. Planning values; none of them has been measured here.
std::span<const Hardware> hardware_profiles();
const Hardware& hardware_profile(std::string_view name);  // Error with the names if there is none

// One hop's message in bytes, without its positions and documents (4 or 8 bytes per token).
struct HopMessages {
  double keys = 0;        // keys and values
  double key_sums = 0;    // and their gradients' sums
  double queries = 0;     // queries, output's gradient, lse and delta
  double query_sums = 0;  // and the queries' gradients' sums
  double backward_keys() const { return keys + key_sums; }
  double backward_queries() const { return queries + query_sums; }
};
HopMessages hop_messages(const ContextShape& shape);

// The plan of a causal mask without one being made: cover and pairs are those of plan_hops() for the next length that the layout divides, tiles
// are not counted. balanced counts as zigzag.
HopPlan causal_plan(LayoutKind layout, int64_t tokens, int ranks, int64_t block = 1);
// Of several rows that go through attention together: the sum of their work.
HopPlan joined(std::span<const HopPlan> rows);
// Visible pairs of the busiest rank at each hop of a ring, per head.
std::vector<double> lockstep_pairs(const HopPlan& plan);

// Of one call: its shape, the hops of `rows` rows of it, and how many of their pairs are computed (fewer where heads are chosen).
struct AttentionCall {
  ContextShape shape;
  HopPlan plan;
  int64_t rows = 1;
  double share = 1;
  double forward_flops = 0, backward_flops = 0;  // of this call, per second; 0: those of the hardware
};

struct SchemeCost {
  double forward_s = 0, backward_s = 0;
  double forward_sent = 0, backward_sent = 0;  // bytes of the rank that sends most: message_bytes()
};
// A ring waits at every hop for the rank with most work; all_gather lasts as long as the rank with most work in all; with ulysses ranks have
// equal work. Error where scheme_problem() has one.
SchemeCost attention_cost(Scheme scheme, const SchemeOptions& options, const AttentionCall& call,
                          const Hardware& hardware);

// Bytes that a call takes at its peak beside those of ops::attend() and its backward on a rank's own tokens: by a dry run of it.
double scheme_memory(Scheme scheme, const SchemeOptions& options, const ContextShape& shape);

// Tokens per rank above which communication hides behind the work of balanced causal attention.
struct OverlapThresholds {
  double forward = 0, backward_keys = 0, backward_queries = 0;
};
OverlapThresholds overlap_thresholds(const ContextShape& shape, const Hardware& hardware, const Link& link);

// All-reduce of `bytes` over `ranks` by a ring.
double all_reduce_time(double bytes, int ranks, const Hardware& hardware);

}  // namespace weft::dist
