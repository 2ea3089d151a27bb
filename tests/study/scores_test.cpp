// What `weft eval` answers, as a study reads it.
#include "trainers/study/scores.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/errors.h"

namespace weft::study {
namespace {

// JSON has no NaN: a model whose loss is none answers null.
TEST(Scores, NullIsNaN) {
  const Scores scores = scores_of({R"({"validation": [
{"length": 32, "loss": null, "targets": 31, "by_position": [{"from": 0, "to": 0, "loss": null}, {"from": 1, "to": 1, "loss": 2.5}]},
{"length": 64, "targets": 0}, {"length": 128, "loss": 3.5}]})",
                                   R"({"tasks": [
{"task": "mqar", "length": 64, "pairs": 8, "rows": 2, "accuracy": null, "loss": null, "groups": [{"group": "near", "accuracy": null}]},
{"task": "copy", "length": 64, "rows": 2, "accuracy": 0.5, "loss": null}]})"},
                                  "a run");
  ASSERT_EQ(scores.lengths.size(), 3u);
  EXPECT_TRUE(std::isnan(scores.lengths[0].loss));
  EXPECT_TRUE(std::isnan(scores.lengths[0].positions[0].loss));
  EXPECT_EQ(scores.lengths[0].positions[1].loss, 2.5);
  EXPECT_TRUE(std::isnan(scores.lengths[1].loss));
  EXPECT_EQ(scores.lengths[2].loss, 3.5);
  ASSERT_EQ(scores.tasks.size(), 2u);
  EXPECT_TRUE(std::isnan(scores.tasks[0].accuracy) && std::isnan(scores.tasks[0].loss));
  EXPECT_TRUE(std::isnan(scores.tasks[0].groups[0].second));
  EXPECT_EQ(scores.tasks[1].accuracy, 0.5);
  std::map<std::string, double> metrics;
  add_metrics(scores, metrics);
  EXPECT_TRUE(std::isnan(metrics.at("val/loss@32")));
  EXPECT_EQ(metrics.at("val/loss@128"), 3.5);
  EXPECT_TRUE(std::isnan(metrics.at("task/mqar/accuracy")));
  EXPECT_EQ(metrics.at("task/copy/accuracy"), 0.5);
  EXPECT_TRUE(std::isnan(metrics.at("task/mqar/accuracy/8"))) << "of the rows with 8 pairs";
  EXPECT_EQ(test::error_of([] { scores_of({R"({"validation": [{"length": 32, "loss": "much"}]})"}, "a run"); },
                           {"scores of a run", "type must be number"}),
            "");
}

TEST(Scores, RowsMayHaveTwoFieldsAlone) {
  const Scores scores =
      scores_of({R"({"tasks": [{"task": "a", "length": 1}, {"task": "b", "length": 2, "rows": 4}]})"}, "a run");
  ASSERT_EQ(scores.tasks.size(), 2u);
  for (const Scores::Task& task : scores.tasks) EXPECT_EQ(task.size, "") << task.name;
  EXPECT_EQ(scores.tasks[1].rows, 4);
}

TEST(Scores, QuestionsAreThoseThatAMetricIsTheMeanOver) {
  const Scores scores = scores_of({R"({"tasks": [
{"task": "mqar", "length": 64, "pairs": 16, "rows": 2, "accuracy": 0.5},
{"task": "mqar", "length": 32, "pairs": 8, "rows": 2, "accuracy": 0.25},
{"task": "copy", "length": 64, "rows": 3, "accuracy": 0.125}]})"},
                                  "a run");
  using Texts = std::vector<std::string>;
  const std::map<std::string, Texts> questions = questions_of(scores);
  std::map<std::string, double> metrics;
  add_metrics(scores, metrics);
  ASSERT_EQ(questions.size(), metrics.size());
  for (const auto& [key, value] : metrics) EXPECT_TRUE(questions.contains(key)) << key;
  EXPECT_EQ(questions.at("task/mqar/accuracy"), (Texts{"32 tokens, 8 pairs, 2 rows", "64 tokens, 16 pairs, 2 rows"}));
  EXPECT_EQ(questions.at("task/mqar/accuracy@32"), (Texts{"32 tokens, 8 pairs, 2 rows"}));
  EXPECT_EQ(questions.at("task/mqar/accuracy/16"), (Texts{"64 tokens, 16 pairs, 2 rows"}));
  EXPECT_EQ(questions.at("task/copy/accuracy"), (Texts{"64 tokens, 3 rows"}));
  EXPECT_EQ(metrics.at("task/mqar/accuracy"), 0.375);
}

}  // namespace
}  // namespace weft::study
