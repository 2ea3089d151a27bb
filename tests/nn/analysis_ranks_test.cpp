// Probes and analyses of rows of which several ranks have some tokens each: what they see and find is what one rank does, in every layout. Ranks
// are threads.
#include <gtest/gtest.h>

#include <map>
#include <mutex>

#include "src/nn/mixing/chosen_keys.h"
#include "tests/support/errors.h"
#include "weft/data/spread.h"
#include "weft/models/analysis.h"
#include "weft/nn/context_group.h"

namespace weft {
namespace {

using test::error_of;

constexpr int64_t kBatch = 2, kLength = 26, kVocab = 11;

// With documents row 0 has three, row 1 two and padding behind them.
data::Batch rows(bool has_documents) {
  data::Batch batch;
  for (Tensor* x : {&batch.tokens, &batch.targets, &batch.positions, &batch.documents, &batch.document_positions})
    *x = Tensor::zeros({kBatch, kLength}, kI32, Device::cpu());
  for (int64_t b = 0; b < kBatch; ++b)
    for (int64_t t = 0; t < kLength; ++t) {
      const int64_t at = b * kLength + t, first = 9 + 5 * b, second = kLength - 2;  // where documents begin
      const int64_t document = !has_documents || t < first ? 0 : t < second ? 1 : b == 0 ? 2 : -1;
      auto set = [&](Tensor& x, int64_t number) { x.mutable_data<int32_t>()[at] = static_cast<int32_t>(number); };
      set(batch.tokens, static_cast<int64_t>(Rng(1).below(kVocab, static_cast<uint64_t>(at))));
      set(batch.targets, t % 7 == 6 ? -1 : static_cast<int64_t>(Rng(2).below(kVocab, static_cast<uint64_t>(at))));
      set(batch.positions, t);
      set(batch.documents, document);
      set(batch.document_positions, document == 0 ? t : document == 1 ? t - first : document == 2 ? t - second : 0);
    }
  return batch;
}

AnalysisRows analysed(const data::Batch& batch, bool has_documents, const ContextGroup* context) {
  AnalysisRows out{.ids = batch.tokens, .targets = batch.targets, .tokens = {.positions = batch.positions}};
  out.tokens.are_consecutive = are_consecutive(batch.positions);
  if (has_documents) out.tokens.documents = batch.documents, out.tokens.document_positions = batch.document_positions;
  out.context = context;
  return out;
}

// Between them: a window, sinks, grouped heads, a mixture of heads, latents that are sent, weights of pairs, weights with signs.
std::vector<LanguageModelOptions> models() {
  SoftmaxOptions sink{.heads = 4, .kv_heads = 2, .window = 7}, mixture{.heads = 4};
  sink.sink.kind = SinkKind::logit;
  mixture.head_mixture = {.active = 1, .shared = 1, .path = HeadPath::grouped};
  auto of = [](std::vector<MixerMaker> mixers) {
    return LanguageModelOptions{.vocab = kVocab,
                                .dim = 16,
                                .layers = 2,
                                .context = 32,
                                .mixers = std::move(mixers),
                                .ffn = {.hidden = 24},
                                .std = 0.3};
  };
  return {of({sink, mixture}),
          of({MlaOptions{.heads = 4, .head_dim = 8, .rope_dim = 2, .kv_rank = 3}, TapaOptions{.heads = 4}}),
          of({NapOptions{.heads = 4, .window = 5}, GlaOptions{.heads = 4}})};
}

std::unique_ptr<LanguageModel> make_model(const LanguageModelOptions& options) {
  auto model = std::make_unique<LanguageModel>(options, Rng(5));
  model->set_compute(kF64);
  return model;
}

struct Spread {
  dist::LayoutKind layout;
  dist::Scheme scheme;
  int ranks;
};
constexpr Spread kSpreads[] = {
    {dist::LayoutKind::contiguous, dist::Scheme::ring, 2},    {dist::LayoutKind::striped, dist::Scheme::all_gather, 2},
    {dist::LayoutKind::zigzag, dist::Scheme::ulysses, 2},     {dist::LayoutKind::balanced, dist::Scheme::usp, 4},
    {dist::LayoutKind::contiguous, dist::Scheme::ring, 3},    {dist::LayoutKind::zigzag, dist::Scheme::ring, 3},
    {dist::LayoutKind::striped, dist::Scheme::double_ring, 4}};

std::string to_string(const Spread& s) {
  return str(dist::to_string(s.layout), ", ", dist::to_string(s.scheme), ", ", s.ranks, " ranks");
}

// f on each rank, with its part of the rows.
void on_ranks(const Spread& s, bool has_documents,
              const std::function<void(const AnalysisRows&, dist::Communicator&)>& f) {
  const data::SpreadOptions options{
      .layout = s.layout, .ranks = s.ranks, .block = 2, .keeps_documents_apart = has_documents};
  dist::run_thread_ranks(s.ranks, [&](dist::Communicator& comm) {
    const ContextGroup group{.tokens = &comm, .scheme = s.scheme};
    f(analysed(data::spread(rows(has_documents), options, comm.rank()), true, &group), comm);
  });
}

// By call, which has a number and a path: what a probe is shown, token by token of the rows, but padding.
using Shown = std::map<std::string, std::vector<double>>;

void watch(LanguageModel& model, const AnalysisRows& of, Shown& into, std::mutex& mutex) {
  int calls = 0;
  auto show = [&](std::string_view path, const Tensor& x, bool are_weights) {
    const std::vector<double> numbers = cast(Var(x), kF64).value().to_vector<double>();
    const auto each = static_cast<int64_t>(numbers.size()) / x.size(0) / x.size(1);
    const int64_t width = are_weights ? x.size(3) : each, kept = are_weights ? kLength : each;
    std::lock_guard lock(mutex);
    std::vector<double>& all = into[str(calls++, " ", path)];
    all.resize(static_cast<size_t>(kBatch * kLength * each / width * kept));
    for (int64_t i = 0; i < x.size(0) * x.size(1); ++i) {
      const int64_t position = of.tokens.positions.data<int32_t>()[i];
      if (position >= kLength || (of.tokens.documents.defined() && of.tokens.documents.data<int32_t>()[i] < 0))
        continue;
      const int64_t to = (i / x.size(1) * kLength + position) * (each / width * kept);
      for (int64_t c = 0; c < each; ++c)
        if (c % width < kept)
          all[static_cast<size_t>(to + c / width * kept + c % width)] = numbers[static_cast<size_t>(i * each + c)];
        else EXPECT_EQ(numbers[static_cast<size_t>(i * each + c)], 0) << "a key of padding";
    }
  };
  Probe probe;
  probe.weights = [&](std::string_view path, const Tensor& weights, bool) {
    EXPECT_EQ(weights.dtype(), kF64);
    show(path, weights, true);
  };
  probe.heads = [&](std::string_view path, const Var& y) {
    show(path, y.value(), false);
    return y;
  };
  probe.state = [&](std::string_view path, const Var& x) { show(path, x.value(), false); };
  NoGrad no_grad;
  Tokens tokens(of.tokens, {.probe = &probe, .context = of.context});
  model.hidden(of.ids, tokens);
}

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
        ASSERT_EQ(got.size(), expected.size()) << to_string(s);
        for (const auto& [call, numbers] : expected) {
          ASSERT_EQ(got[call].size(), numbers.size()) << call << ", " << to_string(s);
          for (size_t i = 0; i < numbers.size(); ++i)
            ASSERT_NEAR(got[call][i], numbers[i], 1e-11) << call << ", " << to_string(s) << ", number " << i;
        }
      }
    }
}

using Figures = std::vector<std::pair<std::string, double>>;

// All analyses, and the loss without a head.
Figures figures_of(LanguageModel& model, const AnalysisRows& of, dist::Communicator* others = nullptr) {
  Figures all = analyse(model, of, others);
  Probe without;
  without.heads = [](std::string_view path, const Var& y) {
    if (path != "model.layers.1.mixer") return y;
    Tensor mask = Tensor::full({4, 1}, 1, kF64, Device::cpu());
    mask.mutable_data<double>()[2] = 0;
    return y * Var(mask);
  };
  all.emplace_back("whole", analysis_loss(model, of));
  all.emplace_back("without a head", analysis_loss(model, of, without));
  const auto spread = perturbation_spread(model, of, 5);
  for (size_t l = 0; l < spread.size(); ++l) all.emplace_back(str("spread of token 5, ", l), spread[l]);
  return all;
}

void expect_near(const Figures& got, const Figures& expected, const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].first, expected[i].first) << what;
    EXPECT_NEAR(got[i].second, expected[i].second, 1e-10) << what << ", " << got[i].first;
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
