// What a report says of runs that failed or were not made, and of bytes that are no UTF-8.
#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/study/study_fixture.h"

namespace weft::study {
namespace {

using Json = nlohmann::ordered_json;

class LostRuns : public test::StudyFixture {};

TEST_F(LostRuns, AMessageOfALostRunMayHaveAnyBytes) {
  make(str(kSeeds, kArms));
  write("program", "#!/bin/sh\nprintf 'error: \\377 in a path\\n' >&2\nexit 2\n");
  std::filesystem::permissions(path("program"), std::filesystem::perms::owner_all);
  io::make_folders(study_folder);
  results = run_cells(grid, arms, cells,
                      {.program = path("program"),
                       .folder = study_folder,
                       .is_stopping = [] { return false; },
                       .say = [](std::string_view) {}});
  const StudyReport report = report_of(data());
  EXPECT_EQ(report.num_lost, 9);
  const Json json = Json::parse(report.json);
  EXPECT_EQ(json["lost"][0]["why"], "failed: exit code 2: \xEF\xBF\xBD in a path");
  for (const Cell& cell : cells) EXPECT_TRUE(stored_result(study_folder, cell));
}

TEST_F(LostRuns, AConfigMayHaveAnyBytes) {
  make(str(kSeeds, R"(axis { name: "a" arm { name: "plain" } arm { name: "own" set: "start={from:\"p)", "\xe9",
           R"(\"}" } })"));
  set("val/loss", [](double arm, double seed) { return 3 + arm + seed; });
  const Json json = Json::parse(report_of(data()).json);
  EXPECT_NE(json["differences_of_configs"].dump().find("p\xEF\xBF\xBD"), std::string::npos) << json.dump(1);
}

TEST_F(LostRuns, RunsThatWereNotMadeAreNotLost) {
  make(str(kSeeds, kArms));
  set("val/loss", [](double arm, double seed) { return 3 + arm + seed; });
  results[1].reset(), results[4]->state = CellResult::State::failed, results[5].reset();
  results[6]->metrics.clear();
  const StudyReport report = report_of(data());
  const Json json = Json::parse(report.json);
  std::vector<int64_t> lost, not_run;
  for (const Json& arm : json["metrics"][0]["arms"])
    lost.push_back(arm["lost"].get<int64_t>()), not_run.push_back(arm["not_run"].get<int64_t>());
  EXPECT_EQ(lost, (std::vector<int64_t>{0, 1, 0}));
  EXPECT_EQ(not_run, (std::vector<int64_t>{0, 1, 1}));
  EXPECT_EQ(json["not_run"], 2);
  std::vector<std::string> counted;
  for (const auto& row : report.tables[1].rows) counted.push_back(row.back());
  EXPECT_EQ(counted, (std::vector<std::string>{"2 of 3", "1 of 3, 1 lost, 1 not run", "2 of 3, 1 not run"}));
  // The baseline has no value of seed 3.
  auto pairs = [&](size_t arm) {
    const Json& d = json["metrics"][0]["arms"][arm]["difference"];
    return std::vector<int64_t>{d["pairs"], d["lost"], d["not_run"], d["without_value"]};
  };
  EXPECT_EQ(pairs(1), (std::vector<int64_t>{0, 1, 1, 1}));
  EXPECT_EQ(pairs(2), (std::vector<int64_t>{1, 0, 1, 1}));
}

TEST_F(LostRuns, TheConclusionCountsCompleteSeedsAndNamesArmsThatAreLost) {
  make(str(kSeeds, kArms));
  const auto lose = [&](size_t arm, int64_t seed) {
    for (size_t i = 0; i < cells.size(); ++i)
      if (cells[i].combination == arm && cells[i].seed == seed) results[i]->state = CellResult::State::diverged;
  };
  const auto expect = [&](const std::string& part, bool is_there = true) {
    const std::string text = report_of(data()).conclusion;
    EXPECT_EQ(text.find(part) != std::string::npos, is_there) << part << " in " << text;
  };
  set("val/loss", [](double arm, double seed) { return 3 + arm + seed + 0.01 * arm * seed; });
  expect("training tokens and 3 seeds. "), expect("Nothing can be said", false);
  for (int64_t seed : {1, 2, 3}) lose(2, seed);
  expect("training tokens and 3 seeds. ");
  expect("is worse than gate=none for gate=head (");
  expect("Nothing can be said of gate=channel: no run has a val/loss, and runs are lost.");
  lose(1, 2);
  expect("training tokens and 3 seeds, of which 2 are complete. ");
  lose(0, 3);
  expect("training tokens and 3 seeds, of which 1 is complete. "), expect("Too few runs count to tell gate=head (");
  lose(0, 1);
  expect("of which none is complete. "), expect("No seed has a run of gate=none and one of gate=head");
  lose(0, 2);
  expect("Nothing can be said of gate=none, gate=channel: ");
  lose(1, 1), lose(1, 3);
  expect("Nothing can be said of gate=none, gate=head, gate=channel: "), expect("of which none is complete. ");
  for (auto& result : results) result.reset();
  EXPECT_EQ(report_of(data()).conclusion, "") << "nothing has been run";
}

}  // namespace
}  // namespace weft::study
