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

}  // namespace
}  // namespace weft::study
