// What studies and comparisons report, and which runs they compare.
#include <nlohmann/json.hpp>

#include "tests/study/ablate_fixture.h"
#include "trainers/study/metric.h"

namespace weft::test {
namespace {

TEST_F(Ablate, ReportsRecallLengthsAndPositions) {
  write_grid(str(kRuns, "seeds: 3 seeds: 4 seeds: 5", R"(
set: "log.diagnostics_every=5" set: "data.tokenizer={bytes{}}"
eval { length: 32 length: 64 by_position: true task: "mqar" task: "induction" rows: 16 }
compare { metric: "val/loss" metric: "task/mqar/accuracy" metric: "val/loss@64" })",
                 kArms));
  const ProcessResult result = ablate("study");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const std::string text = report("study");
  for (const char* part :
       {"Recall\n", "mqar of 32 tokens, 8 pairs", "Recall by difficulty", "Loss by length of the rows",
        "Loss by position", "16-31", "32-63", "first token", "val/loss@64: arms minus gate=none"})
    EXPECT_NE(text.find(part), std::string::npos) << part << " in " << text;
  const auto json = nlohmann::json::parse(io::read_file(path("study") + "/report.json"));
  const auto& mqar = json["recall"][0];
  EXPECT_EQ(mqar["task"], "mqar");
  EXPECT_EQ(mqar["arms"][0]["rows"], 16) << "clusters are the test rows, which all seeds have";
  // The metric of a run is the mean over the sizes of a task, whose rows have as many targets each.
  double clustered = 0, mean = 0;
  int sizes = 0;
  for (const auto& question : json["recall"])
    if (question["task"] == "mqar") clustered += question["arms"][1]["accuracy"].get<double>(), ++sizes;
  for (const auto& run : json["metrics"][1]["arms"][1]["runs"]) mean += run["value"].get<double>() / 3;
  EXPECT_EQ(sizes, 4);
  EXPECT_NEAR(clustered / sizes, mean, 1e-12);
  EXPECT_TRUE(mqar["arms"][1].contains("difference_interval"));
  ASSERT_EQ(json["lengths"][0]["losses"].size(), 2u);
  EXPECT_EQ(json["lengths"][0]["losses"][0]["tokens"], "32");
  // The validation of a run has rows of the training's length.
  EXPECT_NEAR(json["lengths"][0]["losses"][0]["loss"].get<double>(),
              json["metrics"][0]["arms"][0]["mean"].get<double>(), 1e-6);
  const std::string page = io::read_file(path("study") + "/report.html");
  for (const char* part : {"Diagnostics of gate=head", "Weight on the first token", "Loss by position"})
    EXPECT_NE(page.find(part), std::string::npos) << part;

  // The same report of the runs alone.
  std::vector<std::string> words{"compare"};
  for (const char* arm : {"gate=none", "gate=head"})
    for (const std::string& cell : io::list_folder(path("study") + "/cells"))
      if (cell.starts_with(arm)) words.push_back(path("study") + "/cells/" + cell);
  ASSERT_EQ(words.size(), 7u);
  words.insert(words.end(), {"--out", path("compared"), "--metric", "val/loss", "--metric", "task/mqar/accuracy"});
  const ProcessResult compared = run_weft(words);
  ASSERT_EQ(compared.exit_code, 0) << compared.err;
  const auto other = nlohmann::json::parse(io::read_file(path("compared") + "/report.json"));
  EXPECT_EQ(other["metrics"][0], json["metrics"][0]);
  EXPECT_EQ(other["metrics"][1], json["metrics"][1]);
  EXPECT_EQ(other["recall"], json["recall"]);
  for (const char* key : {"parameters_without_embeddings", "flops_per_token_without_output_head", "metrics"})
    EXPECT_EQ(other["arms"][1][key], json["arms"][1][key]) << key;
  EXPECT_EQ(other["curves"], json["curves"]);
  EXPECT_EQ(other["diagnostics"], json["diagnostics"]);
  EXPECT_TRUE(io::file_exists(path("compared") + "/report.html"));
  words = {"compare", words[1], words[4], words[1]};
  const ProcessResult twice = run_weft(words);
  EXPECT_EQ(twice.exit_code, 2);
  EXPECT_NE(twice.err.find("have the same config and the same seed"), std::string::npos) << twice.err;
}

TEST_F(Ablate, CompareRefusesRunsOfOtherDataOrUnfinishedOnes) {
  write("other.txt", io::read_file(path("text.txt")) + "one more line\n");
  ASSERT_EQ(run_weft(train("a", {"train.tokens=256"})).exit_code, 0);
  ASSERT_EQ(run_weft(train("b", {"train.tokens=256", "data.train.path=" + path("other.txt")})).exit_code, 0);
  ASSERT_EQ(run_weft(train("c", {"train.tokens=25600", "train.max_seconds=0.001"})).exit_code, 3);
  const ProcessResult data = run_weft({"compare", path("a"), path("b"), "--metric", "val/loss"});
  EXPECT_EQ(data.exit_code, 2);
  EXPECT_NE(data.err.find("have seen other batches: data.train"), std::string::npos) << data.err;
  const ProcessResult part = run_weft({"compare", path("a"), path("c"), "--metric", "val/loss"});
  EXPECT_EQ(part.exit_code, 2);
  EXPECT_NE(part.err.find("is not finished"), std::string::npos) << part.err;
}

// The same path, with another text in it for the second arm's runs.
TEST_F(Ablate, RunsOfAChangedTextAreNotCompared) {
  write_grid(str(kRuns, "seeds: 3", kArms));
  ASSERT_EQ(ablate("study", {"--only", "gate=none"}).exit_code, 0);
  const std::string text = io::read_file(path("text.txt"));
  write("text.txt", "k" + text.substr(1));
  const ProcessResult study = ablate("study");
  EXPECT_EQ(study.exit_code, 2) << study.err;
  for (const char* part :
       {"has seen other texts than those that are there now: ", "text.txt has ", "bytes in both, and another checksum"})
    EXPECT_NE(study.err.find(part), std::string::npos) << part << " in " << study.err;
  EXPECT_EQ(io::list_folder(path("study") + "/cells").size(), 1u) << "before anything is trained";
  ASSERT_EQ(ablate("other", {"--only", "gate=head"}).exit_code, 0);
  const std::string head = io::list_folder(path("other") + "/cells")[0];
  std::filesystem::rename(path("other") + "/cells/" + head, path("study") + "/cells/" + head);
  const std::vector<std::string> cells = io::list_folder(path("study") + "/cells");
  ASSERT_EQ(cells.size(), 2u);
  const std::string folder = path("study") + "/cells/";
  const ProcessResult compared = run_weft({"compare", folder + cells[0], folder + cells[1], "--metric", "val/loss"});
  EXPECT_EQ(compared.exit_code, 2) << compared.err;
  EXPECT_NE(compared.err.find("have seen other texts"), std::string::npos) << compared.err;
}

TEST_F(Ablate, CompareTakesAnswersOfTheLastCheckpointAndTheRunsOwnData) {
  ASSERT_EQ(run_weft(train("a", {"train.tokens=1280"})).exit_code, 0);
  ASSERT_EQ(run_weft(train("b", {"train.tokens=1280", "optim.group[1].adamw.lr=1e-3"})).exit_code, 0);
  const ProcessResult own = run_weft({"eval", path("a"), "--lengths", "16", "--json"});
  ASSERT_EQ(own.exit_code, 0) << own.err;
  ASSERT_EQ(run_weft({"eval", path("a"), "--lengths", "16", "--by-position"}).exit_code, 0) << "the same answer";
  ASSERT_EQ(run_weft({"eval", path("a@5"), "--lengths", "16"}).exit_code, 0);
  ASSERT_EQ(run_weft({"eval", path("a"), "data.val.fraction=0.3", "--lengths", "16"}).exit_code, 0);
  const std::vector<std::string> words{"compare", path("a"), path("b"), "--metric", "val/loss@16", "--json"};
  const ProcessResult compared = run_weft(words);
  ASSERT_EQ(compared.exit_code, 0) << compared.err;
  const double loss = nlohmann::json::parse(own.out)["validation"][0]["loss"];
  EXPECT_EQ(nlohmann::json::parse(compared.out)["metrics"][0]["arms"][0]["runs"][0]["value"], loss);
  write("a/eval/step-00000010-ffffffff.json", R"({"step": 10, "validation": [{"length": 16, "loss": 9.0}]})");
  const ProcessResult twice = run_weft(words);
  EXPECT_EQ(twice.exit_code, 2) << twice.err;
  EXPECT_NE(twice.err.find("have other answers to one question: length 16"), std::string::npos) << twice.err;
}

TEST_F(Ablate, ClaimsOfAStudyThatWasRun) {
  write_grid(str(kRuns, "seeds: 3 seeds: 4 seeds: 5 set: \"log.diagnostics_every=10\" name: \"gates\"", kArms, R"(
claim { title: "Gates keep the loss" text: "It changes by little." part: gates paper { id: "2505.06708" } metric: "val/loss"
  contrast { arm: "gate=head" baseline: "gate=none" } expect: equal effect: 1 }
claim { title: "Gates calm the stream" text: "A mean over keys." part: gates paper { id: "2505.06708" } metric: "*.max_activation"
  contrast { arm: "gate=head" baseline: "gate=none" } expect: equal effect: 0.5 relative: true }
)"));
  ASSERT_EQ(ablate("runs/gates").exit_code, 0);
  const ProcessResult page = run_weft({"claims", path("grid.txtpb"), "--runs", path("runs")});
  ASSERT_EQ(page.exit_code, 0) << page.err;
  for (const char* part : {"| Gates keep the loss | gates | 2505.06708 | reproduced |", "| `*.max_activation` |",
                           "6 runs, 3 seeds of 2 arms", "max_activation` equal within 50 %"})
    EXPECT_NE(page.out.find(part), std::string::npos) << part << " on " << page.out;
  EXPECT_EQ(run_weft({"claims", path("grid.txtpb"), "--runs", path("runs")}).out, page.out);
  EXPECT_EQ(
      nlohmann::json::parse(run_weft({"claims", path("grid.txtpb"), "--runs", path("runs"), "--json"}).out).size(), 2u);
  // A folder that is not there is no reason for a page on which nothing was run, but where numbers are kept apart.
  for (const char* nosuch : {"nosuch", "grid.txtpb"}) {
    const ProcessResult missing = run_weft({"claims", path("grid.txtpb"), "--runs", path(nosuch)});
    EXPECT_EQ(missing.exit_code, 2) << missing.out;
    EXPECT_EQ(missing.out, "");
    EXPECT_NE(missing.err.find(str("--runs ", path(nosuch), " is no folder")), std::string::npos) << missing.err;
  }
  ASSERT_EQ(run_weft({"claims", path("grid.txtpb"), "--runs", path("runs"), "--keep", path("kept")}).exit_code, 0);
  const ProcessResult kept = run_weft({"claims", path("grid.txtpb"), "--runs", path("nosuch"), "--keep", path("kept")});
  EXPECT_EQ(kept.exit_code, 0) << kept.err;
  EXPECT_NE(kept.out.find("| gates | 2505.06708 | reproduced |"), std::string::npos) << kept.out;
  write_grid(str(kRuns, "seeds: 3", kArms));
  EXPECT_NE(run_weft({"claims", path("grid.txtpb")}).err.find("has no claims"), std::string::npos);
}

TEST_F(Ablate, ALossOfALengthIsAskedForWithoutEval) {
  const std::string tune =
      "tune { path: \"optim.group[1].adamw.lr\" value: \"1e-4\" value: \"3e-4\" value: \"9e-4\" seeds: 8 widen: 0 ";
  write_grid(str(kRuns, "seeds: 3 compare { metric: \"val/loss@64\" } ", tune, "metric: \"val/loss@16\" }", kArms));
  const ProcessResult result = ablate("study");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const auto json = nlohmann::json::parse(io::read_file(path("study") + "/report.json"));
  EXPECT_EQ(json["metrics"][0]["metric"], "val/loss@64");
  for (const auto& arm : json["metrics"][0]["arms"]) EXPECT_EQ(arm["count"], 1);
  EXPECT_EQ(json["tuning"]["metric"], "val/loss@16");
  for (const auto& arm : json["tuning"]["arms"]) EXPECT_TRUE(arm["tries"][2]["mean"].is_number());
}

// The arm's other rate makes every try diverge.
TEST_F(Ablate, AnArmThatLosesARunAtEveryTunedValueIsLostAloneAndTheOthersGoOn) {
  const std::string tune = R"(
tune { path: "optim.group[1].adamw.lr" value: "1e-4" value: "3e-4" value: "9e-4" seeds: 8 widen: 0 }
axis { name: "rate" arm { name: "low" } arm { name: "high" set: "optim.skip=" set: "optim.group[0].muon.lr=1e30" } } )";
  write_grid(str(kRuns, "seeds: 3 seeds: 4 seeds: 5", tune));
  const ProcessResult result = ablate("study");
  EXPECT_EQ(result.exit_code, 1) << result.err;
  EXPECT_NE(result.out.find("3 of 6 runs complete, 3 lost"), std::string::npos) << result.out << result.err;
  const auto json = nlohmann::json::parse(io::read_file(path("study") + "/report.json"));
  const auto& tuned = json["tuning"]["arms"];
  EXPECT_TRUE(tuned[0]["best"].is_string());
  EXPECT_TRUE(tuned[1]["best"].is_null());
  EXPECT_FALSE(tuned[1]["is_edge"]);
  for (const auto& one : tuned[1]["tries"]) EXPECT_EQ(one["lost"], 1);
  const auto& arms = json["metrics"][0]["arms"];
  EXPECT_EQ(arms[0]["count"], 3);
  EXPECT_EQ(arms[1]["lost"], 3);
  EXPECT_EQ(arms[1]["not_run"], 0);
  ASSERT_EQ(json["lost"].size(), 3u);
  for (const auto& lost : json["lost"]) {
    const std::string run = lost["run"], why = lost["why"];
    EXPECT_TRUE(run.starts_with("rate=high,")) << run;
    for (const char* part : {"failed: not run: every value of optim.group[1].adamw.lr lost a run",
                             "rate=high,tune=1e-4,seed=8-", "diverged: exit code 5: "})
      EXPECT_NE(why.find(part), std::string::npos) << part << " in " << why;
  }
  EXPECT_NE(result.out.find("Every value lost a run of rate=high"), std::string::npos) << result.out;
  EXPECT_NE(result.err.find("tuning: rate=high is lost"), std::string::npos) << result.err;
  for (const std::string& cell : io::list_folder(path("study") + "/cells")) EXPECT_TRUE(cell.starts_with("rate=low"));
  const ProcessResult alone = run_weft({"ablate", "report", path("study")});
  EXPECT_EQ(alone.exit_code, 1) << alone.err;
  EXPECT_EQ(alone.out, result.out);
  const ProcessResult again = ablate("study");
  EXPECT_EQ(again.exit_code, 1) << again.err;
  EXPECT_EQ(again.out, result.out);

  write_grid(str(kRuns, "seeds: 3", tune, "set: \"optim.skip=\" set: \"optim.group[0].muon.lr=1e30\""));
  const ProcessResult none = ablate("none");
  EXPECT_EQ(none.exit_code, 1) << none.err;
  EXPECT_NE(none.err.find("lost a run of every arm: rate=low,tune=1e-4"), std::string::npos) << none.err;
  EXPECT_FALSE(io::file_exists(path("none") + "/cells"));
}

// A layer that is not there, or a mixer that reports nothing of that name: the runs are made, and so is the report.
TEST_F(Ablate, AMetricThatNoRunHasIsAnErrorBesideTheReport) {
  const std::string metric = "model.layers.7.mixer.entropy/0";
  write_grid(str(kRuns, "seeds: 3", kArms,
                 "set: \"log.diagnostics_every=1\" set: \"log.analysis_every=5\" "
                 "compare { metric: \"val/loss\" metric: \"",
                 metric, "\" }"));
  for (const ProcessResult& result : {ablate("study"), run_weft({"ablate", "report", path("study")})}) {
    EXPECT_EQ(result.exit_code, 2) << result.err;
    EXPECT_NE(
        result.err.find(str("grid.txtpb: compare: metric ", metric, ": no run has it. Did you mean 'model.layers.")),
        std::string::npos)
        << result.err;
    EXPECT_NE(result.out.find("2 of 2 runs complete"), std::string::npos) << result.out;
    EXPECT_EQ(result.out, report("study"));
  }
  // What a run has is never refused.
  for (const std::string& name : io::list_folder(path("study") + "/results")) {
    const auto stored = nlohmann::json::parse(io::read_file(path("study") + "/results/" + name));
    EXPECT_TRUE(stored["metrics"].contains("val/loss"));
    for (const auto& [key, value] : stored["metrics"].items()) EXPECT_NO_THROW(study::check_key("", key)) << key;
  }
}

}  // namespace
}  // namespace weft::test
