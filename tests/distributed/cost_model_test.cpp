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

ContextShape llama(int64_t tokens, int ranks, int64_t kv_heads = 8) {
  return {.ranks = ranks,
          .tokens = tokens / ranks,
          .heads = 32,
          .kv_heads = kv_heads,
          .key_width = 128,
          .value_width = 128};
}
ContextShape worked() { return llama(int64_t{1} << 20, 64); }
const Hardware& h200() { return hardware_profile("h200"); }

SchemeCost cost_of(Scheme scheme, LayoutKind layout, const ContextShape& shape = worked(), SchemeOptions options = {}) {
  const int per_node = h200().ranks_per_node < shape.ranks ? h200().ranks_per_node : 0;
  const SchemeOptions usual = default_options(scheme, shape.ranks, shape.heads, per_node);
  options.group = usual.group, options.node = usual.node;
  return attention_cost(scheme, options,
                        {.shape = shape, .plan = causal_plan(layout, shape.tokens * shape.ranks, shape.ranks)}, h200());
}
double linear_forward_s() { return 2.0 * kLayerParams * static_cast<double>(worked().tokens) / h200().gemm_flops; }
double layer_s(const SchemeCost& cost) { return cost.forward_s + cost.backward_s + 3 * linear_forward_s(); }

TEST(CostModel, HasTheWorkOfTheWorkedExample) {
  EXPECT_EQ(kLayerParams, 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336));
  EXPECT_NEAR(2.0 * kLayerParams * 16384 / 1e12, 7.15, 0.005);
  EXPECT_NEAR(linear_forward_s() / kMilli, 10.4, 0.05);
  const auto pairs = lockstep_pairs(causal_plan(LayoutKind::zigzag, int64_t{1} << 20, 64));
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
  const double n = 16384;
  EXPECT_NEAR(n * 32 * 128 * 2 / kMega, 134, 0.5);
  EXPECT_NEAR(n * 32 * (128 * 2 + 4) / kMega, 136, 0.5);
  EXPECT_NEAR(m.keys / 2 / kMega, 34, 0.5);

  // What is sent beside: the lse of 4 heads and a position per token, 7 of 8 of them to other ranks.
  const double beside = 7 * 16384.0 * (4 * 4 + 4);
  EXPECT_NEAR((cost_of(Scheme::ulysses, LayoutKind::contiguous, llama(8 * 16384, 8)).forward_sent - beside) / kMega,
              293.6, 0.05);
  const double ring_s = cost_of(Scheme::ring, LayoutKind::zigzag).forward_s;
  EXPECT_NEAR((cost_of(Scheme::usp, LayoutKind::zigzag).forward_s - ring_s) / kMilli, 0.82, 0.005);

  const SchemeCost gather = cost_of(Scheme::all_gather, LayoutKind::zigzag);
  EXPECT_NEAR(gather.forward_sent / 1e9, 4.2, 0.05);
  EXPECT_NEAR(64 * m.keys / 1e9, 4.3, 0.05);
  EXPECT_NEAR(7.0 / 8 * 64 * m.keys / 1e9, 3.8, 0.05);
  const double exposed = gather.forward_s - ring_s;
  EXPECT_GT(exposed / kMilli, 10);
  EXPECT_LT(exposed / kMilli, 11.5);
}

TEST(CostModel, HasTheTimesOfTheWorkedExample) {
  struct Row {
    Scheme scheme;
    LayoutKind layout;
    SchemeOptions options;
    double forward_ms, backward_ms, layer_ms;
  };
  using enum Scheme;
  const Row rows[] = {
      {ring, LayoutKind::contiguous, {}, 465.5, 1454.6, 1951},
      {ring, LayoutKind::zigzag, {}, 234.6, 733.0, 999},
      {ring, LayoutKind::zigzag, {.backward = Travels::queries}, 234.6, 770.3, 1036},
      {usp, LayoutKind::zigzag, {}, 235.4, 733.8, 1000},
      {all_gather, LayoutKind::zigzag, {}, 246.0, 767.3, 1044},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(str(to_string(row.scheme), ", ", to_string(row.layout)));
    const SchemeCost cost = cost_of(row.scheme, row.layout, worked(), row.options);
    EXPECT_NEAR(cost.forward_s / kMilli, row.forward_ms, 0.05);
    EXPECT_NEAR(cost.backward_s / kMilli, row.backward_ms, 0.05);
    EXPECT_NEAR(layer_s(cost) / kMilli, row.layer_ms, 0.5);
  }
  // Striped is printed in zigzag's row; its hops have n / 2 pairs more.
  const SchemeCost striped = cost_of(ring, LayoutKind::striped), zigzag = cost_of(ring, LayoutKind::zigzag);
  const double more = 63 * 16384.0 / 2 * 10 * 32 * 128 / h200().attention_backward_flops;
  EXPECT_NEAR(striped.backward_s, zigzag.backward_s + more, 1e-9);
  EXPECT_LT(more / kMilli, 0.1);
  EXPECT_NEAR(layer_s(cost_of(all_gather, LayoutKind::zigzag, worked(), {.heads_at_once = 1})) / kMilli, 1003,
              2);  // "about 1003"
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
    const ContextShape shape = llama(row.tokens, row.ranks);
    const double n = static_cast<double>(shape.tokens),
                 step = 4.0 * 32 * 128 * n * n / 2 / h200().attention_forward_flops;
    const Link& link = row.ranks == 8 ? h200().inside : h200().between;
    EXPECT_NEAR(step / kMilli, row.step_ms, 0.0005);
    EXPECT_NEAR(link.time(hop_messages(shape).keys) / kMilli, row.hop_ms, 0.0005);
    const double zigzag = cost_of(Scheme::ring, LayoutKind::zigzag, shape).forward_s;
    EXPECT_NEAR(zigzag / kMilli, row.zigzag_ms, row.unit_ms / 2);
    EXPECT_NEAR(cost_of(Scheme::ring, LayoutKind::contiguous, shape).forward_s / kMilli, row.contiguous_ms,
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
  EXPECT_NEAR(overlap_thresholds(llama(int64_t{1} << 20, 64, 4), h200(), h200().between).forward, network.forward / 2,
              1e-9);
}

// Bytes of travelling queries over bytes of travelling keys, by query heads per key head.
TEST(CostModel, HasTheRatioOfTravellingQueriesToTravellingKeys) {
  const double ratios[] = {0.67, 1.34, 2.69, 5.38};
  for (int i = 0; i < 4; ++i) {
    const HopMessages m = hop_messages(llama(int64_t{1} << 20, 64, 32 >> i));
    EXPECT_NEAR(m.backward_queries() / m.backward_keys(), ratios[i], 0.005) << i;
  }
}

TEST(CostModel, PlanOfACausalMaskIsTheOneThatIsMade) {
  for (int ranks : {1, 2, 3, 4, 8})
    for (int64_t more : {0, 5}) {  // the last rank, or all, are padded
      const int64_t tokens = 48 * ranks + more;
      for (LayoutKind kind : {LayoutKind::contiguous, LayoutKind::striped, LayoutKind::zigzag}) {
        const int64_t block = kind == LayoutKind::striped ? 4 : 1;
        const Layout layout = kind == LayoutKind::contiguous ? Layout::contiguous(tokens, ranks)
                              : kind == LayoutKind::striped  ? Layout::striped(tokens, ranks, block)
                                                             : Layout::zigzag(tokens, ranks);
        std::vector<RankTokens> all;  // padding too is a token here
        for (int r = 0; r < ranks; ++r) all.push_back({.positions = layout.positions(r)});
        const HopPlan plan = plan_hops(all, 1, {}), closed = causal_plan(kind, tokens, ranks, block);
        EXPECT_EQ(plan.pairs, closed.pairs) << to_string(layout);
        EXPECT_EQ(plan.cover, closed.cover) << to_string(layout);
        EXPECT_EQ(plan.steps, closed.steps) << to_string(layout);
        EXPECT_EQ(plan.keys, closed.keys) << to_string(layout);
        EXPECT_EQ(plan.queries, closed.queries) << to_string(layout);
      }
    }
}

TEST(CostModel, JoinedRowsAddTheirWork) {
  const HopPlan empty_first = causal_plan(LayoutKind::contiguous, 64, 4), all = causal_plan(LayoutKind::zigzag, 64, 4);
  const HopPlan rows[] = {empty_first, all};
  const HopPlan both = joined(rows);
  EXPECT_EQ(both.pairs_of(0, 1), all.pairs_of(0, 1));
  EXPECT_EQ(both.cover_of(0, 1), Cover::partial);
  EXPECT_EQ(both.pairs_of(3, 1), empty_first.pairs_of(3, 1) + all.pairs_of(3, 1));
  EXPECT_EQ(both.keys_of(3, 1), (TokenRange{0, 16}));  // all of them in one row, half in the other
  EXPECT_EQ(both.queries_of(0, 1), (TokenRange{8, 16}));
  EXPECT_EQ(joined(std::vector<HopPlan>{all, HopPlan::every_hop(4)}).keys_of(3, 1), TokenRange::all());
  EXPECT_THROW(joined(std::vector<HopPlan>{all, causal_plan(LayoutKind::zigzag, 64, 2)}), Error);
}

// all_gather waits once, for the rank with most work in all; a ring at every hop; ulysses for none.
TEST(CostModel, SchemesWaitForTheirSlowestRank) {
  const ContextShape shape = llama(int64_t{1} << 17, 4);
  HopPlan plan = HopPlan::every_hop(4);
  for (size_t i = 0; i < plan.pairs.size(); ++i)
    plan.pairs[i] = i % 5 == 0 ? 1 << 28 : 1 << 20;  // another rank each hop
  auto forward = [&](Scheme scheme) {
    return attention_cost(scheme, {}, {.shape = shape, .plan = plan}, h200()).forward_s;
  };
  const double pair_s = 4.0 * 32 * 128 / h200().attention_forward_flops, one = (1 << 28) + 3.0 * (1 << 20);
  EXPECT_NEAR(forward(Scheme::ring), 4.0 * (1 << 28) * pair_s, 1e-9);
  const double gather = 3 * hop_messages(shape).keys / h200().inside.bytes_per_s;
  EXPECT_NEAR(forward(Scheme::all_gather), one * pair_s + gather, 1e-9);
  plan.pairs[1] = 1 << 27;
  EXPECT_NEAR(forward(Scheme::all_gather), (one - (1 << 20) + (1 << 27)) * pair_s + gather, 1e-9);
  EXPECT_LT(forward(Scheme::ulysses), forward(Scheme::all_gather));
}

// A ring holds two packets and, in backward, two of their sums; gathering keeps the keys of all, or of one head at a time.
TEST(CostModel, MemoryOfASchemeIsThatOfItsCode) {
  const ContextShape shape = llama(int64_t{1} << 17, 8, 32);
  const double keys = hop_messages(shape).keys;
  auto memory = [&](Scheme scheme, SchemeOptions options = {}) { return scheme_memory(scheme, options, shape); };
  const double ring = memory(Scheme::ring, {.backward = Travels::keys}), all = memory(Scheme::all_gather);
  EXPECT_GT(ring, 2 * keys);
  EXPECT_LT(ring, 10 * keys);
  EXPECT_GT(all, 7 * 3 * keys);  // keys in bf16, sums in f32
  EXPECT_LT(memory(Scheme::all_gather, {.heads_at_once = 4}), all / 3);
  EXPECT_GE(memory(Scheme::bidirectional_ring, {.backward = Travels::keys}), ring);
  ContextShape twice = shape;
  twice.batch = 2;
  EXPECT_NEAR(scheme_memory(Scheme::ring, {}, twice) / memory(Scheme::ring), 2, 0.01);
}

TEST(CostModel, OfOneRankIsItsWorkAlone) {
  const ContextShape shape = llama(4096, 1);
  const double pairs = 4096.0 * 4097 / 2, forward = 4.0 * 32 * 128 * pairs / h200().attention_forward_flops;
  for (Scheme scheme : all_schemes()) {
    SCOPED_TRACE(str(scheme));
    const SchemeOptions options{.group = 1, .node = 1};
    const SchemeCost cost =
        attention_cost(scheme, options, {.shape = shape, .plan = causal_plan(LayoutKind::contiguous, 4096, 1)}, h200());
    EXPECT_NEAR(cost.forward_s, forward, 1e-12);
    EXPECT_EQ(cost.forward_sent + cost.backward_sent, 0);
    EXPECT_EQ(scheme_memory(scheme, options, shape), 0);
  }
  EXPECT_EQ(all_reduce_time(1e9, 1, h200()), 0);
}

TEST(CostModel, RefusesWhatCannotRun) {
  const AttentionCall call{.shape = llama(4098, 3), .plan = HopPlan::every_hop(3)};
  EXPECT_THROW(attention_cost(Scheme::ulysses, {}, call, h200()), Error);  // 32 heads over 3 ranks
  EXPECT_THROW(hardware_profile("abacus"), Error);
  EXPECT_THROW(causal_plan(LayoutKind::zigzag, 10, 0), Error);
}

}  // namespace
}  // namespace weft::dist
