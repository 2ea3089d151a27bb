// Which scheme and layout a run takes where its config leaves them to it, what is refused, and what it says of balance.
#include "trainers/run/context_choice.h"

#include <gtest/gtest.h>

#include "tests/support/errors.h"
#include "tests/trainers/config_text.h"
#include "trainers/config/config_error.h"
#include "trainers/run/rank_places.h"
#include "trainers/run/team.h"
#include "weft/comm/communicator.h"
#include "weft/models/mixing_calls.h"

namespace weft::train {
namespace {

using config::test::kTiny;
using config::test::load_string;
using dist::LayoutKind;
using dist::Scheme;

config::Loaded tiny(std::vector<std::string> overrides) {
  overrides.insert(overrides.begin(), {"model.dim=32", "model.context=64", "train.tokens=6400"});
  return load_string(kTiny, overrides);
}

struct Row {
  std::vector<std::string> overrides;
  RankMachine machine;
  Scheme scheme;
  LayoutKind layout;
  std::string reason;  // a part of it
};

TEST(ContextChoice, FollowsHeadsDocumentsWindowsAndTheMachine) {
  const std::string heads = "model.mixer=[{softmax{heads:4 kv_heads:2}}]";
  const std::vector<Row> rows = {
      {{heads, "parallel.context=2"},
       {},
       Scheme::ulysses,
       LayoutKind::contiguous,
       "scheme ulysses (auto), layout contiguous (auto); "},
      {{heads, "parallel.context=4"}, {}, Scheme::ring, LayoutKind::zigzag, "4 ranks do not divide 2 key heads"},
      {{heads, "parallel.context=4", "data.end_of_text=3", "model.context=512"},
       {},
       Scheme::all_gather,
       LayoutKind::balanced,
       "packed documents"},
      // Blocks of 64 cannot be dealt evenly: some ranks would have one, or none.
      {{heads, "parallel.context=4", "data.end_of_text=3", "model.context=256"},
       {},
       Scheme::all_gather,
       LayoutKind::zigzag,
       "documents in layout zigzag and not balanced: 64 tokens of a rank are fewer than two blocks of 64"},
      {{heads, "parallel.context=4", "data.end_of_text=3", "parallel.block=8"},
       {},
       Scheme::all_gather,
       LayoutKind::balanced,
       "packed documents"},
      {{heads, "parallel.context=4", "data.end_of_text=3", "parallel.scheme=ring"},
       {},
       Scheme::ring,
       LayoutKind::zigzag,
       "layout zigzag (auto); documents in layout zigzag and not balanced: 16 tokens of a rank"},
      {{heads, "parallel.context=4", "data.end_of_text=3", "parallel.scheme=ring", "model.context=512"},
       {},
       Scheme::ring,
       LayoutKind::balanced,
       "scheme ring (config), layout balanced (auto)"},
      {{heads, "parallel.context=4", "data.end_of_text=3", "data.document_mask=false"},
       {},
       Scheme::ring,
       LayoutKind::zigzag,
       ""},
      {{heads, "parallel.context=4"}, {.ranks_per_node = 2}, Scheme::usp, LayoutKind::zigzag, "ranks on nodes of 2"},
      {{heads, "parallel.context=2"}, {.device_bytes = 1000}, Scheme::ring, LayoutKind::zigzag, "buffers of ulysses"},
      {{"model.mixer=[{softmax{heads:4 window:8}}]", "parallel.context=8"},
       {},
       Scheme::ring,
       LayoutKind::contiguous,
       "has a window"},
      {{heads, "parallel.context=2", "parallel.scheme=all_gather"},
       {},
       Scheme::all_gather,
       LayoutKind::zigzag,
       "scheme all_gather (config), layout zigzag (auto)"},
      {{heads, "parallel.context=2", "parallel.layout=striped"},
       {},
       Scheme::ulysses,
       LayoutKind::striped,
       "layout striped (config); ulysses"},
      // The layer that divides least decides for all.
      {{"model.mixer=[{softmax{heads:4}},{softmax{heads:2}}]", "parallel.context=4"},
       {},
       Scheme::ring,
       LayoutKind::zigzag,
       "4 ranks do not divide 2 key heads"},
      // Running sums want few pieces, also for documents.
      {{"model.mixer=[{forgetting{heads:2}}]", "parallel.context=4", "data.end_of_text=3"},
       {},
       Scheme::all_gather,
       LayoutKind::zigzag,
       ""},
  };
  for (const Row& row : rows) {
    std::string all;
    for (const std::string& override : row.overrides) all += override + " ";
    SCOPED_TRACE(all);
    const config::Loaded config = tiny(row.overrides);
    const ContextChoice choice = choose_context(config, row.machine);
    EXPECT_EQ(*choice.parallel.scheme, row.scheme) << choice.reason;
    EXPECT_EQ(*choice.parallel.layout, row.layout) << choice.reason;
    EXPECT_NE(choice.reason.find(row.reason), std::string::npos) << choice.reason;
    const ParallelOptions resolved = parallel_options(with_choice(config, choice).experiment);
    EXPECT_EQ(resolved.scheme, choice.parallel.scheme);
    EXPECT_EQ(resolved.layout, choice.parallel.layout);
  }
}

TEST(ContextChoice, SaysNothingOfBlocksWhereTheConfigNamesTheLayout) {
  const ContextChoice choice = choose_context(tiny({"model.mixer=[{softmax{heads:4 kv_heads:2}}]", "parallel.context=4",
                                                    "data.end_of_text=3", "parallel.layout=striped"}),
                                              {});
  EXPECT_EQ(choice.reason.find("fewer than two blocks"), std::string::npos) << choice.reason;
}

// What the ranks of a run do: a scheme that the config names has groups within the nodes of the machine, as `auto` has.
TEST(ContextChoice, NamedSchemesHaveGroupsWithinNodes) {
  auto options_of = [](const std::string& scheme, int ranks, int per_node, int64_t heads, std::string& reason) {
    const ContextChoice choice = choose_context(tiny({"model.mixer=[{softmax{heads:8 kv_heads:1}}]",
                                                      str("parallel.context=", ranks), "parallel.scheme=" + scheme}),
                                                {.ranks_per_node = per_node});
    reason = choice.reason;
    dist::SchemeOptions of_rank;
    dist::run_thread_ranks(ranks, [&](dist::Communicator& world) {
      const Team team(world, choice);
      if (team.leads()) of_rank = team.context().options_for(heads);
    });
    return of_rank;
  };
  std::string reason;
  EXPECT_EQ(options_of("double_ring", 8, 2, 8, reason).node, 2);
  EXPECT_NE(reason.find("scheme double_ring (config)"), std::string::npos) << reason;
  EXPECT_NE(reason.find("double_ring: 8 ranks on nodes of 2"), std::string::npos) << reason;
  EXPECT_EQ(options_of("usp", 8, 2, 8, reason).group, 2);
  EXPECT_NE(reason.find("usp: 8 ranks on nodes of 2"), std::string::npos) << reason;
  EXPECT_EQ(options_of("auto", 8, 2, 8, reason).node, 2) << reason;
  for (int per_node : {0, 8}) {
    EXPECT_EQ(options_of("double_ring", 8, per_node, 8, reason).node, 4) << "one node";
    EXPECT_EQ(options_of("usp", 8, per_node, 8, reason).group, 4) << "one node";
    EXPECT_EQ(reason.find("nodes"), std::string::npos) << reason;
  }
}

TEST(RankMachine, CountsTheRanksOfAHost) {
  dist::run_thread_ranks(5, [](dist::Communicator& world) {
    EXPECT_EQ(count_ranks_at(world, world.rank() % 2 == 0 ? "a" : "b"), world.rank() % 2 == 0 ? 3 : 2);
    EXPECT_EQ(rank_machine(world).ranks_per_node, 5);
  });
}

TEST(ContextChoice, RefusesHeadsThatASchemeCannotDivideAndNamesTheModule) {
  for (const auto& [mixer, ranks, where] : std::vector<std::tuple<std::string, int, std::string>>{
           {"{softmax{heads:4}}", 3, "4 query heads for 3 ranks"},
           {"{softmax{heads:4}},{mla{heads:2}}", 4, "layers.1.mixer: ulysses: 2 query heads for 4 ranks"}}) {
    const config::Loaded config = tiny({str("model.mixer=[", mixer, "]"), "model.layers=2",
                                        str("parallel.context=", ranks), "parallel.scheme=ulysses"});
    const std::initializer_list<std::string_view> parts = {"parallel.scheme", "cannot run in model.", where,
                                                           "parallel.scheme=auto"};
    EXPECT_EQ(test::error_of([&] { choose_context(config, {}); }, parts), "");
    EXPECT_EQ(test::error_of([&] { check_context(config); }, parts), "") << "before a run";
  }
  const auto mha = [](const std::string& scheme, int ranks) {
    return tiny({"model.mixer=[{softmax{heads:4}}]", str("parallel.context=", ranks), "parallel.scheme=" + scheme});
  };
  for (const char* scheme : {"ring", "bidirectional_ring", "double_ring", "all_gather", "usp", "auto"})
    EXPECT_NO_THROW(check_context(mha(scheme, 3))) << scheme;
  EXPECT_NO_THROW(check_context(mha("ulysses", 4)));
  EXPECT_NO_THROW(check_context(mha("ulysses", 1)));
}

TEST(ContextChoice, GivesTheLayoutTheWindowOfTheModel) {
  auto window = [](const std::string& mixers) {
    const ContextChoice choice = choose_context(tiny({"model.mixer=" + mixers, "parallel.context=2"}), {});
    return std::pair(choice.window, choice.windows);
  };
  EXPECT_EQ(window("[{softmax{heads:4 window:8}},{softmax{heads:4 window:16}}]"),
            std::pair(int64_t{16}, std::vector<int64_t>{8, 16}));
  EXPECT_EQ(window("[{softmax{heads:4 window:8}},{softmax{heads:4}}]"),
            std::pair(int64_t{0}, std::vector<int64_t>{8, 0}));
}

TEST(ContextChoice, SaysHowEqualTheWorkIs) {
  const ContextChoice choice =
      choose_context(tiny({"model.mixer=[{softmax{heads:4 kv_heads:2}},{softmax{heads:4 kv_heads:2 window:16}}]",
                           "parallel.context=4"}),
                     {});
  const std::vector<std::string> lines = context_lines(choice, 4096, {});
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[1].find("balance, causal: rank totals 1.000 in pairs and 1.0"), 0u) << lines[1];
  EXPECT_NE(lines[1].find("hop by hop 1.000 and"), std::string::npos) << lines[1];
  EXPECT_EQ(lines[2].find("balance, window 16: "), 0u) << lines[2];
  std::vector<int32_t> documents(4096, 0);
  for (size_t t = 100; t < documents.size(); ++t) documents[t] = 1;
  EXPECT_NE(context_lines(choice, 4096, documents)[1].find("documents of the first sequence"), std::string::npos);
  EXPECT_TRUE(context_lines(choose_context(tiny({}), {}), 64, {}).empty());
}

// Tiles at an edge of a rank's tokens are not whole: they count as the others do, on the busiest rank and in the mean.
TEST(ContextChoice, SaysHowEqualTilesOfShortSequencesAre) {
  auto line = [](const std::string& layout, int64_t tokens) {
    const ContextChoice choice = choose_context(
        tiny({"model.mixer=[{softmax{heads:4}}]", "parallel.context=4", "parallel.scheme=ring", layout}), {});
    return context_lines(choice, tokens, {})[1];
  };
  // Each hop is one tile. Padding is on one rank, which sees 69 of the 465 pairs; the others see 132.
  EXPECT_EQ(line("parallel.layout=zigzag", 30),
            "balance, causal: rank totals 1.135 in pairs and 1.000 in tiles, hop by hop 1.135 and 1.000 (1 is equal "
            "work), 4 of 4 hops");
  // Rank r sees r + 1 tiles, of 10 in all; 32 tokens each.
  EXPECT_NE(line("parallel.layout=contiguous", 128).find(" and 1.600 in tiles, hop by hop "), std::string::npos)
      << line("parallel.layout=contiguous", 128);
}

TEST(ContextChoice, SaysHowStatesOfRecurrencesTravel) {
  const config::Loaded config = tiny(
      {"model.mixer=[{gla{heads:4}},{delta{heads:4 decay:head}},{hgrn{heads:0}},{softmax{heads:4}},{gla{heads:4}}]",
       "model.layers=5", "parallel.context=2"});
  const ContextChoice choice = choose_context(config, {});
  ASSERT_EQ(choice.carries.size(), 3u);
  EXPECT_EQ(choice.carries[0].find("recurrences of 4 heads of 4 x 8: gather: a rank sends "), 0u) << choice.carries[0];
  EXPECT_NE(choice.carries[1].find("delta rule: gather: a rank sends "), std::string::npos) << choice.carries[1];
  EXPECT_EQ(choice.carries[2].find("recurrences of 32 channels: gather: "), 0u) << choice.carries[2];
  EXPECT_EQ(context_lines(choice, 64, {})[1], choice.carries[0]);
}

TEST(ContextChoice, RefusesStripesThatAreTooShortForRecurrences) {
  for (const std::string layout : {"striped", "balanced"}) {
    SCOPED_TRACE(layout);
    auto config = [&](int block, const std::string& mixer) {
      return tiny({str("model.mixer=[", mixer, "]"), "parallel.context=2", "parallel.layout=" + layout,
                   str("parallel.block=", block)});
    };
    for (int block : {1, 8, 31}) {
      const std::string problem = str("is ", layout, " with blocks of ", block, " tokens");
      const std::initializer_list<std::string_view> parts = {"parallel.layout", problem, "at least 32",
                                                             "parallel.layout=zigzag"};
      EXPECT_EQ(test::error_of([&] { choose_context(config(block, "{gla{heads:4}}"), {}); }, parts), "");
      EXPECT_EQ(test::error_of([&] { check_context(config(block, "{gla{heads:4}}")); }, parts), "") << "before a run";
    }
    EXPECT_NO_THROW(choose_context(config(32, "{gla{heads:4}}"), {}));
    EXPECT_NO_THROW(check_context(config(32, "{gla{heads:4}}")));
    EXPECT_NO_THROW(choose_context(config(8, "{softmax{heads:4}}"), {}));
    EXPECT_NO_THROW(check_context(config(8, "{softmax{heads:4}}")));
  }
  EXPECT_NO_THROW(check_context(tiny({"model.mixer=[{gla{heads:4}}]", "parallel.block=1"})));
}

TEST(MixingCalls, CountRecurrencesOfEachKind) {
  LanguageModelOptions options{.vocab = 97, .dim = 32, .layers = 3, .context = 64};
  options.mixers = {GlaOptions{.heads = 4}, DeltaOptions{.heads = 2}, GlaOptions{.heads = 4}};
  const MixingCalls calls = mixing_calls(options, kF32, 16);
  ASSERT_EQ(calls.recurrences.size(), 2u);
  EXPECT_EQ(calls.recurrences[0].count, 2);
  EXPECT_TRUE(calls.recurrences[0].is_like({.key_heads = 4, .heads = 4, .key_width = 4, .value_width = 8}));
  EXPECT_TRUE(calls.recurrences[1].is_delta);
  EXPECT_TRUE(calls.has_running_sums && calls.attention.empty());
}

// Keys of chosen tokens are gathered, so no scheme has a say and no head count is refused.
TEST(MixingCalls, ChosenKeysAreGathered) {
  LanguageModelOptions options{.vocab = 97, .dim = 32, .layers = 2, .context = 64};
  options.mixers = {RatOptions{.heads = 2, .chunk = 4}};
  const MixingCalls calls = mixing_calls(options, kF32, 16);
  ASSERT_EQ(calls.attention.size(), 1u);
  EXPECT_TRUE(calls.attention[0].is_gathered && calls.has_running_sums);
  EXPECT_FALSE(calls.has_neighbours || calls.gathers_tokens);
  EXPECT_EQ(calls.where_not(Scheme::ulysses, 4), "");
}

TEST(MixingCalls, AreThoseOfEveryKindOfLayer) {
  LanguageModelOptions options{.vocab = 97, .dim = 32, .layers = 4, .context = 64};
  options.mixers = {SoftmaxOptions{.heads = 4, .kv_heads = 2, .head_dim = 8, .window = 5},
                    MlaOptions{.heads = 2, .head_dim = 8, .rope_dim = 4, .kv_rank = 16},
                    SoftmaxOptions{.heads = 4, .kv_heads = 2, .head_dim = 8, .window = 5}};
  const MixingCalls calls = mixing_calls(options, kF32, 16);
  ASSERT_EQ(calls.attention.size(), 2u);
  EXPECT_TRUE(calls.attention[0].is_like({.heads = 4, .kv_heads = 2, .key_width = 8, .value_width = 8, .window = 5}));
  EXPECT_TRUE(calls.attention[1].is_like({.heads = 2, .kv_heads = 2, .key_width = 12, .value_width = 8}));
  EXPECT_FALSE(calls.has_running_sums);
  EXPECT_EQ(calls.where_not(Scheme::ring, 3), "");
  EXPECT_NE(calls.where_not(Scheme::ulysses, 4).find("layers.1"), std::string::npos)
      << calls.where_not(Scheme::ulysses, 4);
}

}  // namespace
}  // namespace weft::train
