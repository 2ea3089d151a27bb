// `weft ablate` as a process: studies of tiny models, stopped and continued, with arms that fail and grids that are wrong.
#include <signal.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "tests/study/ablate_fixture.h"
#include "trainers/study/cells.h"
#include "trainers/study/match.h"
#include "weft/io/checkpoint.h"

namespace weft::test {
namespace {

TEST_F(Ablate, RunsAtATimeDoNotChangeABit) {
  write_grid(str(kRuns, "seeds: 3 seeds: 4 seeds: 5", kArms,
                 "match { parameters: 0.02 multiple: 1 } compare { effect: 0.1 }"));
  const ProcessResult two = ablate("two", {"--jobs", "2"}), one = ablate("one", {"--jobs", "1", "--json"});
  ASSERT_EQ(two.exit_code, 0) << two.err;
  ASSERT_EQ(one.exit_code, 0) << one.err;
  EXPECT_EQ(whole_report("one"), whole_report("two"));
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
  const double params = json["arms"][0]["parameters_without_embeddings"],
               matched = json["arms"][1]["parameters_without_embeddings"];
  EXPECT_NEAR(matched / params, 1, 0.02);
  EXPECT_GT(json["arms"][1]["ffn_width_of_match"], 0);
}

TEST_F(Ablate, FinishedRunsKeepTheirWeightsAlone) {
  const std::string seeds = "seeds: 3", file = "/checkpoints/step-00000010";
  write_grid(str(kRuns, seeds, kArms, "keep_optimizer: true"));
  ASSERT_EQ(ablate("all").exit_code, 0);
  write_grid(str(kRuns, seeds, kArms));
  ASSERT_EQ(ablate("weights").exit_code, 0);
  EXPECT_EQ(numbers("all"), numbers("weights"));
  const std::string cell = io::list_folder(path("all") + "/cells")[0], all = path("all") + "/cells/" + cell,
                    weights = path("weights") + "/cells/" + cell;
  EXPECT_TRUE(io::has_optimizer(io::read_checkpoint_info(all + file)));
  EXPECT_FALSE(io::has_optimizer(io::read_checkpoint_info(weights + file)));
  EXPECT_EQ(io::read_file(all + file + "/model.safetensors"), io::read_file(weights + file + "/model.safetensors"));

  const ProcessResult further =
      run_weft({"train", weights + "/config.txtpb", "--resume", weights + file, "--run", path("more")});
  EXPECT_NE(further.exit_code, 0);
  EXPECT_NE(further.err.find("has weights alone"), std::string::npos) << further.err;
  EXPECT_NE(further.err.find("start { from:"), std::string::npos) << further.err;

  const std::string report_before = numbers("weights");
  std::filesystem::remove(path("weights") + "/results/" + cell + ".json");
  const ProcessResult again = ablate("weights");  // its result is read anew, and nothing is trained
  EXPECT_EQ(again.exit_code, 0) << again.err;
  EXPECT_EQ(numbers("weights"), report_before);
}

// In whatever it is doing: tries, runs, questions, reports.
TEST_F(Ablate, AKilledStudyGoesOnAndEndsInTheSameReport) {
  write_grid(str(kRuns, "seeds: 3 seeds: 4", kArms, R"(
tune { path: "optim.group[1].adamw.lr" value: "1e-4" value: "3e-4" value: "9e-4" seeds: 8 widen: 0 }
eval { length: 16 by_position: true task: "copy" rows: 4 })"));
  ASSERT_EQ(ablate("whole").exit_code, 0);
  std::random_device device;
  std::vector<int> moments;
  for (int i = 0; i < 5; ++i) {
    moments.push_back(static_cast<int>(50 + device() % 1200));
    const pid_t child = start_weft({"ablate", path("grid.txtpb"), "--out", path("killed")});
    std::this_thread::sleep_for(std::chrono::milliseconds(moments.back()));
    kill(child, i % 2 == 0 ? SIGKILL : SIGTERM);
    int status = 0;
    waitpid(child, &status, 0);
  }
  // Runs that outlive a killed study hold their folders until they end.
  std::this_thread::sleep_for(std::chrono::seconds(2));
  SCOPED_TRACE(
      str("killed after ms: ", moments[0], " ", moments[1], " ", moments[2], " ", moments[3], " ", moments[4]));
  const ProcessResult rest = ablate("killed");
  ASSERT_EQ(rest.exit_code, 0) << rest.err;
  EXPECT_EQ(whole_report("killed"), whole_report("whole"));
  const ProcessResult again = ablate("killed");
  EXPECT_EQ(again.exit_code, 0);
  EXPECT_EQ(again.err.find("seed="), std::string::npos) << "no run is started again: " << again.err;
  EXPECT_EQ(again.out, rest.out);
}

// A run whose loss is not finite, or whose guard gives up, would end so again: it is run once.
TEST_F(Ablate, RunsThatDivergeAreShownAndNotRunAgain) {
  write_grid(str(kRuns, "seeds: 3 seeds: 4 seeds: 5", R"(
axis { name: "lr" arm { name: "low" } arm { name: "high" set: "optim.skip=" set: "optim.group[1].adamw.lr=1e30" }
  arm { name: "guarded" set: "optim.skip={max_in_a_row: 3}" set: "optim.group[1].adamw.lr=1e30" } }
)"));
  const ProcessResult result = ablate("study");
  EXPECT_EQ(result.exit_code, 1) << result.err;
  EXPECT_NE(result.out.find("3 of 9 runs complete, 6 lost"), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("0 of 3"), std::string::npos) << result.out;
  const auto json = nlohmann::json::parse(io::read_file(path("study") + "/report.json"));
  EXPECT_TRUE(json["metrics"][0]["arms"][1]["mean"].is_null()) << "an arm without results has no mean";
  ASSERT_EQ(json["lost"].size(), 6u);
  for (const auto& lost : json["lost"]) {
    const std::string run = lost["run"], why = lost["why"];
    EXPECT_TRUE(why.starts_with("diverged: exit code 5: step ")) << why;
    EXPECT_NE(why.find(run.starts_with("lr=high") ? "gradient norm" : "has skipped 3 steps in a row"),
              std::string::npos)
        << why;
    const std::string log = io::read_file(path("study") + "/cells/" + run + "/log.txt");
    EXPECT_EQ(log.find("error: "), log.rfind("error: ")) << log;
  }
  const ProcessResult again = ablate("study");
  EXPECT_EQ(again.exit_code, 1) << again.err;
  EXPECT_EQ(again.err.find("seed="), std::string::npos) << "no run is started again: " << again.err;
  EXPECT_EQ(again.out, result.out);
}

// A file stands where the first run's folder belongs: that run cannot be made, nor can anything be noted in it.
TEST_F(Ablate, RunsThatFailAreShownAndTriedAgainAndTheOthersGoOn) {
  write_grid(str(kRuns, "seeds: 3 seeds: 4 seeds: 5", kArms));
  ASSERT_EQ(ablate("other", {"--only", "gate=none"}).exit_code, 0);
  const std::string cell = io::list_folder(path("other") + "/cells")[0];
  io::make_folders(path("study") + "/cells");
  write("study/cells/" + cell, "");
  const ProcessResult result = ablate("study");
  EXPECT_EQ(result.exit_code, 1) << result.err;
  EXPECT_NE(result.out.find("5 of 6 runs complete, 1 lost"), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("lost: " + cell + " failed: exit code"), std::string::npos) << result.out;
  std::filesystem::remove(path("study") + "/cells/" + cell);
  const ProcessResult again = ablate("study");
  EXPECT_EQ(again.exit_code, 0) << again.err;
  EXPECT_NE(again.out.find("6 of 6 runs complete"), std::string::npos) << again.out;
}

TEST_F(Ablate, DevicesAreGpusThatAreThere) {
  write_grid(str(kRuns, "seeds: 3", kArms));
  for (const auto& [devices, part] :
       {std::pair{"99", "--devices 99: there are "}, std::pair{"0,x", "GPUs that this program can use"},
        std::pair{"-1", "--devices"}}) {
    const ProcessResult result = ablate("study", {"--devices", devices, "--set", "train.device=cuda"});
    EXPECT_EQ(result.exit_code, 2) << result.err;
    EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
  }
  const ProcessResult on_cpu = ablate("study", {"--devices", "all", "--set", "train.device=cpu"});
  EXPECT_EQ(on_cpu.exit_code, 2) << on_cpu.err;
  EXPECT_NE(on_cpu.err.find("trains on the CPU"), std::string::npos) << on_cpu.err;
  EXPECT_FALSE(io::file_exists(path("study")));
}

// Plain SGD has no state: its checkpoints are weights alone from the first one on.
TEST_F(Ablate, AKilledRunWithoutOptimizerStateIsTrainedToItsEnd) {
  write_grid(str(kRuns,
                 "seeds: 3 set: \"optim.group=[{match: '*' sgd {lr: 1e-3 momentum: 0}}]\" set: \"checkpoint.every=1\"",
                 kArms));
  ASSERT_EQ(ablate("whole").exit_code, 0);
  const std::string cell = io::list_folder(path("whole") + "/cells")[0], mark = "/cells/" + cell + "/finished";
  EXPECT_TRUE(io::file_exists(path("whole") + mark));
  std::filesystem::copy(path("whole"), path("killed"), std::filesystem::copy_options::recursive);
  std::filesystem::remove(path("killed") + mark);  // as if killed at the last checkpoint, before the validation
  std::filesystem::remove(path("killed") + "/results/" + cell + ".json");
  const std::string metrics = path("killed") + "/cells/" + cell + "/metrics.jsonl";
  std::istringstream lines(io::read_file(metrics));
  std::string kept;
  for (std::string line; std::getline(lines, line);)
    if (line.find("\"val/loss\"") == std::string::npos) kept += line + "\n";
  io::write_file_atomically(metrics, kept);
  ASSERT_EQ(ablate("killed").exit_code, 0);
  EXPECT_EQ(numbers("killed"), numbers("whole"));
}

TEST_F(Ablate, EachJobHasItsGpu) {
  write_grid(str(kRuns, "seeds: 3 seeds: 4 seeds: 5", kArms));
  write("program",
        "#!/bin/sh\necho \"error: on $CUDA_VISIBLE_DEVICES, seen by $ABLATE_TEST\" >&2\nsleep 0.3\nexit 2\n");
  std::filesystem::permissions(path("program"), std::filesystem::perms::owner_all);
  ::setenv("ABLATE_TEST", "all", 1);
  const study::Grid grid = study::read_grid(path("grid.txtpb"));
  study::Arms arms = study::resolve_arms(grid, {});
  study::count_and_match(grid, arms, {});
  std::filesystem::create_directory(path("study"));
  const auto results = study::run_cells(grid, arms, study::cells_of(grid, arms),
                                        {.program = path("program"),
                                         .folder = path("study"),
                                         .jobs = 3,
                                         .gpus = {"GPU-a", "7"},
                                         .is_stopping = [] { return false; },
                                         .say = [](std::string_view) {}});
  ::unsetenv("ABLATE_TEST");
  std::map<std::string, int> seen;
  for (const auto& result : results) ++seen[result.value().problem];
  ASSERT_EQ(seen.size(), 2u);
  EXPECT_GT(seen["exit code 2: on GPU-a, seen by all"], 0);
  EXPECT_GT(seen["exit code 2: on 7, seen by all"], 0);
}

TEST_F(Ablate, TunesEveryArmOnSeedsAndDataThatDoNotCount) {
  write_grid(str(kRuns, "seeds: 3 seeds: 4 seeds: 5", kArms, R"(
tune { path: "optim.group[1].adamw.lr" value: "1e-5" value: "3e-5" value: "9e-5" seeds: 8 seeds: 9 widen: 1 }
)"));
  const ProcessResult result = ablate("study");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const auto json = nlohmann::json::parse(io::read_file(path("study") + "/report.json"));
  const auto& arms = json["tuning"]["arms"];
  ASSERT_EQ(arms.size(), 2u);
  for (const auto& arm : arms) {
    ASSERT_EQ(arm["tries"].size(), 4u) << "rates far too low: the highest is best, and one more is tried with all arms";
    EXPECT_EQ(arm["tries"][3]["value"], "0.00027");
    double best = INFINITY;
    std::string value;
    for (const auto& one : arm["tries"]) {
      EXPECT_EQ(one["runs"], 2);
      if (one["mean"].get<double>() < best) best = one["mean"], value = one["value"];
    }
    EXPECT_EQ(arm["best"], value);
  }
  EXPECT_EQ(json["arms"][0]["tuned"], arms[0]["best"]);
  // TensorBoard's view HParams has the tuned value of each run, and a column for it.
  EXPECT_NE(events_of("study").find("optim.group[1].adamw.lr"), std::string::npos);
  for (const std::string& cell : io::list_folder(path("study") + "/cells")) {
    const std::string events = events_of("study/cells/" + cell);
    EXPECT_NE(events.find("optim.group[1].adamw.lr"), std::string::npos) << cell;
    EXPECT_NE(events.find(arms[cell.starts_with("gate=head") ? size_t{1} : size_t{0}]["best"].get<std::string>()),
              std::string::npos)
        << cell;
  }
  EXPECT_EQ(io::list_folder(path("study") + "/tuning/cells").size(), 2u * 4u * 2u);
  EXPECT_EQ(io::list_folder(path("study") + "/cells").size(), 6u);
  for (const auto& [folder, half] : {std::pair{"/tuning/cells", "half: 1"}, std::pair{"/cells", "half: 2"}})
    for (const std::string& cell : io::list_folder(path("study") + folder))
      EXPECT_NE(io::read_file(path("study") + folder + "/" + cell + "/config.txtpb").find(half), std::string::npos)
          << cell;
  const std::string text = report("study");
  for (const char* part : {"Tuning", "still lies at the edge for gate=none, gate=head", "0.00027"})
    EXPECT_NE(text.find(part), std::string::npos) << part << " in " << text;
  EXPECT_NE(io::read_file(path("study") + "/report.html").find("Tuning of optim.group[1].adamw.lr"), std::string::npos);
  const ProcessResult again = ablate("study");
  EXPECT_EQ(again.exit_code, 0);
  EXPECT_EQ(again.err.find("seed="), std::string::npos) << "neither tries nor runs are made again: " << again.err;
  EXPECT_EQ(report("study"), text);
  const ProcessResult alone = run_weft({"ablate", "report", path("study")});
  EXPECT_EQ(alone.exit_code, 0) << alone.err;
  EXPECT_EQ(alone.out, text) << "with its tuning";
  std::filesystem::remove(path("study") + "/tuning/results/" + io::list_folder(path("study") + "/tuning/results")[0]);
  const ProcessResult part = run_weft({"ablate", "report", path("study")});
  EXPECT_EQ(part.exit_code, 2) << part.err;
  EXPECT_NE(part.err.find("the tuning has not been run to its end"), std::string::npos) << part.err;
}

TEST_F(Ablate, MatchesOperationsByWidthOrByTokens) {
  const std::string axis = "axis { name: \"d\" path: \"model.layers\" value: \"1\" value: \"2\" } seeds: 3";
  write_grid(str(kRuns, axis, " match { flops: 0.06 by: tokens } set: \"data.tokenizer={bytes{}}\""));
  const ProcessResult tokens = ablate("study", {"--dry-run"});
  ASSERT_EQ(tokens.exit_code, 0) << tokens.err;
  EXPECT_NE(tokens.out.find("matched in operations of a training within 6 %, by whole steps: arms are off by up to "),
            std::string::npos)
      << tokens.out;
  ASSERT_EQ(ablate("study").exit_code, 0);
  const auto json = nlohmann::json::parse(io::read_file(path("study") + "/report.json"));
  EXPECT_EQ(json["arms"][0]["tokens"], 1280);
  EXPECT_LT(json["arms"][1]["tokens"], 1280);
  EXPECT_EQ(json["arms"][1]["tokens"].get<int64_t>() % 128, 0);
  write_grid(str(kRuns, kArms, "seeds: 3 match { flops: 0.02 multiple: 1 }"));
  const ProcessResult width = ablate("width", {"--dry-run"});
  ASSERT_EQ(width.exit_code, 0) << width.err;
  for (const char* column : {"active", "without embeddings", "time", "memory", "disk", "cache/token", "of checkpoints"})
    EXPECT_NE(width.out.find(column), std::string::npos) << column << " in " << width.out;
}

TEST_F(Ablate, RefusesGridsThatAreWrong) {
  const std::string tune = "seeds: 1 tune { path: \"optim.group[1].adamw.lr\" ";
  expect_refused(str(kRuns, kArms, tune, "value: \"1e-3\" value: \"2e-3\" seeds: 2 }"), {"tune has 2 values"});
  expect_refused(str(kRuns, kArms, tune, "value: \"1e-3\" value: \"1e-4\" value: \"1\" seeds: 2 }"),
                 {"tune: value 1e-4 is not a number above 0.001"});
  expect_refused(str(kRuns, kArms, tune, "value: \"1\" value: \"2\" value: \"3\" seeds: 1 }"),
                 {"seed 1 is one of the study's"});
  expect_refused(str(kRuns, kArms, "seeds: 1 match { parameters: 0.1 flops: 0.1 }"), {"parameters and flops"});
  expect_refused(str(kRuns, kArms, "seeds: 1 eval { task: \"mqr\" }"), {"mqr", "Did you mean 'mqar'"});
  expect_refused(
      str(kRuns, "seeds: 1 eval { length: 32 length: 64 }",
          "axis { name: \"p\" arm { name: \"rope\" } arm { name: \"own\" set: \"model.position={learned{}}\" } }"),
      {"eval: length 64: p=own has learned positions for 32 tokens"});
  expect_refused(
      str(kRuns, "seeds: 1 eval { task: \"mqar\" task_length: 48 } set: \"model.position={learned{}}\"", kArms),
      {"eval: length 48: gate=none has learned positions for 32 tokens"});
  auto mixer = [](const std::string& text) {
    return str("axis { name: \"m\" arm { name: \"plain\" } arm { name: \"own\" set: \"model.mixer=[{", text,
               "}]\" } }");
  };
  for (const char* kind : {"random_embedding", "fixed_text"})
    expect_refused(str(kRuns, "seeds: 1 eval { length: 64 }", mixer(str("deconstructed{heads:4 kind:", kind, "}"))),
                   {"eval: length 64: m=own reads a fixed sequence (model.mixer[0]) for 32 tokens"});
  expect_refused(
      str(kRuns, "seeds: 1 eval { task: \"mqar\" task_length: 48 }", mixer("simplified{heads:4 kind:super}")),
      {"eval: length 48: m=own mixes values by a triangle (model.mixer[0]) for 32 tokens"});
  expect_refused(
      str(kRuns, kArms, tune, "value: \"1\" value: \"2\" value: \"3\" seeds: 2 metric: \"task/mqar/accuracy\" }"),
      {"tune: metric task/mqar/accuracy", "the same test rows", "val/loss@LENGTH"});
  expect_refused(str(kRuns, kArms, "seeds: 1 match { flops: 0.1 by: tokens }"),
                 {"match by tokens: gate=none has no model.vocab"});
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

}  // namespace
}  // namespace weft::test
