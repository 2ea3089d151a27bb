// What a training over many ranks will cost, before there are any: bytes that each scheme of context attention sends, and times by the
// alpha-beta model (a message of m bytes takes alpha + m / beta seconds). Pure functions of sizes and of a machine's figures.
// N tokens of a sequence, P ranks that share it, n = N / P, H query heads, G key/value heads, g = H / G.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "weft/comm/layout.h"

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
};
// h100, h200: 8 GPUs per node with NVLink 4, one InfiniBand NDR adapter each. Planning values; none of them has been measured here.
std::span<const Hardware> hardware_profiles();
const Hardware& hardware_profile(std::string_view name);  // Error with the names if there is none

// Causal attention of one layer and of `rows` sequences.
struct AttentionShape {
  int64_t rows = 1, tokens = 0;
  int ranks = 1;
  int64_t heads = 1, kv_heads = 1, width = 64;  // width: of a head's keys and of its values
  int64_t bytes = 2, sum_bytes = 4;             // of a number, and of one of a gradient's sums that travels
  double local_tokens() const { return static_cast<double>(rows * tokens) / ranks; }
};

// One hop's message, in bytes.
struct HopMessages {
  double keys = 0;        // keys and values
  double key_sums = 0;    // and their gradients' sums
  double queries = 0;     // queries, output's gradient, lse and delta
  double query_sums = 0;  // and the queries' gradients' sums
  double backward_keys() const { return keys + key_sums; }
  double backward_queries() const { return queries + query_sums; }
};
HopMessages hop_messages(const AttentionShape& shape);
// Backward of a ring sends fewer bytes with travelling keys than with travelling queries.
bool keys_travel_cheaper(const AttentionShape& shape);

// Visible pairs of the busiest rank at each hop of a ring, per head.
std::vector<double> lockstep_pairs(const HopPlan& plan);
// The same of a causal mask in closed form: contiguous, striped with blocks of one token, or zigzag, as which balanced counts.
std::vector<double> causal_lockstep_pairs(LayoutKind layout, int64_t tokens, int ranks);

// ring_of_queries: forward is the ring's; in backward queries travel. usp: Ulysses inside a node, a ring over nodes. chunked_all_gather:
// gathers a group of heads while it computes the one before. double_ring: keys go round each node, and between nodes at the side of that.
enum class CostedScheme {
  ring,
  ring_of_queries,
  bidirectional_ring,
  double_ring,
  ulysses,
  usp,
  all_gather,
  chunked_all_gather
};
std::string_view to_string(CostedScheme scheme);
std::span<const CostedScheme> costed_schemes();
// "" or why the scheme cannot run: heads that do not divide, ranks that do not fill nodes.
std::string scheme_problem(CostedScheme scheme, const AttentionShape& shape, int ranks_per_node);

struct SchemeCost {
  double forward_s = 0, backward_s = 0;
  double forward_sent = 0, backward_sent = 0;  // bytes per rank
  double extra_bytes = 0;                      // memory beside the rank's own queries, keys, values and output
};
// `pairs`: of lockstep_pairs(). Schemes without a ring take as long as the whole of them spread evenly.
SchemeCost attention_cost(CostedScheme scheme, const AttentionShape& shape, std::span<const double> pairs,
                          const Hardware& hardware);

// Tokens per rank above which communication hides behind the work of balanced causal attention.
struct OverlapThresholds {
  double forward = 0, backward_keys = 0, backward_queries = 0;
};
OverlapThresholds overlap_thresholds(const AttentionShape& shape, const Hardware& hardware, const Link& link);

// All-reduce of `bytes` over `ranks` by a ring.
double all_reduce_time(double bytes, int ranks, const Hardware& hardware);

}  // namespace weft::dist
