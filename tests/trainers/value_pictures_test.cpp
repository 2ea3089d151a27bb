// Names of diagnostics and analyses as pictures and tables.
#include "trainers/run/value_pictures.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/trainers/config_text.h"
#include "trainers/run/facts.h"

namespace weft::train {
namespace {

using config::test::expect_parts;

std::vector<io::MetricsRecord> records(int layers, int heads) {
  std::vector<io::MetricsRecord> all;
  for (int step : {10, 20, 30}) {
    io::MetricsRecord record{.step = step, .kind = "diagnostics"};
    for (int l = 0; l < layers; ++l) {
      for (int h = 0; h < heads; ++h)
        record.values.emplace_back(str("model.layers.", l, ".mixer.entropy/", h), step + l + 0.1 * h);
      record.values.emplace_back(str("model.layers.", l, ".max_activation"), 1.0);
    }
    record.values.emplace_back("model.residual.routers.3.weight/0", 0.5);
    all.push_back(std::move(record));
    all.push_back({.step = step, .kind = "train", .values = {{"train/loss", 1.0}}});
  }
  return all;
}

std::vector<std::string> titles(const io::ReportSection& section) {
  std::vector<std::string> out;
  for (const io::Picture& picture : section.pictures)
    out.push_back(std::visit([](const auto& p) { return p.title; }, picture));
  return out;
}

TEST(ValuePictures, EachKindHasItsPicturePerLayerAndHead) {
  auto sections = value_sections(records(2, 2));
  ASSERT_EQ(sections.size(), 1u) << "no section without values";
  EXPECT_EQ(titles(sections[0]),
            (std::vector<std::string>{"Entropy of attention weights (mixer.entropy)",
                                      "Largest number of the state (max_activation)",
                                      "Depth weights of the residual stream (residual.routers.weight)"}));
  const auto& plot = std::get<io::Plot>(sections[0].pictures[0]);
  ASSERT_EQ(plot.series.size(), 4u);
  EXPECT_EQ(plot.series[3].name, "layer 1, head 1");
  EXPECT_EQ(plot.series[3].points, (std::vector<std::pair<double, double>>{{10, 11.1}, {20, 21.1}, {30, 31.1}}));
  EXPECT_EQ(plot.y_label, "nats");
  EXPECT_EQ(std::get<io::Plot>(sections[0].pictures[2]).series[0].name, "sublayer 3, source 0");
}

TEST(ValuePictures, ManyHeadsBecomeAMapAndTheMeansOfLayers) {
  auto section = value_sections(records(6, 12)).at(0);
  const auto& means = std::get<io::Plot>(section.pictures[0]);
  ASSERT_EQ(means.series.size(), 6u);
  EXPECT_NEAR(means.series[1].points[0].second, 10 + 1 + 0.55, 1e-12);
  const auto& map = std::get<io::HeatMap>(section.pictures[1]);
  EXPECT_EQ(map.x, (std::vector<double>{10, 20, 30}));
  ASSERT_EQ(map.rows.size(), 72u);
  EXPECT_EQ(map.rows[12 + 10], "layer 1, head 10") << "numbers in order, not letters";
  EXPECT_NEAR(map.values[12 + 10][2], 32, 1e-12);
}

TEST(ValuePictures, AnAnalysisIsTablesOfLayersAndHeads) {
  NamedValues values;
  for (int l = 0; l < 3; ++l)
    for (int h = 0; h < 2; ++h)
      values.emplace_back(str("model.layers.", l, ".mixer.head_importance/", h), 0.25 * (l + h));
  for (int p = 0; p <= 100; p += 10) values.emplace_back(str("pruned_loss/", p), 2 + p / 100.0);
  values.emplace_back("model.embedding.rank_residual", 0.9);
  values.emplace_back("model.layers.0.state.rank_residual", 0.8);
  values.emplace_back("secondary_sinks", 0);
  for (int t = 0; t < 64; ++t) values.emplace_back(str("rollout/", t), t == 5 ? 0.5 : 0.001 * t);
  expect_parts(value_tables(values),
               {"Importance of heads (mixer.head_importance)\n  layer \\ head", "  2                  0.5      0.75\n",
                "Loss without the least important heads (pruned_loss)", "% of heads", "States behind the layers",
                "embedding", "the largest 8 of 64:  token 5: 0.5  token 63: 0.063", "secondary_sinks"});
  auto pictures = value_pictures(values);
  ASSERT_EQ(pictures.size(), 4u) << "what is one number is no picture";
  EXPECT_EQ(std::get<io::HeatMap>(pictures[0]).rows.size(), 3u);
  EXPECT_EQ(std::get<io::Plot>(pictures[1]).series[0].points.back(), (std::pair<double, double>{100, 3}));
}

TEST(ValuePictures, LayersLeftOutOfRolloutAreNamedInWords) {
  const NamedValues values{{"rollout/0", 0.25},
                           {"rollout/1", 0.75},
                           {"model.layers.1.left_out_of_rollout", 1},
                           {"model.layers.12.left_out_of_rollout", 1}};
  const std::string text = value_tables(values);
  expect_parts(text, {"Rollout and flow leave out layers 1, 12: their mixers show no weights\n"});
  EXPECT_EQ(text.find("left_out_of_rollout"), std::string::npos);
  EXPECT_EQ(value_pictures(values).size(), 1u);
  EXPECT_EQ(value_tables({values[0], values[1]}).find("leave out"), std::string::npos);
}

TEST(ValuePictures, LossesOverLengthAndPosition) {
  const std::vector<LengthLosses> lengths = {
      {.length = 64, .loss = 3, .standard_error = 0.25, .by_seen = {{0, 4}, {1, 3.5}, {2.5, 2}}},
      {.length = 16, .loss = 2, .standard_error = 0.5, .by_seen = {{0, 4}}},
      {.length = 32, .loss = NAN}};
  const auto pictures = loss_pictures(lengths);
  ASSERT_EQ(pictures.size(), 2u);
  const auto& by_length = std::get<io::Plot>(pictures[0]);
  using Points = std::vector<std::pair<double, double>>;
  EXPECT_EQ(by_length.series[0].points, (Points{{16, 2}, {64, 3}}));
  EXPECT_EQ(by_length.series[0].band, (Points{{1.5, 2.5}, {2.75, 3.25}}));
  const auto& by_seen = std::get<io::Plot>(pictures[1]);
  ASSERT_EQ(by_seen.series.size(), 1u) << "one place is no curve";
  EXPECT_EQ(by_seen.series[0].name, "length 64");
  EXPECT_EQ(by_seen.series[0].points, lengths[0].by_seen);
  EXPECT_TRUE(loss_pictures({{.length = 16, .loss = 2}}).empty()) << "one length is no curve";
  EXPECT_TRUE(loss_pictures({}).empty());
}

TEST(RunFacts, SayMixerSeedBuildAndMachine) {
  config::Loaded loaded = config::test::load_string(
      config::test::kTwoMixers, {"seed=7", "optim.group+={match:\"*.weight\" rank:2 muon{}}", "optim.group+={}"});
  Facts facts = run_facts(loaded.experiment,
                          "version: \"1.2\" compiler: \"GNU 12\" build: \"release\" processor: \"CPU\" threads: 2 "
                          "git: \"abc-dirty\" commit: \"def\" a_younger_field: 3");
  auto value = [&](const std::string& name) {
    for (const auto& [key, text] : facts)
      if (key == name) return text;
    return std::string("missing");
  };
  EXPECT_EQ(
      value("mixer"),
      "0: softmax { heads: 4 kv_heads: 4 head_dim: 16 window: 8 }; 1: softmax { heads: 4 kv_heads: 2 head_dim: 16 }; "
      "pattern 0 0 0 1");
  EXPECT_EQ(value("seed"), "7");
  EXPECT_EQ(value("optimiser"), "muon: *.weight, 2 dimensions; adamw: all others");
  EXPECT_EQ(value("build"), "weft 1.2, release build, GNU 12, commit def");
  EXPECT_EQ(value("working directory"), "commit abc-dirty");
  expect_parts(value("machine"), {"CPU", "2 threads"});
  expect_parts(value("model"), {"dim 64, 4 layers, context 32", "rope", "swiglu", "standard"});
}

}  // namespace
}  // namespace weft::train
