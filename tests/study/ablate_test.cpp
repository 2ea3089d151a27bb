// `weft ablate` as a process: studies of tiny models, stopped and continued, with arms that fail and grids that are wrong.
#include <signal.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "tests/trainers/process.h"
#include "tests/trainers/run_fixture.h"
#include "weft/core/error.h"
#include "weft/io/events.h"

namespace weft::test {
namespace {

class Ablate : public RunFixture {
 protected:
  static constexpr const char* kRuns = R"(
base: "tiny.txtpb"
set: "train.tokens=1280" set: "checkpoint.every=2" set: "eval.every=0"
)";
  static constexpr const char* kArms = R"(
axis { name: "gate" arm { name: "none" } arm { name: "head" set: "model.mixer={preset: \"gate_out_head\"}" } }
)";
  void write_grid(const std::string& text) { write("grid.txtpb", text); }
  ProcessResult ablate(const std::string& out, std::vector<std::string> more = {}) {
    std::vector<std::string> words{"ablate", path("grid.txtpb"), "--out", path(out)};
    words.insert(words.end(), more.begin(), more.end());
    return run_weft(words);
  }
  std::string report(const std::string& out) { return io::read_file(path(out) + "/report.txt"); }
  std::vector<std::string> hparams_tags(const std::string& folder) {
    std::vector<std::string> tags;
    for (const std::string& name : io::list_folder(path(folder)))
      if (name.starts_with("events."))
        for (const io::Event& event : io::read_events(path(folder) + "/" + name).events)
          for (const io::EventValue& value : event.values)
            if (value.tag.starts_with("_hparams_/")) tags.push_back(value.tag);
    return tags;
  }
  void expect_refused(const std::string& grid, const std::vector<std::string>& texts) {
    write_grid(grid);
    const ProcessResult result = ablate("refused");
    EXPECT_EQ(result.exit_code, 2) << result.err;
    for (const std::string& text : texts)
      EXPECT_NE(result.err.find(text), std::string::npos) << text << " in " << result.err;
    EXPECT_FALSE(io::file_exists(path("refused"))) << "nothing is written for a grid that is wrong";
  }
};

TEST_F(Ablate, RunsAtATimeDoNotChangeABit) {
  write_grid(str(kRuns, "seeds: 3 seeds: 4 seeds: 5", kArms,
                 "match { parameters: 0.02 multiple: 1 } compare { effect: 0.1 }"));
  const ProcessResult two = ablate("two", {"--jobs", "2"}), one = ablate("one", {"--jobs", "1", "--json"});
  ASSERT_EQ(two.exit_code, 0) << two.err;
  ASSERT_EQ(one.exit_code, 0) << one.err;
  EXPECT_EQ(report("one"), report("two"));
  EXPECT_EQ(two.out, report("two"));
  for (const std::string& cell : io::list_folder(path("one") + "/cells")) {
    const std::string file = "/cells/" + cell + "/checkpoints/step-00000010/model.safetensors";
    EXPECT_EQ(io::read_file(path("one") + file), io::read_file(path("two") + file)) << cell;
  }
  const auto json = nlohmann::json::parse(one.out);
  EXPECT_EQ(json["complete"], 6);
  EXPECT_EQ(json["baseline"], "gate=none");
  const auto& arm = json["metrics"][0]["arms"][1];
  EXPECT_EQ(arm["arm"], "gate=head");
  EXPECT_EQ(arm["difference"]["pairs"], 3);
  double mean = 0;  // the report's difference is that of the runs
  for (int s = 0; s < 3; ++s)
    mean +=
        (arm["runs"][s]["value"].get<double>() - json["metrics"][0]["arms"][0]["runs"][s]["value"].get<double>()) / 3;
  EXPECT_NEAR(arm["difference"]["mean"].get<double>(), mean, 1e-12);
  EXPECT_NE(report("one").find("seeds for 0.1"), std::string::npos);
  EXPECT_EQ(hparams_tags("one"), std::vector<std::string>{"_hparams_/experiment"});
  const std::vector<std::string> of_run = hparams_tags("one/cells/" + io::list_folder(path("one") + "/cells")[0]);
  EXPECT_EQ(of_run, (std::vector<std::string>{"_hparams_/session_start_info", "_hparams_/session_end_info"}));
  const std::string page = io::read_file(path("one") + "/report.html");
  for (const char* part :
       {"Study grid", "gate=head", "Validation loss", "model.ffn.swiglu.hidden", "<svg", "fill-opacity"})
    EXPECT_NE(page.find(part), std::string::npos) << part;
  const double params = json["arms"][0]["parameters"], matched = json["arms"][1]["parameters"];
  EXPECT_NEAR(matched / params, 1, 0.02);
  EXPECT_GT(json["arms"][1]["ffn_width_of_match"], 0);
}

TEST_F(Ablate, AKilledStudyGoesOnAndEndsInTheSameReport) {
  write_grid(str(kRuns, "seeds: 3 seeds: 4 seeds: 5", kArms));
  ASSERT_EQ(ablate("whole").exit_code, 0);
  for (int after_ms : {120, 400, 700}) {  // in whatever it is doing
    const pid_t child = start_weft({"ablate", path("grid.txtpb"), "--out", path("killed")});
    std::this_thread::sleep_for(std::chrono::milliseconds(after_ms));
    kill(child, after_ms == 400 ? SIGTERM : SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
  }
  std::this_thread::sleep_for(
      std::chrono::seconds(2));  // runs that outlive a killed study hold their folders until they end
  const ProcessResult rest = ablate("killed");
  ASSERT_EQ(rest.exit_code, 0) << rest.err;
  EXPECT_EQ(report("killed"), report("whole"));
  const ProcessResult again = ablate("killed");
  EXPECT_EQ(again.exit_code, 0);
  EXPECT_EQ(again.err, "") << "no run is started again";
  EXPECT_EQ(again.out, rest.out);
}

TEST_F(Ablate, RunsThatFailAreShownAndTheOthersGoOn) {
  write_grid(str(kRuns, "seeds: 3 seeds: 4 seeds: 5", R"(
set: "optim.skip="
axis { name: "lr" path: "optim.group[1].adamw.lr" value: "1e-3" value: "1e30" }
)"));
  const ProcessResult result = ablate("study");
  EXPECT_EQ(result.exit_code, 1) << result.err;
  EXPECT_NE(result.out.find("3 of 6 runs complete, 3 lost"), std::string::npos) << result.out;
  for (const char* seed : {"3", "4", "5"})
    EXPECT_NE(result.out.find(str("lost: lr=1e30,seed=", seed)), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("0 of 3"), std::string::npos) << result.out;
  const auto json = nlohmann::json::parse(io::read_file(path("study") + "/report.json"));
  EXPECT_TRUE(json["metrics"][0]["arms"][1]["mean"].is_null()) << "an arm without results has no mean";
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

TEST_F(Ablate, RefusesGridsThatAreWrong) {
  expect_refused("", {"base is not set"});
  expect_refused("base: \"nothing.txtpb\" seeds: 1" + std::string(kArms), {"nothing.txtpb", "gate=none"});
  expect_refused(str(kRuns, kArms), {"there are no seeds"});
  expect_refused(str(kRuns, "seeds: 1 seeds: 1", kArms), {"seed 1 stands there twice"});
  expect_refused(str(kRuns, "seeds: 1"), {"there is no axis"});
  expect_refused(str(kRuns, "seeds: 1 axis { name: \"lr\" }"), {"axis lr needs arms, or a path with values"});
  expect_refused(str(kRuns, "seeds: 1 axes { name: \"lr\" }"), {"grid.txtpb:4", "axes", "axis"});
  expect_refused(str(kRuns, "seeds: 1 axis { name: \"a\" arm { name: \"x\" set: \"model.dims=4\" } }"),
                 {"grid.txtpb: a=x", "dims", "Did you mean 'dim'"});
  expect_refused(str(kRuns, "seeds: 1 axis { name: \"a\" arm { name: \"x\" } arm { name: \"x\" } }"),
                 {"arm x stands there twice"});
  expect_refused(str(kRuns, "seeds: 1 axis { name: \"a\" arm { name: \"../x\" } }"), {"has the name '../x'"});
  expect_refused(str(kRuns, "seeds: 1 axis { name: \"a\" arm { name: \"x\" set: \"seed=4\" } }"),
                 {"a=x sets the seed"});
  expect_refused(str(kRuns, "seeds: 1 axis { name: \"a\" path: \"model.context\" value: \"32\" value: \"16\" }"),
                 {"a=32 and a=16 would see other batches: model.context is 32 in one and 16 in the other"});
  expect_refused(str(kRuns, "seeds: 1 baseline: \"gate=nones\"", kArms), {"baseline", "nones", "none"});
  expect_refused(str(kRuns, "seeds: 1 compare { confidence: 95 }", kArms), {"compare.confidence is 95"});
  expect_refused(
      str(kRuns,
          "seeds: 1 match { parameters: 0.01 } axis { name: \"d\" path: \"model.layers\" value: \"1\" value: \"3\" }"),
      {"d=3 would need a feed-forward network of width", "below the smallest"});
  expect_refused(str(kRuns, "seeds: 1 match { parameters: 0.000001 multiple: 3 }", kArms),
                 {"gate=head has", "are allowed"});
}

TEST_F(Ablate, AMetricThatTheRunsDoNotHaveIsNamed) {
  write_grid(str(kRuns, "seeds: 3 compare { metric: \"val/los\" }", kArms));
  const ProcessResult result = ablate("study");
  EXPECT_EQ(result.exit_code, 2) << result.err;
  EXPECT_NE(result.err.find("val/los"), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("Did you mean 'val/loss'"), std::string::npos) << result.err;
}

}  // namespace
}  // namespace weft::test
