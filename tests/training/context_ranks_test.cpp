// Rows whose tokens are spread over ranks: evaluations and diagnostics are those of one rank, for every mixer, documents and padding.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "tests/support/errors.h"
#include "tests/training/support.h"
#include "weft/data/spread.h"
#include "weft/nn/context_group.h"
#include "weft/nn/mixers.h"

namespace weft {
namespace {

constexpr int64_t kTokens = 29, kIds = 17;  // of a row; no number of ranks divides them
constexpr int64_t kDividedTokens = 24;      // of rows without padding: that is a document of its own

data::ValidationWindows windows(bool has_documents, int64_t tokens) {
  std::vector<int32_t> ids;
  for (int i = 0; i < 200; ++i) ids.push_back(i * i % kIds == 3 ? 0 : i * 5 % kIds);
  data::RowOptions rows{.context = tokens, .vocab = kIds};
  if (has_documents) rows.documents = data::DocumentRule::ends_with_id, rows.end_of_text = 0;
  return {data::Dataset(ids), rows};
}

LanguageModelOptions model_of(const MixerMaker& mixer) {
  return {.vocab = kIds,
          .dim = 32,
          .layers = 2,
          .context = kTokens,
          .mixers = {mixer},
          .ffn = {.hidden = 24},
          .fixed_text = std::vector<int32_t>(kTokens, 1)};
}

struct Spread {
  int ranks;
  dist::LayoutKind layout;
  dist::Scheme scheme = dist::Scheme::ring;
};

data::SpreadOptions options_of(const Spread& s, bool has_documents) {
  return {.layout = s.layout, .ranks = s.ranks, .block = 4, .keeps_documents_apart = has_documents};
}

// The last window of the data is padded too.
TEST(ContextRanks, EvaluateAsOneRankDoes) {
  for (bool has_documents : {false, true}) {
    const data::ValidationWindows all = windows(has_documents, kTokens);
    for (int64_t max_tokens : {int64_t{0}, 3 * kTokens + 5}) {
      LanguageModel alone(model_of(SoftmaxOptions{.heads = 2}), Rng(1));
      const Evaluation want =
          evaluate(alone, all, {.batch = 2, .max_tokens = max_tokens, .keeps_documents_apart = has_documents});
      EXPECT_EQ(want.num_targets > 4 * kTokens, max_tokens == 0);
      for (int data_ranks : {1, 2})
        for (const Spread& s : {Spread{2, dist::LayoutKind::zigzag}, {3, dist::LayoutKind::striped}}) {
          SCOPED_TRACE(str(data_ranks, " x ", s.ranks, has_documents ? " documents" : "", ", ", max_tokens, " tokens"));
          dist::run_thread_ranks(data_ranks * s.ranks, [&](dist::Communicator& world) {
            const auto context = world.split(world.rank() / s.ranks, world.rank(), "context");
            const ContextGroup group{.tokens = context.get(), .batch = &world};
            LanguageModel model(model_of(SoftmaxOptions{.heads = 2}), Rng(1));
            auto rows = [&](int64_t first, int64_t count) {
              return data::spread(all.batch(first, count), options_of(s, has_documents), context->rank());
            };
            const Evaluation got = evaluate(token_loss(model), rows, all.num_windows(),
                                            {.batch = 2,
                                             .max_tokens = max_tokens,
                                             .keeps_documents_apart = has_documents,
                                             .comm = &world,
                                             .ranks_per_row = s.ranks,
                                             .tokens_per_row = kTokens,
                                             .context = &group});
            EXPECT_EQ(got.num_targets, want.num_targets);
            EXPECT_NEAR(got.nats, want.nats, 1e-3);
            EXPECT_NEAR(got.standard_error, want.standard_error, 1e-5);
          });
        }
    }
  }
}

// Means by their names, and maxima.
using Values = std::map<std::string, double>;

void add(std::map<std::string, Tokens::Report>& all, const std::vector<Tokens::Report>& reports) {
  for (const Tokens::Report& r : reports) {
    const auto [entry, is_new] = all.emplace(r.name, r);
    if (is_new) continue;
    Tokens::Report& to = entry->second;
    to.sum = r.is_max ? std::max(to.sum, r.sum) : to.sum + r.sum;
    to.count += r.count;
  }
}

Values diagnostics(const MixerMaker& mixer, bool has_documents, const Spread& s) {
  std::map<std::string, Tokens::Report> all;
  std::mutex mutex;
  dist::run_thread_ranks(s.ranks, [&](dist::Communicator& comm) {
    const ContextGroup group{.tokens = &comm, .scheme = s.scheme};
    LanguageModel model(model_of(mixer), Rng(1));
    model.set_compute(kF64);
    data::Batch batch = windows(has_documents, has_documents ? kTokens : kDividedTokens).batch(1, 2);
    if (s.ranks > 1) batch = data::spread(batch, options_of(s, has_documents), comm.rank());
    Upload upload(Device::cpu());
    Tokens tokens(token_data(batch, has_documents, 0, upload),
                  {.is_training = true, .takes_diagnostics = true, .context = s.ranks > 1 ? &group : nullptr});
    model.loss(batch.tokens, batch.targets, tokens, 1);
    std::lock_guard lock(mutex);
    add(all, tokens.reports());
  });
  Values values;
  for (const auto& [name, r] : all) values[name] = r.is_max ? r.sum : r.sum / r.count;
  return values;
}

// Statistics of weights are f32. A median is that of each rank's own tokens.
TEST(ContextRanks, TakeTheDiagnosticsOfOneRankForEveryMixer) {
  size_t count = 0;
  for (const MixerRow& row : mixer_table()) {
    if (!row.lacks.order.empty()) continue;  // refused over ranks
    for (bool has_documents : {false, true}) {
      if (has_documents && !row.lacks.documents.empty()) continue;
      SCOPED_TRACE(str(row.name, has_documents ? ", documents" : ""));
      const Values want = diagnostics(row.make, has_documents, {1, dist::LayoutKind::contiguous});
      const Spread spread = count++ % 2 ? Spread{3, dist::LayoutKind::striped, dist::Scheme::all_gather}
                                        : Spread{2, dist::LayoutKind::zigzag};
      const Values got = diagnostics(row.make, has_documents, spread);
      EXPECT_GT(want.size(), 2u);
      ASSERT_EQ(got.size(), want.size());
      for (const auto& [name, value] : want) {
        ASSERT_TRUE(got.contains(name)) << name;
        if (name.ends_with("max_over_median")) continue;
        EXPECT_NEAR(got.at(name), value, 1e-4 * std::max(1.0, std::abs(value))) << name;
      }
    }
  }
  EXPECT_GT(count, 60u);
}

// Each way in which statistics go round.
TEST(ContextRanks, TakeTheDiagnosticsOfOneRankUnderEveryScheme) {
  const SoftmaxOptions gqa{.heads = 4, .kv_heads = 2};
  const Values want = diagnostics(gqa, true, {1, dist::LayoutKind::contiguous});
  for (dist::Scheme scheme : dist::all_schemes())
    for (int ranks : {2, 4}) {
      SCOPED_TRACE(str(to_string(scheme), ", ", ranks, " ranks"));
      const Values got = diagnostics(gqa, true, {ranks, dist::LayoutKind::zigzag, scheme});
      ASSERT_EQ(got.size(), want.size());
      for (const auto& [name, value] : want) {
        if (name.ends_with("max_over_median")) continue;
        EXPECT_NEAR(got.at(name), value, 1e-4 * std::max(1.0, std::abs(value))) << name;
      }
    }
}

}  // namespace
}  // namespace weft
