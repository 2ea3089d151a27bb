// The cost model against a worked example: one layer of Llama-3-8B, 2^20 tokens over 64 H200 in 8 nodes, number by number, and the same
// layer at other lengths. A printed number is met to half a unit of its last digit.
#include "weft/distributed/cost_model.h"

#include <gtest/gtest.h>

#include <numeric>

#include "weft/core/error.h"

namespace weft::dist {
namespace {

constexpr double kMega = 1e6, kMilli = 1e-3;
constexpr int64_t kLayerParams = 218'103'808;  // 4096 x (4096 + 2 x 1024 + 4096 + 3 x 14336)

AttentionShape llama(int64_t tokens, int ranks) {
  return {.tokens = tokens, .ranks = ranks, .heads = 32, .kv_heads = 8, .width = 128};
}
AttentionShape worked() { return llama(int64_t{1} << 20, 64); }
const Hardware& h200() { return hardware_profile("h200"); }

SchemeCost cost_of(CostedScheme scheme, LayoutKind layout, const AttentionShape& shape = worked()) {
  return attention_cost(scheme, shape, causal_lockstep_pairs(layout, shape.tokens, shape.ranks), h200());
}
double linear_forward_s() { return 2.0 * kLayerParams * worked().local_tokens() / h200().gemm_flops; }
double layer_s(const SchemeCost& cost) { return cost.forward_s + cost.backward_s + 3 * linear_forward_s(); }

TEST(CostModel, HasTheWorkOfTheWorkedExample) {
  EXPECT_EQ(kLayerParams, 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336));
  EXPECT_NEAR(2.0 * kLayerParams * worked().local_tokens() / 1e12, 7.15, 0.005);
  EXPECT_NEAR(linear_forward_s() / kMilli, 10.4, 0.05);
  const auto pairs = causal_lockstep_pairs(LayoutKind::zigzag, worked().tokens, worked().ranks);
  const double all = std::accumulate(pairs.begin(), pairs.end(), 0.0);
  EXPECT_NEAR(4.0 * 32 * 128 * all / 1e12, 140.7, 0.05);
  const double forward = 4.0 * 32 * 128 / h200().attention_forward_flops,
               backward = 10.0 * 32 * 128 / h200().attention_backward_flops;
  EXPECT_NEAR(forward * all / kMilli, 234.6, 0.05);
  EXPECT_NEAR(forward * all / 64 / kMilli, 3.67, 0.005);
  EXPECT_NEAR(forward * 16384 * 16384 / kMilli, 7.33, 0.005);
  EXPECT_NEAR(backward * all / kMilli, 733.0, 0.05);
  EXPECT_NEAR(backward * all / 64 / kMilli, 11.45, 0.005);
}

TEST(CostModel, HasTheMessagesOfTheWorkedExample) {
  const HopMessages m = hop_messages(worked());
  EXPECT_NEAR(m.keys / kMega, 67.1, 0.05);
  EXPECT_NEAR(h200().inside.time(m.keys) / kMilli, 0.19, 0.005);
  EXPECT_NEAR(h200().between.time(m.keys) / kMilli, 1.50, 0.005);
  EXPECT_NEAR(m.backward_keys() / kMega, 201.3, 0.05);
  EXPECT_NEAR(m.backward_keys() / h200().between.bytes_per_s / kMilli, 4.47, 0.005);  // printed without its latency
  EXPECT_NEAR(m.backward_queries() / kMega, 541.1, 0.05);
  EXPECT_NEAR(h200().between.time(m.backward_queries()) / kMilli, 12.0, 0.05);
  // Queries out and partial outputs back (TokenRing), against keys one way and half of them each way.
  const double n = worked().local_tokens();
  EXPECT_NEAR(n * 32 * 128 * 2 / kMega, 134, 0.5);
  EXPECT_NEAR(n * 32 * (128 * 2 + 4) / kMega, 136, 0.5);
  EXPECT_NEAR(m.keys / 2 / kMega, 34, 0.5);

  AttentionShape node = worked();
  node.tokens = 8 * 16384, node.ranks = 8;
  const SchemeCost exchange = cost_of(CostedScheme::ulysses, LayoutKind::contiguous, node);
  EXPECT_NEAR(exchange.forward_sent / kMega, 293.6, 0.05);
  const double ring_s = cost_of(CostedScheme::ring, LayoutKind::zigzag).forward_s;
  EXPECT_NEAR((cost_of(CostedScheme::usp, LayoutKind::zigzag).forward_s - ring_s) / kMilli, 0.82, 0.005);

  const SchemeCost gather = cost_of(CostedScheme::all_gather, LayoutKind::zigzag);
  EXPECT_NEAR(gather.forward_sent / 1e9, 4.2, 0.05);
  EXPECT_NEAR(64 * m.keys / 1e9, 4.3, 0.05);
  EXPECT_NEAR(7.0 / 8 * 64 * m.keys / 1e9, 3.8, 0.05);
  const double exposed = gather.forward_s - ring_s;
  EXPECT_GT(exposed / kMilli, 10);
  EXPECT_LT(exposed / kMilli, 11.5);
}

TEST(CostModel, HasTheTimesOfTheWorkedExample) {
  struct Row {
    CostedScheme scheme;
    LayoutKind layout;
    double forward_ms, backward_ms, layer_ms;
  };
  using enum CostedScheme;
  const Row rows[] = {
      {ring, LayoutKind::contiguous, 465.5, 1454.6, 1951},       {ring, LayoutKind::zigzag, 234.6, 733.0, 999},
      {ring_of_queries, LayoutKind::zigzag, 234.6, 770.3, 1036}, {usp, LayoutKind::zigzag, 235.4, 733.8, 1000},
      {all_gather, LayoutKind::zigzag, 246.0, 767.3, 1044},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(str(to_string(row.scheme), ", ", to_string(row.layout)));
    const SchemeCost cost = cost_of(row.scheme, row.layout);
    EXPECT_NEAR(cost.forward_s / kMilli, row.forward_ms, 0.05);
    EXPECT_NEAR(cost.backward_s / kMilli, row.backward_ms, 0.05);
    EXPECT_NEAR(layer_s(cost) / kMilli, row.layer_ms, 0.5);
  }
  // Striped is printed in zigzag's row; its hops have n / 2 pairs more.
  const SchemeCost striped = cost_of(ring, LayoutKind::striped), zigzag = cost_of(ring, LayoutKind::zigzag);
  const double more = 63 * 16384.0 / 2 * 10 * 32 * 128 / h200().attention_backward_flops;
  EXPECT_NEAR(striped.backward_s, zigzag.backward_s + more, 1e-9);
  EXPECT_LT(more / kMilli, 0.1);
  EXPECT_NEAR(layer_s(cost_of(chunked_all_gather, LayoutKind::zigzag)) / kMilli, 1003, 2);  // "about 1003"
  EXPECT_NEAR(layer_s(cost_of(ring, LayoutKind::contiguous)) / layer_s(cost_of(ring, LayoutKind::zigzag)), 1.95, 0.005);
}

TEST(CostModel, HasTheTimesOfShorterSequences) {
  struct Row {
    int64_t tokens;
    int ranks;
    double step_ms, hop_ms, zigzag_ms, contiguous_ms, unit_ms, share;
  };
  // The contiguous time of 256K is printed as 29.3.
  const Row rows[] = {
      {32 << 10, 8, 0.229, 0.051, 1.83, 3.44, 0.01, 1.00},  {32 << 10, 64, 0.004, 0.059, 3.70, 3.70, 0.01, 0.06},
      {128 << 10, 64, 0.057, 0.198, 12.6, 12.6, 0.1, 0.29}, {256 << 10, 64, 0.229, 0.385, 24.5, 29.25, 0.1, 0.60},
      {1 << 20, 64, 3.665, 1.503, 234.6, 465.5, 0.1, 1.00},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(str(row.tokens, " tokens, ", row.ranks, " ranks"));
    const AttentionShape shape = llama(row.tokens, row.ranks);
    const double n = shape.local_tokens(), step = 4.0 * 32 * 128 * n * n / 2 / h200().attention_forward_flops;
    const Link& link = row.ranks == 8 ? h200().inside : h200().between;
    EXPECT_NEAR(step / kMilli, row.step_ms, 0.0005);
    EXPECT_NEAR(link.time(hop_messages(shape).keys) / kMilli, row.hop_ms, 0.0005);
    const double zigzag = cost_of(CostedScheme::ring, LayoutKind::zigzag, shape).forward_s;
    EXPECT_NEAR(zigzag / kMilli, row.zigzag_ms, row.unit_ms / 2);
    EXPECT_NEAR(cost_of(CostedScheme::ring, LayoutKind::contiguous, shape).forward_s / kMilli, row.contiguous_ms,
                row.unit_ms / 2);
    EXPECT_NEAR(row.ranks * step / zigzag, row.share, 0.005);
  }
}

TEST(CostModel, HasTheThresholdsOfOverlap) {
  const OverlapThresholds nvlink = overlap_thresholds(worked(), h200(), h200().inside);
  EXPECT_NEAR(nvlink.forward, 800, 50);
  const OverlapThresholds network = overlap_thresholds(worked(), h200(), h200().between);
  EXPECT_NEAR(network.forward, 6700, 50);
  EXPECT_NEAR(network.backward_keys, 6400, 50);
  EXPECT_NEAR(network.backward_queries, 17200, 50);
  AttentionShape wider = worked();
  wider.kv_heads = 4;
  EXPECT_NEAR(overlap_thresholds(wider, h200(), h200().between).forward, network.forward / 2, 1e-9);
}

// Bytes of travelling queries over bytes of travelling keys, by query heads per key head.
TEST(CostModel, ChoosesWhatTravelsByBytes) {
  const double of_bf16[] = {0.76, 1.52, 3.03, 6.06}, of_f32[] = {0.67, 1.34, 2.69, 5.38};
  for (int i = 0; i < 4; ++i)
    for (int64_t sum_bytes : {2, 4}) {
      AttentionShape shape = worked();
      shape.kv_heads = shape.heads >> i;
      shape.sum_bytes = sum_bytes;
      const HopMessages m = hop_messages(shape);
      const double ratio = m.backward_queries() / m.backward_keys();
      EXPECT_NEAR(ratio, sum_bytes == 2 ? of_bf16[i] : of_f32[i], 0.005) << i << " " << sum_bytes;
      EXPECT_EQ(keys_travel_cheaper(shape), ratio >= 1);
    }
}

TEST(CostModel, ClosedFormOfCausalWorkIsThePlans) {
  for (int ranks : {1, 2, 3, 4, 8}) {
    const int64_t tokens = 48 * ranks;
    for (LayoutKind kind : {LayoutKind::contiguous, LayoutKind::striped, LayoutKind::zigzag}) {
      const Layout layout = kind == LayoutKind::contiguous ? Layout::contiguous(tokens, ranks)
                            : kind == LayoutKind::striped  ? Layout::striped(tokens, ranks, 1)
                                                           : Layout::zigzag(tokens, ranks);
      const HopPlan plan = plan_hops(layout, {}, 16);
      EXPECT_EQ(lockstep_pairs(plan), causal_lockstep_pairs(kind, tokens, ranks)) << to_string(layout);
    }
  }
}

TEST(CostModel, OfOneRankIsItsWorkAlone) {
  const AttentionShape shape = llama(4096, 1);
  const std::vector<double> pairs = causal_lockstep_pairs(LayoutKind::contiguous, 4096, 1);
  const double forward = 4.0 * 32 * 128 * pairs[0] / h200().attention_forward_flops;
  for (CostedScheme scheme : costed_schemes()) {
    if (!scheme_problem(scheme, shape, 8).empty()) continue;
    const SchemeCost cost = attention_cost(scheme, shape, pairs, h200());
    EXPECT_NEAR(cost.forward_s, forward, 1e-12) << to_string(scheme);
    EXPECT_EQ(cost.forward_sent + cost.backward_sent, 0) << to_string(scheme);
  }
  EXPECT_EQ(all_reduce_time(1e9, 1, h200()), 0);
}

TEST(CostModel, RefusesWhatCannotRun) {
  EXPECT_NE(scheme_problem(CostedScheme::ulysses, llama(4096, 3), 8), "");   // 32 heads over 3 ranks
  EXPECT_NE(scheme_problem(CostedScheme::usp, llama(4096, 4), 8), "");       // less than a node
  EXPECT_EQ(scheme_problem(CostedScheme::ulysses, llama(4096, 16), 8), "");  // keys are replicated
  EXPECT_THROW(attention_cost(CostedScheme::ulysses, llama(4098, 3), std::vector<double>(3, 1.0), h200()), Error);
  EXPECT_THROW(hardware_profile("abacus"), Error);
  EXPECT_THROW(causal_lockstep_pairs(LayoutKind::zigzag, 10, 3), Error);
}

}  // namespace
}  // namespace weft::dist
