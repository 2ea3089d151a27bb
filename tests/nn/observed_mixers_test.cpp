// What mixers report of their attention, against the weights that they show: every mixer of the table.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <set>

#include "src/nn/mixers/rows/rows.h"
#include "tests/nn/model_support.h"
#include "tests/nn/observed_support.h"
#include "weft/core/dry_run.h"

namespace weft {
namespace {

using namespace observed_test;

// Sums over the calls of a path and head of what its weights [1, T, H, T] say, and how many there are.
struct Said {
  double entropy = 0, first = 0, total = 0, sinks = 0, calls = 0;
  bool is_softmax = true;
};

void add(std::map<std::string, Said>& all, std::string_view path, const Tensor& weights, bool is_softmax,
         bool has_documents) {
  const int64_t H = weights.size(2);
  ASSERT_EQ(weights.shape(), Shape({1, kTokens, H, kTokens})) << path;
  const auto w = cast(Var(weights), kF64).value().to_vector<double>();
  for (int64_t h = 0; h < H; ++h) {
    Said& said = all[str(path, "|", h)];
    said.is_softmax = said.is_softmax && is_softmax;
    ++said.calls;
    std::map<int64_t, double> first;  // by the document's first token
    for (int64_t t = 0; t < kTokens; ++t) {
      auto size = [&](int64_t j) { return std::abs(w[static_cast<size_t>((t * H + h) * kTokens + j)]); };
      const int64_t start = start_of(has_documents, t);
      double sum = 0;
      for (int64_t j = 0; j < kTokens; ++j) {
        ASSERT_TRUE(std::isfinite(size(j))) << path;
        if (j > t || j < start) { ASSERT_EQ(size(j), 0) << path << ", query " << t << ", key " << j; }
        sum += size(j);
      }
      said.total += sum / kTokens;
      const double unit = is_softmax || sum == 0 ? 1 : sum;
      for (int64_t j = 0; j < kTokens; ++j)
        if (size(j) > 0) said.entropy -= size(j) / unit * std::log(size(j) / unit) / kTokens;
      said.first += size(start) / unit / kTokens;
      first[start] += size(start) / unit;
    }
    for (const auto& [start, mass] : first) {
      const int64_t length = !has_documents ? kTokens : start == 0 ? kFirst : kTokens - kFirst;
      said.sinks += mass / static_cast<double>(length) > 0.3 ? 1 / static_cast<double>(first.size()) : 0;
    }
  }
}

// Whoever reports shows weights, and whoever shows weights reports what they say. Those of a softmax and its sink sum to 1.
TEST(ObservedMixers, ReportWhatTheirShownWeightsSay) {
  int count = 0;
  for (const MixerRow& row : mixer_table())
    for (bool has_documents : {false, true}) {
      if (has_documents && !row.lacks.documents.empty()) continue;
      SCOPED_TRACE(str(row.name, has_documents ? ", documents" : ""));
      LanguageModelOptions options = test::tiny_model_of(row.make);
      for (int32_t i = 0; i < 12; ++i) options.fixed_text.push_back(i % 11);
      LanguageModel model(options, Rng(6));
      std::map<std::string, Said> all;
      const Probe probe{.weights = [&](std::string_view path, const Tensor& weights, bool is_softmax) {
        add(all, path, weights, is_softmax, has_documents);
      }};
      NoGrad no_grad;
      Tokens tokens(data_of(has_documents), {.takes_diagnostics = true, .probe = &probe});
      model.hidden(test::tiny_ids(1, kTokens), tokens);
      const Values values = values_of(tokens.reports());
      size_t reported = 0;
      for (const auto& [name, value] : values) {
        reported += name.find(".max_score/") != std::string::npos;
        EXPECT_TRUE(std::isfinite(value)) << name;
      }
      EXPECT_EQ(reported, all.size());
      for (const auto& [key, said] : all) {
        const std::string path = key.substr(0, key.find('|')), head = key.substr(key.find('|') + 1);
        auto value = [&](const std::string& what) {
          const auto found = values.find(str(path, ".", what, "/", head));
          return found == values.end() ? 0 : found->second;
        };
        EXPECT_NEAR(value("entropy"), said.entropy / said.calls, 1e-4) << key;
        EXPECT_NEAR(value("first_token_mass"), said.first / said.calls, 1e-5) << key;
        EXPECT_NEAR(value("sink_rate"), said.sinks / said.calls, 1e-6) << key;
        if (said.is_softmax) { EXPECT_NEAR(said.total / said.calls + value("sink_mass"), 1, 1e-5) << key; }
        ++count;
      }
    }
  EXPECT_GT(count, 100);
}

// docs/diagnostics.md names those that report nothing: | `a`, `b` | nothing: ... |
TEST(ObservedMixers, WithoutReportsAreThoseThatTheDocsName) {
  std::ifstream file(WEFT_DOCS "/diagnostics.md");
  std::set<std::string> documented, silent, recurrent;
  for (std::string line; std::getline(file, line);) {
    const size_t end = line.find(" | nothing:");
    if (!line.starts_with("| `") || end == std::string::npos) continue;
    for (size_t begin = line.find('`'); begin < end; begin = line.find('`', line.find('`', begin + 1) + 1))
      documented.insert(line.substr(begin + 1, line.find('`', begin + 1) - begin - 1));
  }
  for (const MixerRow& row : recurrent_rows()) recurrent.insert(row.name);
  for (const MixerRow& row : mixer_table()) {
    LanguageModelOptions options = test::tiny_model_of(row.make);
    for (int32_t i = 0; i < 12; ++i) options.fixed_text.push_back(i % 11);
    LanguageModel model(options, Rng(6));
    NoGrad no_grad;
    Tokens tokens(data_of(false), {.takes_diagnostics = true});
    model.hidden(test::tiny_ids(1, kTokens), tokens);
    const Values values = values_of(tokens.reports());
    for (const char* what : {"entropy", "max_score", "first_token_mass", "sink_rate", "value_drain"})
      for (const char* layer : {"0", "1"}) {
        const bool reports = values.contains(str("model.layers.", layer, ".mixer.", what, "/0"));
        if (!reports && !recurrent.contains(row.name)) silent.insert(row.name);
        EXPECT_FALSE(reports && recurrent.contains(row.name)) << row.name;
      }
  }
  EXPECT_EQ(silent, documented);
}

// An estimate of memory counts the diagnostics of a step without numbers.
TEST(ObservedMixers, ReportInADryRun) {
  for (const MixerRow& row : mixer_table()) {
    SCOPED_TRACE(row.name);
    DryRun dry;
    LanguageModelOptions options = test::tiny_model_of(row.make);
    for (int32_t i = 0; i < 12; ++i) options.fixed_text.push_back(i % 11);
    LanguageModel model(options, Rng(6));
    const Tensor ids = test::tiny_ids(1, kTokens);
    Tokens tokens(data_of(false), {.is_training = true, .takes_diagnostics = true});
    EXPECT_NO_THROW(backward(model.loss(ids, ids, tokens, 0.1).loss));
  }
}

}  // namespace
}  // namespace weft
