// Initial weights: which parameters have which standard deviation, by name.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "tests/nn/model_support.h"
#include "tests/support/errors.h"

namespace weft {
namespace {

using test::error_of;

double measured_std(const Tensor& x) {
  double sum = 0;
  const std::vector<float> values = x.to_vector<float>();
  for (float v : values) sum += static_cast<double>(v) * static_cast<double>(v);
  return std::sqrt(sum / static_cast<double>(values.size()));
}

bool is_output(const std::string& name) {
  return name.ends_with("mixer.out.weight") || name.ends_with("ffn.down.weight");
}

// Matrices of 4096 numbers or more, whose measured deviation is within 5 % of the one that they were drawn with.
TEST(Init, EveryMatrixHasTheDeviationThatTheOptionsSay) {
  for (const auto& [embedding_std, out_std] :
       std::initializer_list<std::pair<std::optional<double>, std::optional<double>>>{
           {{}, {}}, {1.0, {}}, {{}, 0.3}, {1.0, 0.02}})
    for (bool is_scaled : {true, false})
      for (bool has_ffn : {true, false})
        for (bool is_tied : {true, false}) {
          LanguageModelOptions o{.vocab = 100,
                                 .dim = 64,
                                 .layers = 8,
                                 .context = 64,
                                 .has_tied_embedding = is_tied,
                                 .position = PositionKind::learned,
                                 .mixers = {SoftmaxOptions{.heads = 2}, GlaOptions{.heads = 2, .gate_rank = 64}},
                                 .ffn = {.hidden = 96},
                                 .has_ffn = has_ffn,
                                 .std = 0.05,
                                 .embedding_std = embedding_std,
                                 .out_std = out_std,
                                 .scales_init_by_depth = is_scaled};
          SCOPED_TRACE(str("embedding_std ", embedding_std.value_or(0), ", out_std ", out_std.value_or(0), ", scaled ",
                           is_scaled, ", ffn ", has_ffn, ", tied ", is_tied));
          const double out = out_std.value_or(0.05) / (is_scaled ? std::sqrt(has_ffn ? 16.0 : 8.0) : 1);
          int outputs = 0;
          bool has_head = false;
          const LanguageModel model(o, Rng(5));
          for (const NamedParam& p : model.params()) {
            const Tensor& value = p.param->value();
            if (value.num_dims() != 2 || value.num_elements() < 4096) continue;
            const double want = p.name == "embedding.weight" ? embedding_std.value_or(0.05)
                                : is_output(p.name)          ? out
                                                             : 0.05;
            EXPECT_NEAR(measured_std(value) / want, 1, 0.05) << p.name;
            outputs += is_output(p.name);
            has_head |= p.name == "head.weight";
          }
          EXPECT_EQ(outputs, has_ffn ? 16 : 8);
          EXPECT_EQ(has_head, !is_tied) << "a tied head is the table";
        }
}

// Of every mixer and feed-forward network: what follows out_std is scaled by exactly as much, and nothing else changes.
TEST(Init, OnlyOutputProjectionsFollowOutStd) {
  std::map<std::string, std::set<std::string>> followers;  // by row
  auto compare = [&](const std::string& row, LanguageModelOptions o) {
    SCOPED_TRACE(row);
    o.fixed_text = std::vector<int32_t>(static_cast<size_t>(o.context));
    o.std = 0.02;
    const LanguageModel plain(o, Rng(3));
    o.out_std = 0.08;
    const LanguageModel other(o, Rng(3));
    const auto a = plain.params(), b = other.params();
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) {
      const auto x = a[i].param->value().to_vector<float>(), y = b[i].param->value().to_vector<float>();
      if (x == y) continue;
      const size_t layer = a[i].name.find('.', std::string("layers.").size());
      followers[row].insert(a[i].name.substr(layer + 1));
      for (size_t k = 0; k < x.size(); ++k) ASSERT_NEAR(y[k], 4 * x[k], 1e-6) << a[i].name;
    }
  };
  for (const MixerRow& row : mixer_table()) {
    LanguageModelOptions o{.vocab = 11, .dim = 32, .layers = 2, .context = 16, .mixers = {row.make}, .has_ffn = false};
    compare(row.name, o);
    const bool is_as_published = row.name.starts_with("moa");  // uniform, by the shape of each matrix
    EXPECT_EQ(followers[row.name].empty(), is_as_published) << row.name;
    for (const std::string& name : followers[row.name])
      EXPECT_TRUE(name.ends_with("out.weight") || name.ends_with("down.weight") || name == "mixer.down") << name;
  }
  for (FfnKind kind : {FfnKind::swiglu, FfnKind::gelu, FfnKind::umoe}) {
    const std::string name = str("ffn ", static_cast<int>(kind));
    LanguageModelOptions o = test::tiny_model();
    o.ffn.kind = kind;
    if (kind == FfnKind::umoe) {
      o.mixers = {UmoeOptions{.experts = 4, .active = 1, .head_dim = 8, .hidden = 16, .query_rank = 4}};
      o.ffn.active = 2;
    }
    compare(name, o);
    EXPECT_TRUE(followers[name].contains("ffn.down.weight"));
  }
}

TEST(Init, EmbeddingStdIsOfTheTokenTableAlone) {
  for (bool is_tied : {true, false}) {
    LanguageModelOptions o = test::tiny_model(PositionKind::learned);
    o.has_tied_embedding = is_tied;
    const LanguageModel plain(o, Rng(3));
    o.embedding_std = 0.08;
    const LanguageModel other(o, Rng(3));
    const auto a = plain.params(), b = other.params();
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) {
      const auto x = a[i].param->value().to_vector<float>(), y = b[i].param->value().to_vector<float>();
      EXPECT_EQ(x != y, a[i].name == "embedding.weight") << a[i].name;
    }
  }
}

TEST(Init, DeviationsThatCannotBeAreErrors) {
  constexpr double kInf = std::numeric_limits<double>::infinity(), kNan = std::numeric_limits<double>::quiet_NaN();
  for (double bad : {0.0, -0.1, kInf, kNan}) {
    auto error = [&](auto change, const char* name) {
      LanguageModelOptions o = test::tiny_model();
      change(o);
      return error_of([&] { LanguageModel(o, Rng(1)); },
                      {str("language model: ", name, " is ", bad), "finite standard deviation above 0"});
    };
    EXPECT_EQ(error([&](auto& o) { o.std = bad; }, "std"), "");
    EXPECT_EQ(error([&](auto& o) { o.embedding_std = bad; }, "embedding_std"), "");
    EXPECT_EQ(error([&](auto& o) { o.out_std = bad; }, "out_std"), "");
  }
}

}  // namespace
}  // namespace weft
