// `weft ablate` called again for a study that has runs: other paths, another base, more seeds and arms, and some arms only.
#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/study/ablate_fixture.h"
#include "trainers/study/cells.h"
#include "weft/io/checkpoint.h"

namespace weft::test {
namespace {

// The study was moved with its texts, or its grid is named from elsewhere.
TEST_F(Ablate, NothingIsTrainedAgainForOtherPaths) {
  write_grid(str(kRuns, "seeds: 3", kArms, R"(
tune { path: "optim.group[1].adamw.lr" value: "1e-4" value: "3e-4" value: "9e-4" seeds: 8 widen: 0 })"));
  ASSERT_EQ(ablate("study").exit_code, 0);
  io::make_folders(path("elsewhere"));
  for (const char* name : {"grid.txtpb", "tiny.txtpb", "text.txt"})
    std::filesystem::copy(path(name), path("elsewhere") + "/" + name);
  const ProcessResult moved = run_weft({"ablate", path("elsewhere") + "/grid.txtpb", "--out", path("study")});
  ASSERT_EQ(moved.exit_code, 0) << moved.err;
  EXPECT_EQ(moved.err.find("seed="), std::string::npos) << "no run is started again: " << moved.err;
  EXPECT_NE(moved.out.find("2 of 2 runs complete"), std::string::npos) << moved.out;
  EXPECT_NE(moved.out.find("taken over: "), std::string::npos) << moved.out;
  EXPECT_EQ(io::list_folder(path("study") + "/cells").size(), 2u);
  EXPECT_EQ(io::list_folder(path("study") + "/tuning/cells").size(), 6u);
}

TEST_F(Ablate, AChangedBaseIsAnotherStudy) {
  write_grid(str(kRuns, "seeds: 3", kArms));
  ASSERT_EQ(ablate("study", {"--only", "gate=none"}).exit_code, 0);
  const std::string before = whole_report("study"), base = io::read_file(path("tiny.txtpb"));
  std::string other = base;
  other.replace(other.find("dim: 16"), 7, "dim: 32");
  write("tiny.txtpb", other);
  const ProcessResult refused = ablate("study");
  EXPECT_EQ(refused.exit_code, 2) << refused.err;
  EXPECT_NE(refused.err.find("holds 1 finished run of another base config"), std::string::npos) << refused.err;
  EXPECT_NE(refused.err.find("--out"), std::string::npos) << refused.err;
  EXPECT_EQ(whole_report("study"), before);
  write("tiny.txtpb", base);
  const ProcessResult rest = ablate("study");
  ASSERT_EQ(rest.exit_code, 0) << rest.err;
  EXPECT_NE(rest.out.find("2 of 2 runs complete"), std::string::npos) << rest.out;
}

TEST_F(Ablate, OnlySomeArmsAndADryRun) {
  write_grid(str(kRuns, "seeds: 3", kArms));
  const ProcessResult dry = ablate("study", {"--dry-run"});
  EXPECT_EQ(dry.exit_code, 0) << dry.err;
  EXPECT_NE(dry.out.find("2 arms x 1 seeds, 2 runs of 1 threads"), std::string::npos) << dry.out;
  EXPECT_FALSE(io::file_exists(path("study")));
  const ProcessResult some = ablate("study", {"--only", "gate=head"});
  EXPECT_EQ(some.exit_code, 0) << some.err;
  EXPECT_NE(some.out.find("1 of 2 runs complete, 1 not run yet"), std::string::npos) << some.out;
  EXPECT_NE(some.out.find("No intervals: 1 seeds"), std::string::npos) << some.out;
  EXPECT_EQ(io::list_folder(path("study") + "/cells").size(), 1u);
  const ProcessResult none = ablate("study", {"--only", "gate=heads"});
  EXPECT_EQ(none.exit_code, 2) << none.err;
  write_grid(str(kRuns, "seeds: 4", kArms));
  const ProcessResult other = ablate("study");
  EXPECT_EQ(other.exit_code, 2) << other.err;
  EXPECT_NE(other.err.find("holds the study of another grid"), std::string::npos) << other.err;
}

// More seeds and arms are added to what is there; any other change is another study.
TEST_F(Ablate, AStudyMayGetMoreSeedsAndArms) {
  const std::string more_arms =
      R"(axis { name: "gate" arm { name: "softmax" set: "model.mixer={softmax{heads:4}}" } arm { name: "none" }
  arm { name: "head" set: "model.mixer={preset: \"gate_out_head\"}" } } baseline: "gate=none" )";
  const std::string base = "baseline: \"gate=none\" ";
  write_grid(str(kRuns, "seeds: 3", kArms, base));
  ASSERT_EQ(ablate("study").exit_code, 0);
  const std::vector<std::string> first = io::list_folder(path("study") + "/cells");
  write_grid(str(kRuns, "seeds: 5 seeds: 3", kArms, base));
  const ProcessResult seeds = ablate("study");
  ASSERT_EQ(seeds.exit_code, 0) << seeds.err;
  EXPECT_NE(seeds.out.find("4 of 4 runs complete"), std::string::npos) << seeds.out;
  EXPECT_EQ(seeds.err.find("seed=3"), std::string::npos) << "no run is started again: " << seeds.err;
  write_grid(str(kRuns, "seeds: 5 seeds: 3 ", more_arms));
  const ProcessResult arms = ablate("study");
  ASSERT_EQ(arms.exit_code, 0) << arms.err;
  EXPECT_NE(arms.out.find("6 of 6 runs complete"), std::string::npos) << arms.out;
  EXPECT_EQ(arms.err.find("gate=head"), std::string::npos) << "no run is started again: " << arms.err;
  EXPECT_EQ(run_weft({"ablate", "report", path("study")}).out, arms.out) << "the grid with its additions is kept";
  std::string bad_arm = more_arms;
  bad_arm.insert(bad_arm.find("arm { name: \"head"), "arm { name: \"begun\" set: \"start={from:'nix'}\" } ");
  write_grid(str(kRuns, "seeds: 5 seeds: 3 ", bad_arm));
  const ProcessResult begun = ablate("study");
  EXPECT_EQ(begun.exit_code, 2) << begun.err;
  EXPECT_NE(begun.err.find("gate=begun: "), std::string::npos) << begun.err;
  EXPECT_NE(begun.err.find("nix is not a run"), std::string::npos) << begun.err;
  const std::vector<std::string> all = io::list_folder(path("study") + "/cells");
  EXPECT_EQ(all.size(), 6u);
  for (const std::string& cell : first) EXPECT_NE(std::ranges::find(all, cell), all.end()) << cell;

  const std::string claim = R"(
claim { title: "Gates" text: "A loss." part: gates paper { id: "2505.06708" } metric: "val/loss"
  contrast { arm: "gate=head" baseline: "gate=none" } expect: equal effect: 1 } )";
  std::string other_arm = more_arms, other_baseline = more_arms;
  other_arm.replace(other_arm.find("heads:4"), 7, "heads:1");
  other_baseline.replace(other_baseline.find("gate=none"), 9, "gate=head");
  for (const std::string& grid :
       {str(kRuns, "seeds: 3 ", more_arms), str(kRuns, "seeds: 5 seeds: 3 ", kArms, base),
        str(kRuns, "seeds: 5 seeds: 3 ", other_arm), str(kRuns, "seeds: 5 seeds: 3 ", other_baseline),
        str(kRuns, "seeds: 5 seeds: 3 seeds: 6 match { parameters: 0.5 } ", more_arms),
        str(kRuns, "seeds: 5 seeds: 3 set: \"log.every=1\" ", more_arms),
        str(kRuns, "seeds: 5 seeds: 3 ", more_arms, claim)}) {
    write_grid(grid);
    const ProcessResult other = ablate("study");
    EXPECT_EQ(other.exit_code, 2) << grid;
    EXPECT_NE(other.err.find("holds the study of another grid"), std::string::npos) << other.err;
  }
  write_grid(str(kRuns, "seeds: 5 seeds: 3 ", more_arms));
  EXPECT_EQ(ablate("study", {"--set", "log.every=1"}).exit_code, 2);
  EXPECT_EQ(ablate("study").out, arms.out);

  write_grid(str(kRuns, "seeds: 3", kArms, claim));
  ASSERT_EQ(ablate("claims", {"--only", "gate=none"}).exit_code, 0);
  write_grid(str(kRuns, "seeds: 3 seeds: 4", kArms, claim));
  EXPECT_EQ(ablate("claims").exit_code, 2) << "what decides a claim is said before the runs";
}

}  // namespace
}  // namespace weft::test
