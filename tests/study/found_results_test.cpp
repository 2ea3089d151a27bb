// Which results of a folder a report takes, where the configs of its cells have other checksums than the runs had.
#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/study/study_fixture.h"
#include "tests/support/errors.h"

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

// A word that is none of ours would else count as a number or as a lost run.
TEST_F(FoundResults, DamagedResultsAreRefusedWithTheirFile) {
  make(str(kSeeds, kArms));
  io::make_folders(study_folder + "/results");
  const std::string file = "study/results/" + cells[0].folder + ".json";
  const auto result = [](const std::string& state, const std::string& loss, const std::string& more = "") {
    return R"({"state": )" + state + R"(, "problem": "", "metrics": {"val/loss": )" + loss + "}" + more + "}";
  };
  const std::string sound = R"("complete")";
  for (const std::string& text :
       {result(sound, R"("abc")"), result(sound, R"("")"), result(sound, R"("3.0")"), result(sound, R"("NaN")"),
        result(sound, "true"), result(sound, "[3]"), result(sound, "{}"), result(sound, "1e999"),
        result(R"("complet")", "3"), result(R"("")", "3"), result("1", "3"), result("null", "3"),
        result(sound, "3", R"(, "asked": 3)"), result(sound, "3", R"(, "answers": "a")"),
        result(sound, "3", R"(, "answers": [3])"), std::string("[]"), std::string(""), std::string("{}")}) {
    write(file, text);
    EXPECT_EQ(test::error_of([&] { found_results(study_folder, cells); },
                             {file, ": is not the result of a cell", "remove the file"}),
              "")
        << text;
  }
  const auto loss_of = [&](const std::string& text) {
    write(file, text);
    return found_results(study_folder, cells)[0].value().metrics.at("val/loss");
  };
  EXPECT_EQ(loss_of(result(sound, "3")), 3);
  EXPECT_EQ(loss_of(result(R"("diverged")", R"("inf")")), INFINITY);
  EXPECT_EQ(loss_of(result(R"("failed")", R"("-inf")")), -INFINITY);
  EXPECT_TRUE(std::isnan(loss_of(result(sound, R"("nan")"))));
  EXPECT_TRUE(std::isnan(loss_of(result(sound, "null", R"(, "asked": "--lengths 16", "answers": ["{}"])"))));
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
