// Which numbers of finished runs are compared: runs pair by seed, and means are over the same questions.
#include "trainers/study/comparison.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/support/errors.h"
#include "tests/trainers/run_fixture.h"
#include "trainers/study/study_report.h"
#include "weft/core/error.h"
#include "weft/io/metrics.h"

namespace weft::study {
namespace {

using test::error_of;

class Comparisons : public test::RunFixture {
 protected:
  // A finished run of the tiny config, as its folder is read.
  std::string run(const std::string& name, int64_t seed, double loss, std::vector<std::string> overrides = {}) {
    overrides.push_back(str("seed=", seed));
    io::make_folders(path(name) + "/checkpoints/step-00000040");
    write(name + "/config.txtpb", config::to_text(config::load(path("tiny.txtpb"), overrides).experiment));
    write(name + "/metrics.jsonl", io::to_json({.step = 40, .kind = "val", .values = {{"val/loss", loss}}}) + "\n");
    return path(name);
  }
  void answer(const std::string& name, const std::string& json, const std::string& file = "step-00000040") {
    io::make_folders(path(name) + "/eval");
    write(name + "/eval/" + file + ".json", json);
  }
  // Two arms with a seed each.
  std::vector<std::string> two() { return {run("a", 1, 3.0), run("b", 1, 3.5, {"optim.group[1].adamw.lr=1e-3"})}; }
  StudyReport report(const Comparison& c) {
    return report_of({.folder = folder, .grid = c.grid, .arms = c.arms, .cells = c.cells, .results = c.results});
  }
  static std::string tasks(const std::string& rows) { return R"({"step": 40, "tasks": [)" + rows + "]}"; }

  std::string folder = {};
};

TEST_F(Comparisons, DamagedAnswersAreOneClearError) {
  const std::vector<std::string> runs = two();
  for (const char* bad :
       {"[1]", "{\"step\": \"x\"}", "{\"step\": 40, \"tasks\": [4]}", "{\"step\": 40, \"tasks\": {\"a\": 1}}",
        "{\"step\": 40, \"tasks\": [{\"task\": \"a\"}]}", "{\"step\": 40, \"tasks\": [{\"task\": 1, \"length\": 1}]}",
        "{\"step\": 40, \"tasks\": [{\"length\": 1, \"task\": \"a\", \"pairs\": \"x\"}]}",
        "{\"step\": 40, \"validation\": [{\"length\": \"1\"}]}", "{\"step\": 40, \"arguments\": [4]}",
        "{\"step\": 40"}) {
    answer("a", bad);
    EXPECT_EQ(error_of([&] { compare_runs(runs, {}, {}); },
                       {"eval/step-00000040.json: is not what weft eval writes", "evaluate the run again"}),
              "")
        << bad;
  }
  // Two fields, and no more.
  answer("a", tasks(R"({"task": "a", "length": 1})"));
  const Comparison c = compare_runs(runs, {}, {});
  EXPECT_TRUE(std::isnan(c.results[0]->metrics.at("task/a/accuracy")));
  for (const auto& [bad, says] :
       {std::pair(R"({"task": "a", "length": 8, "rows": 2, "accuracy": 1, "row_hits": [1], "row_targets": [1, 1]})",
                  "a has the hits of 1 rows and the targets of 2"),
        std::pair(R"({"task": "a", "length": 8, "rows": 1, "accuracy": 1, "row_hits": [2], "row_targets": [1]})",
                  "row 0 of a has 2 hits of 1 targets in 8 tokens"),
        std::pair(R"({"task": "a", "length": 8, "rows": 1, "row_hits": [0], "row_targets": [4000000000000]})",
                  "row 0 of a has 0 hits of 4000000000000 targets in 8 tokens"),
        std::pair(R"({"task": "a", "length": 8, "rows": 1, "row_hits": [-1], "row_targets": [1]})",
                  "row 0 of a has -1 hits of 1 targets in 8 tokens"),
        std::pair(
            R"({"task": "a", "length": 4000000000000, "rows": 1, "row_hits": [0], "row_targets": [4000000000000]})",
            "a has rows of 4000000000000 tokens"),
        std::pair(R"({"task": "a", "length": 0, "rows": 1, "row_hits": [0], "row_targets": [0]})",
                  "a has rows of 0 tokens"),
        std::pair(R"({"task": "a", "length": 2147483647, "rows": 1, "row_hits": [0], "row_targets": [2147483647]})",
                  "a has more than 134217728 targets")}) {
    answer("a", tasks(bad));
    EXPECT_EQ(error_of([&] { compare_runs(runs, {}, {}); }, {"scores of " + runs[0], says}), "") << bad;
  }
}

TEST_F(Comparisons, MeansAreOfTheSameQuestions) {
  const std::vector<std::string> runs = two();
  const std::string of_64 = R"({"task": "mqar", "length": 64, "pairs": 8, "rows": 16, "accuracy": 0.5})",
                    of_128 = R"({"task": "mqar", "length": 128, "pairs": 8, "rows": 16, "accuracy": 0.25})",
                    more_rows = R"({"task": "mqar", "length": 64, "pairs": 8, "rows": 64, "accuracy": 0.75})",
                    copy = R"({"task": "copy", "length": 64, "rows": 16, "accuracy": 1})";
  for (const auto& [second, says] :
       {std::pair(of_64 + ", " + of_128, "128 tokens, 8 pairs, 16 rows; 64 tokens, 8 pairs, 16 rows in the other"),
        std::pair(more_rows, "64 tokens, 8 pairs, 64 rows in the other")}) {
    answer("a", tasks(of_64 + ", " + copy));
    answer("b", tasks(second + ", " + copy));
    for (const char* metric : {"task/mqar/accuracy", "task/*/accuracy"})
      EXPECT_EQ(error_of([&] { compare_runs(runs, {metric}, {}); },
                         {runs[0] + " and " + runs[1] + " were asked other questions for task/mqar/accuracy",
                          "64 tokens, 8 pairs, 16 rows in one", says, "--rows"}),
                "");
    const Comparison c = compare_runs(runs, {}, {});
    for (const auto& result : c.results) {
      EXPECT_FALSE(result->metrics.contains("task/mqar/accuracy"));
      EXPECT_EQ(result->metrics.at("task/copy/accuracy"), 1);
    }
    EXPECT_EQ(report(c).text.find("task/mqar/accuracy"), std::string::npos);
  }
  answer("b", tasks(of_64));
  // An override makes another run of it.
  for (const char* override : {"train.compute=bf16", "data.val.fraction=0.3", "model.context=64"}) {
    answer("b", str(R"({"step": 40, "arguments": [")", override, R"("], "tasks": [)", more_rows, "]}"),
           "step-00000040-ffffffff");
    const Comparison c = compare_runs(runs, {"task/mqar/accuracy"}, {});
    EXPECT_EQ(c.results[1]->metrics.at("task/mqar/accuracy"), 0.5) << override;
  }
}

TEST_F(Comparisons, RunsWithoutACommonSeedSayNothing) {
  std::vector<std::string> runs;
  for (int64_t seed : {1, 2, 3}) runs.push_back(run(str("a", seed), seed, 3.0 + 0.01 * double(seed)));
  for (int64_t seed : {4, 5, 6})
    runs.push_back(run(str("b", seed), seed, 2.0 + 0.02 * double(seed), {"optim.group[1].adamw.lr=1e-3"}));
  const Comparison c = compare_runs(runs, {}, {});
  const StudyReport apart = report(c);
  EXPECT_NE(apart.conclusion.find("No seed has a run of tiny and one of b4, so nothing says how they differ."),
            std::string::npos)
      << apart.conclusion;
  for (const char* word : {"better", "worse"})
    EXPECT_EQ(apart.conclusion.find(word), std::string::npos) << apart.conclusion;
  for (const auto& row : apart.tables[1].rows) EXPECT_EQ(row.back(), "3 of 3") << "none of them is lost";
  const auto json = nlohmann::json::parse(apart.json);
  const auto& other = json["metrics"][0]["arms"][1];
  EXPECT_EQ(other["lost"], 0);
  EXPECT_EQ(other["not_run"], 0);
  EXPECT_EQ(other["difference"]["lost"], 0);
  EXPECT_EQ(other["difference"]["not_run"], 6) << "no seed has both";
  for (const auto& difference : json["differences_of_configs"]) EXPECT_NE(difference["field"], "seed");
  // Three in common: pairs are of one seed, whatever the order of the runs.
  for (int64_t seed : {3, 1, 2})
    runs.push_back(run(str("b", seed), seed, 2.0 + 0.01 * double(seed) + 1e-6 * double(seed * seed),
                       {"optim.group[1].adamw.lr=1e-3"}));
  const auto paired = nlohmann::json::parse(report(compare_runs(runs, {}, {})).json);
  const auto& difference = paired["metrics"][0]["arms"][1]["difference"];
  EXPECT_EQ(difference["pairs"], 3);
  EXPECT_NEAR(difference["mean"].get<double>(), -1, 1e-4);
  EXPECT_LT(difference["deviation"].get<double>(), 1e-4);
}

TEST_F(Comparisons, ACheckpointIsNoRun) {
  const std::vector<std::string> runs = two();
  for (const char* part : {"@40", "/checkpoints/step-00000040"}) {
    if (part[0] == '/') write(str("a", part, "/manifest"), "");
    EXPECT_EQ(error_of(
                  [&] {
                    compare_runs({runs[0] + part, runs[1]}, {}, {});
                  },
                  {runs[0] + part + ": names one checkpoint", "Name the run: " + runs[0]}),
              "");
  }
}

TEST_F(Comparisons, FoldersMayHaveAnyName) {
  const std::string name = "\x1b[31mred\xff\n";
  std::vector<std::string> runs{run("a", 1, 3.0)};
  run("b", 1, 3.5, {"optim.group[1].adamw.lr=1e-3"});
  std::filesystem::rename(path("b"), path(name));
  runs.push_back(path(name));
  const Comparison c = compare_runs(runs, {}, {});
  const StudyReport hostile = report(c);
  EXPECT_EQ(c.arms.all[1].name.find_first_of("\x1b\n"), std::string::npos);
  EXPECT_NE(c.arms.all[1].name.find("?[31mred"), std::string::npos) << c.arms.all[1].name;
  EXPECT_EQ(nlohmann::json::parse(hostile.json)["arms"][1]["arm"], c.arms.all[1].name);
}

}  // namespace
}  // namespace weft::study
