// `weft bench ring`: its masks are those that the core works under, its plans count what they see, and every row is one that equals one rank.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "tests/support/errors.h"
#include "tools/bench/ring/ring.h"
#include "weft/ops/attention/mask.h"

namespace weft::bench {
namespace {

const data::DocumentLengths kShort = {{1, 40, 0.8}, {41, 200, 0.2}};

std::vector<RowMask> all_masks(int64_t tokens) {
  std::vector<RowMask> masks;
  for (const MaskKind& kind : ring_masks())
    if (kind.why_not[0] == '\0') masks.push_back(make_ring_mask(kind.name, tokens, kShort));
  return masks;
}

bool sees(const RowMask& mask, int64_t query, int64_t key) {
  auto token = [&](int64_t t) {
    const auto at = static_cast<size_t>(t);
    return ops::Token<int32_t>{mask.positions[at], mask.documents.empty() ? 0 : mask.documents[at]};
  };
  return ops::StandardMask(mask.mask).keep(0, 0, token(query), token(key));
}

TEST(RingBench, MasksSeeWhatTheCoreSees) {
  for (int64_t tokens : {1, 300, 600})
    for (const RowMask& mask : all_masks(tokens))
      for (int64_t q = 0; q < tokens; ++q) {
        const Seen& seen = mask.seen[static_cast<size_t>(q)];
        ASSERT_LE(seen.first_end, seen.begin) << mask.name << " " << q;
        for (int64_t k = 0; k < tokens; ++k)
          ASSERT_EQ(sees(mask, q, k), k < seen.first_end || (seen.begin <= k && k < seen.end))
              << mask.name << " of " << tokens << ": " << q << " " << k;
      }
}

TEST(RingBench, ElevenOfFourteenMasksHaveRows) {
  EXPECT_EQ(ring_masks().size(), 14u);
  EXPECT_EQ(all_masks(8).size(), 11u);
}

TEST(RingBench, PlansCountVisiblePairsAndTiles) {
  for (const RowMask& mask : all_masks(300))
    for (int ranks : {1, 2, 3})
      for (auto kind : {dist::LayoutKind::contiguous, dist::LayoutKind::striped, dist::LayoutKind::zigzag,
                        dist::LayoutKind::balanced}) {
        constexpr int64_t kTile = 32;
        const dist::Layout layout = make_ring_layout(kind, mask, ranks);
        const dist::HopPlan plan = plan_of_seen(layout, mask, kTile);
        for (int r = 0; r < ranks; ++r)
          for (int hop = 0; hop < ranks; ++hop) {
            const std::vector<int32_t> queries = layout.positions(r),
                                       keys = layout.positions((r - hop + ranks) % ranks);
            const size_t n = queries.size(), tiles = (n + kTile - 1) / kTile;
            std::vector<bool> is_seen(tiles * tiles);
            int64_t pairs = 0;
            for (size_t i = 0; i < n; ++i)
              for (size_t j = 0; j < n; ++j) {
                if (queries[i] >= 300 || keys[j] >= 300 || !sees(mask, queries[i], keys[j])) continue;
                ++pairs;
                is_seen[i / kTile * tiles + j / kTile] = true;
              }
            const std::string of = str(mask.name, ", ", layout, ", rank ", r, ", hop ", hop);
            EXPECT_EQ(plan.pairs_of(r, hop), pairs) << of;
            EXPECT_EQ(plan.tiles[static_cast<size_t>(r * ranks + hop)],
                      std::count(is_seen.begin(), is_seen.end(), true))
                << of;
            EXPECT_EQ(plan.has_work(r, hop), pairs > 0) << of;
          }
      }
}

TEST(RingBench, PlansOfMasksByTheOrderOfTokensAreThoseOfTheLibrary) {
  for (const char* name :
       {"causal", "causal_window", "causal_document", "full", "full_document", "prefix_causal", "global_window"}) {
    const RowMask mask = make_ring_mask(name, 512, kShort);
    for (auto kind : {dist::LayoutKind::contiguous, dist::LayoutKind::balanced}) {
      const dist::Layout layout = make_ring_layout(kind, mask, 4);
      const dist::HopPlan mine = plan_of_seen(layout, mask), theirs = dist::plan_hops(layout, mask.causal, kRingTile);
      EXPECT_EQ(mine.pairs, theirs.pairs) << name;
      EXPECT_EQ(mine.tiles, theirs.tiles) << name;
      EXPECT_EQ(mine.steps, theirs.steps) << name;
    }
  }
}

// The measurement itself compares out, dq, dk and dv with one rank; 250 tokens over 3 ranks are padded.
TEST(RingBench, EveryMaskEqualsOneRank) {
  for (const RowMask& mask : all_masks(250)) {
    std::vector<RingCase> cases;
    for (dist::Scheme scheme : {dist::Scheme::ring, dist::Scheme::all_gather})
      for (auto kind : {dist::LayoutKind::zigzag, dist::LayoutKind::balanced})
        cases.push_back({scheme, make_ring_layout(kind, mask, 3), {}});
    for (const RingMeasured& m : measure_ring(ring_kernels()[0], mask, cases, 3, 0)) EXPECT_GT(m.extra_bytes, 0);
  }
}

TEST(RingBench, EveryKernelEqualsOneRank) {
  const RowMask mask = make_ring_mask("causal", 200, kShort);
  for (const RingKernel& kernel : ring_kernels()) {
    const RingCase cases[] = {{dist::Scheme::ring, make_ring_layout(dist::LayoutKind::zigzag, mask, 2), {}},
                              {dist::Scheme::ulysses, make_ring_layout(dist::LayoutKind::zigzag, mask, 2), {}}};
    const std::vector<RingMeasured> measured = measure_ring(kernel, mask, cases, 2, 1);
    for (size_t i = 0; i < measured.size(); ++i) {
      const RingMeasured& m = measured[i];
      EXPECT_GT(m.both, 0) << kernel.name;
      EXPECT_GT(m.seconds, 0) << kernel.name;
      const dist::MessageBytes planned = dist::message_bytes(cases[i].scheme, ring_shape(kernel, mask, cases[i].layout),
                                                             cases[i].options, plan_of_seen(cases[i].layout, mask));
      EXPECT_GT(m.sent_bytes, 0) << kernel.name;
      EXPECT_LE(m.sent_bytes, planned.forward + planned.backward) << kernel.name;
    }
  }
}

// Causal work of 4 contiguous ranks is 1, 3, 5 and 7 sixteenths. Queries travel if no heads share keys: then the first rank has most to do
// in backward, 7 / 16 of 5 products, beside 1 / 16 of 2.
TEST(RingBench, BoundsAreTheWorkOfTheBusiestRank) {
  const RowMask mask = make_ring_mask("causal", 2048, kShort);
  auto bound = [&](dist::Scheme scheme, dist::LayoutKind kind, dist::SchemeOptions options = {}) {
    return ring_bound(ring_kernels()[0], mask, {scheme, make_ring_layout(kind, mask, 4), options});
  };
  using enum dist::LayoutKind;
  const dist::SchemeOptions keys{.backward = dist::Travels::keys};
  EXPECT_NEAR(bound(dist::Scheme::ring, contiguous, keys), 4.0 / 7, 0.005);
  EXPECT_NEAR(bound(dist::Scheme::ring, contiguous), 7.0 * 16 / 4 / (2 * 1 + 5 * 7), 0.005);
  EXPECT_NEAR(bound(dist::Scheme::ring, zigzag), 1, 1e-12);
  EXPECT_NEAR(bound(dist::Scheme::all_gather, contiguous), 4.0 / 7, 0.005);
  EXPECT_NEAR(bound(dist::Scheme::ulysses, contiguous), 1, 1e-12);
  // Two groups of two ranks: a contiguous ring of two.
  const dist::SchemeOptions groups{.group = 2, .backward = dist::Travels::keys};
  EXPECT_NEAR(bound(dist::Scheme::usp, contiguous, groups), 2.0 / 3, 0.005);
}

// Figures of the derivation, 8 ranks of 512 tokens.
TEST(RingBench, PlanReproducesTheTable) {
  const std::vector<Row> rows = run_ring({.plan_only = true});
  auto row = [&](const std::string& name, const std::string& shape = "P8 n512 tile 64") {
    for (const Row& r : rows)
      if (r.name == name && r.shape == shape) return r;
    ADD_FAILURE() << "no row " << name;
    return Row{.name = name, .shape = shape, .dtype = "", .unit = ""};
  };
  struct Expected {
    const char* name;
    double pairs;
    const char *tiles, *hops;
  };
  const Expected table[] = {{"plan causal, contiguous", 1.875, "1.890", "8"},
                            {"plan causal, striped 1", 1.002, "1.125", "8"},
                            {"plan causal, striped 64", 1.109, "1.125", "8"},
                            {"plan causal, zigzag", 1.000, "1.015", "8"},
                            {"plan causal, balanced 64", 1.000, "1.015", "8"},
                            {"plan window 256, contiguous", 1.032, "1.290", "2"},
                            {"plan window 256, striped 1", 1.001, "3.870", "8"},
                            {"plan window 256, zigzag", 1.289, "1.613", "3"},
                            {"plan window 1024, contiguous", 1.143, "1.214", "3"},
                            {"plan window 1024, striped 64", 1.062, "1.125", "8"},
                            {"plan half and short documents, contiguous", 3.292, "3.350", "4"},
                            {"plan half and short documents, balanced 64", 1.015, "1.073", "8"}};
  for (const Expected& e : table) {
    const Row r = row(e.name);
    EXPECT_NEAR(r.value, e.pairs, 0.00051) << e.name;
    ASSERT_GE(r.extra.size(), 2u);
    EXPECT_EQ(r.extra[0].second, e.tiles) << e.name;
    EXPECT_EQ(r.extra[1].second, e.hops) << e.name;
  }
  EXPECT_LE(row("plan causal, striped 64", "P8 n4096 tile 64").value, 1.02);
}

TEST(RingBench, MeasuresTheAxesThatAreAskedFor) {
  BenchOptions options{.quick = true,
                       .ring = {.kernels = {"grouped"},
                                .schemes = {"all"},
                                .masks = {"causal", "full_window"},
                                .layouts = {"contiguous", "zigzag"},
                                .tokens = {96},
                                .ranks = {2, 3}}};
  const std::vector<Row> rows = run_ring(options);
  int refused = 0, measured = 0;
  for (const Row& row : rows) {
    const bool is_refused = row.extra.front().first == "refused";
    refused += is_refused, measured += !is_refused;
    if (is_refused) continue;
    EXPECT_GT(row.value, 0) << row.name;
    EXPECT_NE(row.shape.find("T96 H8 G2 d64 P"), std::string::npos) << row.shape;
  }
  EXPECT_EQ(refused, 1 + 1);  // the mask; ulysses on 3 ranks
  EXPECT_EQ(measured, 2 * (6 + 5));
}

TEST(RingBench, NamesWhatThereIs) {
  auto run = [](RingOptions ring) { return [ring] { run_ring({.ring = ring}); }; };
  EXPECT_EQ(test::error_of(run({.masks = {"cauusal"}}),
                           {"--masks cauusal: there is none", "all, full, causal, full_document"}),
            "");
  EXPECT_EQ(test::error_of(run({.schemes = {"rings"}}), {"--schemes rings", "ring, bidirectional_ring"}), "");
  EXPECT_EQ(test::error_of(run({.kernels = {"x"}}), {"--kernels x", "softmax, softmax_bf16"}), "");
  EXPECT_EQ(test::error_of(run({.ranks = {2, 0}}), {"--ranks 0", "use 1 to 1024"}), "");
  EXPECT_EQ(test::error_of(run({.tokens = {0}}), {"--tokens 0"}), "");
  EXPECT_EQ(test::error_of(run({.tokens = {64}, .documents = "/nowhere"}), {"/nowhere cannot be read"}), "");
}

// The 4 x 8 tokens of the picture are those of the derivation: pairs of rank and hop are known.
TEST(RingBench, PictureShowsTheHopPlans) {
  const std::string svg = ring_picture();
  for (const char* part : {">36<", ">64<", ">32<", ">in step: 1.00 of ideal<", ">zigzag, causal<"})
    EXPECT_NE(svg.find(part), std::string::npos) << part;
  std::ifstream file(WEFT_DOCS "/layouts.svg");
  std::stringstream committed;
  committed << file.rdbuf();
  EXPECT_TRUE(committed.str() == svg) << "make it again: weft bench ring --plan --picture docs/layouts.svg";
}

}  // namespace
}  // namespace weft::bench
