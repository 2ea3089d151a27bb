// Probes and analyses of rows of which several ranks have some tokens each: what they see and find is what one rank does, in every layout. Ranks
// are threads.
#include "src/nn/mixing/chosen_keys.h"
#include "tests/nn/analysis_support.h"
#include "tests/support/errors.h"

namespace weft {
namespace {

using namespace analysis_test;
using test::error_of;

TEST(AnalysisOverRanks, ProbesSeeWhatOneRankShows) {
  for (const LanguageModelOptions& options : models())
    for (bool has_documents : {false, true}) {
      std::mutex mutex;
      Shown expected;
      const auto alone = make_model(options);
      watch(*alone, analysed(rows(has_documents), has_documents, nullptr), expected, mutex);
      EXPECT_GE(expected.size(), 6u);
      for (const Spread& s : kSpreads) {
        Shown got;
        on_ranks(s, has_documents, [&](const AnalysisRows& mine, dist::Communicator&) {
          const auto model = make_model(options);
          watch(*model, mine, got, mutex);
        });
        expect_near(got, expected, to_string(s));
      }
    }
}

TEST(AnalysisOverRanks, HasTheFiguresOfOneRank) {
  for (const LanguageModelOptions& options : models())
    for (bool has_documents : {false, true}) {
      const auto alone = make_model(options);
      const Figures expected = figures_of(*alone, analysed(rows(has_documents), has_documents, nullptr));
      EXPECT_GT(std::abs(expected[expected.size() - 3].second - expected[expected.size() - 4].second), 1e-4)
          << "a head without a say proves nothing";
      for (const Spread& s : kSpreads) {
        std::mutex mutex;
        std::vector<Figures> got;
        on_ranks(s, has_documents, [&](const AnalysisRows& mine, dist::Communicator&) {
          const auto model = make_model(options);
          Figures figures = figures_of(*model, mine);
          std::lock_guard lock(mutex);
          got.push_back(std::move(figures));
        });
        expect_near(got[0], expected, to_string(s));
        for (const Figures& of_rank : got) EXPECT_EQ(of_rank, got[0]) << to_string(s);
      }
    }
}

// Two pairs of ranks: those of a pair share the rows, the pairs share the forwards.
TEST(AnalysisOverRanks, SharesForwardsToo) {
  const LanguageModelOptions options = models()[0];
  const auto alone = make_model(options);
  const Figures expected = figures_of(*alone, analysed(rows(true), true, nullptr));
  const data::SpreadOptions spread{.layout = dist::LayoutKind::zigzag, .ranks = 2};
  dist::run_thread_ranks(4, [&](dist::Communicator& world) {
    const auto tokens = world.split(world.rank() / 2, world.rank(), "context"),
               others = world.split(world.rank() % 2, world.rank(), "data");
    const ContextGroup group{.tokens = tokens.get()};
    const auto model = make_model(options);
    const AnalysisRows mine = analysed(data::spread(rows(true), spread, tokens->rank()), true, &group);
    expect_near(figures_of(*model, mine, others.get()), expected, str("rank ", world.rank()));
  });
}

// Keys are shown in the order of positions, also where one rank's tokens stand in another one.
TEST(Probe, ShowsKeysInTheOrderOfPositions) {
  constexpr int64_t T = 7;
  const std::vector<int32_t> positions{3, 4, 0, 1, 6, 5, 2};
  for (const MixerMaker& make : {MixerMaker(SoftmaxOptions{.heads = 2}), MixerMaker(TapaOptions{.heads = 2})}) {
    auto mixer = make({.dim = 8, .context = T, .std = 0.4, .out_std = 0.4}, Rng(2));
    mixer->set_compute(kF64);
    const Tensor x_all = cast(Var(normal_init({1, T, 8}, Rng(3), 1.0)), kF64).value();
    auto weights_of = [&](const std::vector<int32_t>& of) {
      std::vector<double> out;
      Probe probe;
      probe.weights = [&](std::string_view, const Tensor& weights, bool) { out = weights.to_vector<double>(); };
      Tensor x = Tensor::zeros({1, T, 8}, kF64, Device::cpu());
      for (int64_t t = 0; t < T; ++t)
        std::copy_n(x_all.data<double>() + of[static_cast<size_t>(t)] * 8, 8, x.mutable_data<double>() + t * 8);
      NoGrad no_grad;
      Tokens tokens({.positions = Tensor::from(std::span<const int32_t>(of), {1, T})}, {.probe = &probe});
      mixer->forward(x, tokens);
      return out;
    };
    std::vector<int32_t> in_order(T);
    for (int32_t t = 0; t < T; ++t) in_order[static_cast<size_t>(t)] = t;
    const std::vector<double> expected = weights_of(in_order), got = weights_of(positions);
    ASSERT_EQ(got.size(), static_cast<size_t>(T * 2 * T));
    for (size_t t = 0; t < T; ++t)
      for (size_t c = 0; c < 2 * T; ++c)
        EXPECT_NEAR(got[t * 2 * T + c], expected[static_cast<size_t>(positions[t]) * 2 * T + c], 1e-12)
            << t << " " << c;
  }
}

TEST(Probe, IsShownTheKeysOfAllTokens) {
  const Probe probe{.weights = [](std::string_view, const Tensor&, bool) {}};
  Tokens tokens(plain_tokens(1, 4), {.probe = &probe});
  const Var x = Tensor::full({1, 4, 2, 2}, 1, kF64, Device::cpu());
  KeySet keys = tokens.keys(x, x);
  tokens.observe(tokens.queries(x), keys, {}, {}, {});
  keys = chosen_keys(reshape(x, {4, 2, 2}), reshape(x, {4, 2, 2}), {{{.number = 1, .position = 1}}}, false);
  EXPECT_EQ(error_of([&] { tokens.observe(tokens.queries(x), keys, {}, {}, {}); },
                     {"observe: keys are [1, 1, 2, 2]", "the tokens 4 of each row", "hide those"}),
            "");
}

// Ranks exchange keys for weights, and statistics for diagnostics: all do or none does.
TEST(AnalysisOverRanks, IsRefusedWhereRanksAreWatchedUnlike) {
  const Probe weights{.weights = [](std::string_view, const Tensor&, bool) {}},
      heads{.heads = [](std::string_view, const Var&y) { return y; }};
  auto run = [&](const TokensOptions& of_first, const TokensOptions& of_second) {
    dist::run_thread_ranks(2, [&](dist::Communicator& comm) {
      const ContextGroup group{.tokens = &comm};
      TokensOptions options = comm.rank() == 0 ? of_first : of_second;
      options.context = &group;
      Tokens tokens(plain_tokens(1, 4, 4 * comm.rank()), options);
      const Var x = Tensor::full({1, 4, 2, 2}, 1, kF64, Device::cpu());
      tokens.attend(x, x, x);
    });
  };
  run({.probe = &weights}, {.probe = &weights});
  run({.probe = &heads}, {});
  EXPECT_EQ(error_of([&] { run({.probe = &heads}, {.probe = &weights}); },
                     {"rank 1 has a probe of weights, rank 0 has none", "every rank"}),
            "");
  EXPECT_EQ(error_of([&] { run({.takes_diagnostics = true}, {}); },
                     {"rank 0 takes diagnostics, rank 1 does not", "takes_diagnostics"}),
            "");
}

}  // namespace
}  // namespace weft
