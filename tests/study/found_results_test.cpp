// Which results of a folder a report takes, where the configs of its cells have other checksums than the runs had.
#include <nlohmann/json.hpp>

#include "tests/study/study_fixture.h"

namespace weft::study {
namespace {

using Json = nlohmann::ordered_json;
using FoundResults = test::StudyFixture;

// A base that was changed behind the runs gives the cells other checksums, as other paths and a younger version do.
TEST_F(FoundResults, ResultsOfAnotherConfigAreNotTheStudys) {
  make(str(kSeeds, kArms));
  const std::vector<Cell> meant = cells;
  io::make_folders(study_folder + "/results");
  const auto other = [&](size_t cell) {
    return cells[cell].folder.substr(0, cells[cell].folder.size() - 8) + "00000000";
  };
  const auto store = [&](size_t cell, const config::Experiment& experiment) {
    io::make_folders(study_folder + "/cells/" + other(cell));
    io::write_file_atomically(study_folder + "/cells/" + other(cell) + "/config.txtpb", config::to_text(experiment));
  };
  for (size_t i = 0; i < cells.size(); ++i)
    write("study/results/" + other(i) + ".json", R"({"state": "complete", "problem": "", "metrics": {"val/loss": 3}})");
  config::Experiment moved = cells[0].experiment, older = cells[1].experiment, longer = cells[2].experiment,
                     renamed = cells[3].experiment;
  moved.mutable_data()->mutable_train(0)->set_path("/elsewhere/text.txt");
  moved.set_name("its own");
  older.mutable_train()->clear_compute();
  longer.mutable_train()->set_tokens(1000 * longer.train().tokens());
  renamed.mutable_data()->mutable_train(0)->set_path("/elsewhere/another.txt");
  store(0, moved), store(1, older), store(2, longer), store(3, renamed);
  results = found_results(study_folder, cells);
  for (size_t i = 0; i < cells.size(); ++i) {
    EXPECT_EQ(results[i].has_value(), i < 2) << i;
    EXPECT_EQ(cells[i].meant, i < 2 ? meant[i].folder : "") << i;
    EXPECT_EQ(cells[i].folder, i < 2 ? other(i) : meant[i].folder) << i;
  }
  const StudyReport report = report_of(data());
  EXPECT_NE(report.text.find("2 of 9 runs complete, 7 not run yet"), std::string::npos) << report.text;
  EXPECT_NE(report.text.find("taken over: " + cells[0].folder + ", which is " + meant[0].folder), std::string::npos)
      << report.text;
  const Json taken = Json::parse(report.json)["taken_over"];
  ASSERT_EQ(taken.size(), 2u);
  EXPECT_EQ(taken[1]["run"], cells[1].folder);
  EXPECT_EQ(taken[1]["is"], meant[1].folder);
}

TEST_F(FoundResults, TriesOfAnotherConfigAreNotTheTunings) {
  make(str(kSeeds, kArms,
           R"(tune { path: "optim.group[1].adamw.lr" value: "1e-3" value: "2e-3" value: "4e-3" seeds: 8 widen: 0 })"));
  const CellRuns how{.program = {},
                     .folder = study_folder,
                     .runs_nothing = true,
                     .is_stopping = [] { return false; },
                     .say = [](std::string_view) {}};
  const auto store = [&](int64_t more_tokens) {
    io::make_folders(study_folder + "/tuning/results");
    for (const Combination& arm : arms.all)
      for (const std::string& value : grid.tune->values) {
        config::Experiment tried =
            config_of(grid, arm, {"data.val.half=1", str(grid.tune->path, "=", value)}, {}).experiment;
        tried.set_seed(8);
        tried.mutable_train()->set_tokens(tried.train().tokens() + more_tokens);
        const std::string name = str(arm.name, ",tune=", value, ",seed=8-00000000");
        io::make_folders(study_folder + "/tuning/cells/" + name);
        write("study/tuning/cells/" + name + "/config.txtpb", config::to_text(tried));
        write("study/tuning/results/" + name + ".json",
              R"({"state": "complete", "problem": "", "metrics": {"val/loss": 3}})");
      }
  };
  store(128);
  Arms tuned = arms;
  EXPECT_FALSE(tune_arms(grid, tuned, how, {})) << "tries of another length";
  store(0);
  tuning = tune_arms(grid, tuned, how, {});
  ASSERT_TRUE(tuning);
  set("val/loss", [](double arm, double seed) { return 3 + arm + seed; });
  EXPECT_EQ(tuning->taken_over.size(), 9u);
  EXPECT_NE(report_of(data()).text.find(
                "taken over: gate=none,tune=1e-3,seed=8-00000000, which is gate=none,tune=1e-3,seed=8-"),
            std::string::npos);
}

}  // namespace
}  // namespace weft::study
