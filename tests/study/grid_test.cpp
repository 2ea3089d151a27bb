// Grids and their arms, read in this process: what is refused before anything runs, and what a study is shown to be.
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <thread>

#include "tests/study/grid_fixture.h"
#include "tests/support/errors.h"
#include "trainers/study/cell_table.h"
#include "trainers/study/cells.h"
#include "trainers/study/match.h"
#include "trainers/study/study_folder.h"
#include "weft/io/files.h"

namespace weft::study {
namespace {

using test::error_of;

// Arms that tuning makes equal would be reported as different ones.
TEST_F(GridArms, DoNotSetWhatIsTuned) {
  const std::string tune =
      R"(tune { path: "optim.group[*].adamw.lr" value: "1e-3" value: "2e-3" value: "4e-3" seeds: 8 )";
  for (const char* set : {"optim.group[1].adamw.lr=1e-2", "optim.group[1]={match:'*' adamw{lr:1e-2}}",
                          "optim.group=[{match:'*' adamw{lr:1e-2}}]", "optim={group{match:'*' adamw{lr:1e-2}}}",
                          "optim.group=[{match:'*' muon{lr:1e-2}}]", "optim.group+={match:'x' adamw{lr:1e-2}}"})
    EXPECT_EQ(
        error_of([&] { arms(kRuns + axis_of(set) + tune + "}"); },
                 {"grid.txtpb: a=own: optim.group[*].adamw.lr is set: it is", "0.003 without that; tune sets it"}),
        "")
        << set;
  EXPECT_EQ(error_of(
                [&] {
                  arms(kRuns + tune +
                       "} axis { name: \"lr\" path: \"optim.group[1].adamw.lr\" value: \"1e-3\" value: \"9e-3\" }");
                },
                {"lr=1e-3: optim.group[*].adamw.lr is set: it is 0.001 here and 0.003 without that"}),
            "");
  EXPECT_EQ(error_of([&] { arms(kRuns + std::string(kArms) + tune + "set: \"optim.group[1].adamw.lr=1\" }"); },
                     {"grid.txtpb: tune: optim.group[*].adamw.lr is set: it is 1 here", "tune.path sets it"}),
            "");
  for (const std::string& text : {axis_of("data.val={fraction:0.1 half:1}") + tune + "}",
                                  std::string(kArms) + tune + "} set: \"data.val.half=2\"",
                                  std::string(kArms) + tune + "set: \"data.val.half=2\" }"})
    EXPECT_EQ(error_of([&] { arms(kRuns + text); }, {"data.val.half is set to ", "tuning decides it"}), "") << text;
  for (const char* set : {"optim.group=[{match:'*' adamw{lr:3e-3}}]", "optim.group[0].muon.lr=1e-3", "model.layers=2"})
    EXPECT_EQ(arms(kRuns + axis_of(set) + tune + "}").all.size(), 2u) << set << " leaves the tuned rate as it is";
}

TEST_F(GridArms, DoNotSetWhatIsMatched) {
  const std::string match = "match { parameters: 0.5 } ", tokens = "match { flops: 0.5 by: tokens } ";
  EXPECT_EQ(error_of([&] { arms(kRuns + match + axis_of("model.ffn.swiglu.hidden=64")); },
                     {"a=own: model.ffn.swiglu.hidden is set: it is 64 here and 32 without that; match sets it"}),
            "");
  EXPECT_EQ(error_of([&] { arms(kRuns + match + axis_of("model.ffn={swiglu{}}")); }, {"it is not set here and 32"}),
            "");
  EXPECT_EQ(error_of([&] { arms(kRuns + tokens + axis_of("train.tokens=2560")); },
                     {"train.tokens is set: it is 2560 here and 1280 without that; match sets it"}),
            "");
  EXPECT_EQ(arms(kRuns + match + axis_of("model.ffn={gelu{hidden:64}}")).all.size(), 2u) << "another kind has a width";
  EXPECT_EQ(arms(kRuns + match + axis_of("model.ffn.swiglu.hidden=64") + "baseline: \"a=own\"").all.size(), 2u)
      << "the baseline's width stays";
  EXPECT_EQ(arms(kRuns + axis_of("model.ffn.swiglu.hidden=64")).all.size(), 2u);
}

// No width can make it equal; tokens can, and without match arms may differ.
TEST_F(GridArms, WithoutAFeedForwardNetworkAreNotMatchedByItsWidth) {
  const std::string alone = axis_of("model.ffn={none{}}");
  auto matched = [&](const std::string& text) {
    const Grid read = grid(kRuns + text);
    Arms out = resolve_arms(read, {});
    count_and_match(read, out, {});
    return out;
  };
  for (const char* match : {"match { parameters: 0.5 } ", "match { flops: 0.5 } "})
    EXPECT_EQ(error_of([&] { matched(match + alone); },
                       {"grid.txtpb: match: a=own has no feed-forward network (model.ffn={none{}})", "by: tokens"}),
              "")
        << match;
  const std::string bytes = "set: \"model.vocab=256\" ";
  const Arms by_tokens = matched(bytes + "match { flops: 0.5 by: tokens } " + alone);
  EXPECT_GT(by_tokens.all[1].experiment.train().tokens(), by_tokens.all[0].experiment.train().tokens());
  EXPECT_LT(matched(alone).all[1].params, by_tokens.all[0].params);
  EXPECT_EQ(error_of([&] { matched("match { parameters: 0.01 } " + alone + "baseline: \"a=own\""); },
                     {"a=plain", "give the baseline, which has no feed-forward network, more layers"}),
            "");
}

TEST_F(GridArms, DoNotSetThreads) {
  for (const std::string& text : {axis_of("train.threads=2"), kArms + std::string("set: \"train.threads=2\"")})
    EXPECT_EQ(error_of([&] { arms(kRuns + text); },
                       {"train.threads is set: it is 2 here and 1 without that; `threads: 1` of the grid sets it"}),
              "")
        << text;
}

// The grid of the users' page: an axis of rates is tuned, a metric of a task is asked for, and arms are matched within 1 %.
TEST_F(GridArms, AnAxisCanBeTuned) {
  write("gated-124m.txtpb", R"(
model { dim: 256 layers: 2 context: 64 mixer { softmax { heads: 4 gate {} } } ffn { swiglu { hidden: 768 } } }
data { tokenizer { characters {} } train { path: "text.txt" } val { fraction: 0.1 } }
optim { group { match: "layers.*.weight" rank: 2 muon { lr: 0.02 } } group { match: "*" adamw { lr: 3e-4 } } }
train { tokens: 5120 tokens_per_step: 128 micro_batch: 2 }
)");
  const std::string text = R"(
name: "gates"
base: "gated-124m.txtpb"
seeds: 1 seeds: 2 seeds: 3 seeds: 4 seeds: 5
axis { name: "gate"
  arm { name: "none" set: "model.mixer[*].softmax.gate=" }
  arm { name: "head" set: "model.mixer[*].softmax.gate.per_head=true" }
  arm { name: "channel" set: "model.mixer[*].softmax.gate.per_head=false" } }
axis { name: "lr" path: "optim.group[1].adamw.lr" value: "1e-4" value: "3e-4" value: "1e-3" }
baseline: "gate=none"
compare { metric: "val/bpb" metric: "task/mqar/accuracy" tune: "lr" paired_by: seed confidence: 0.95 }
match { parameters: 0.01 }                # adjust the FFN width until the arms agree within 1 %
)";
  const Grid gates = grid(text);
  ASSERT_TRUE(gates.tune);
  EXPECT_EQ(gates.tune->path, "optim.group[1].adamw.lr");
  EXPECT_EQ(gates.tune->values, (std::vector<std::string>{"1e-4", "3e-4", "1e-3"}));
  EXPECT_EQ(gates.tune->seeds, (std::vector<int64_t>{6, 7})) << "none of the study's";
  EXPECT_EQ(gates.tune->metric, "val/loss");
  EXPECT_EQ(gates.evals.tasks, std::vector<std::string>{"mqar"});
  Arms three = resolve_arms(gates, {});
  count_and_match(gates, three, {});
  ASSERT_EQ(three.all.size(), 3u);
  EXPECT_EQ(three.all[2].name, "gate=channel");
  EXPECT_EQ(three.baseline, 0u);
  const auto target = static_cast<double>(three.all[0].params);
  for (const Combination& arm : three.all) EXPECT_NEAR(static_cast<double>(arm.params), target, 0.01 * target);
  EXPECT_NE(three.all[2].matched_ffn, 0);
  EXPECT_EQ(cells_of(gates, three).size(), 15u);

  const auto with = [&](const std::string& from, const std::string& to) {
    std::string other = text;
    other.replace(other.find(from), from.size(), to);
    return other;
  };
  const std::string values = "tune: \"lr\"";
  EXPECT_EQ(error_of([&] { grid(with(values, "tune: \"rate\"")); }, {"compare: tune: rate", "axis"}), "");
  EXPECT_EQ(error_of([&] { grid(with(values, "tune: \"gate\"")); }, {"axis gate has arms", "value: \"..\""}), "");
  EXPECT_EQ(
      error_of([&] { grid(with("match {", "tune { path: \"x\" } match {")); }, {"compare.tune is lr", "tune { }"}), "");
  EXPECT_EQ(error_of([&] { grid(with("value: \"1e-4\"", "")); }, {"tune has 2 values"}), "");
  EXPECT_EQ(grid(with("task/mqar/", "task/overwrite/")).evals.tasks, std::vector<std::string>{"overwrite"});
  EXPECT_EQ(grid(with("match {", "eval { task: \"selective_copy\" } match {")).evals.tasks,
            (std::vector<std::string>{"selective_copy", "mqar"}));
  EXPECT_EQ(error_of([&] { grid(with("task/mqar/", "task/mqr/")); }, {"task/mqr/accuracy", "Did you mean 'mqar'"}), "");
  EXPECT_EQ(error_of([&] { grid(with("paired_by: seed", "paired_by: arm")); }, {"paired_by", "arm"}), "");
}

TEST_F(GridArms, HaveABoundInNumberAndNames) {
  std::string axes;
  for (char name = 'a'; name <= 'k'; ++name)
    axes += str("axis { name: \"", std::string(1, name), "\" arm { name: \"x\" } arm { name: \"y\" } } ");
  EXPECT_EQ(error_of([&] { arms(kRuns + axes); }, {"the axes up to k make 2048 arms", "1024 are the most"}), "");
  const std::string letters(50, 'n'),
      tune = "tune { path: \"optim.group[1].adamw.lr\" value: \"1\" value: \"2\" value: \"";
  std::string names;
  for (char name = 'a'; name <= 'b'; ++name)
    names += str("axis { name: \"", letters, std::string(1, name), "\" arm { name: \"", letters, "\" } } ");
  EXPECT_EQ(error_of([&] { arms(kRuns + names); }, {"has 205 letters", "192 are the most", "shorter names"}), "");
  const std::string one = names.substr(0, names.find("} } ") + 4);
  EXPECT_EQ(arms(kRuns + one).all[0].name.size(), 102u);
  EXPECT_EQ(error_of([&] { arms(kRuns + one + tune + "3." + std::string(100, '0') + "\" seeds: 8 }"); },
                     {"has 204 letters with a tuned value"}),
            "");
}

// A program that fails once, or always, in place of weft.
TEST_F(GridArms, ARunThatFailsIsStartedOnceMore) {
  const auto run = [&](const std::string& name, const std::string& fails, const Evals& evals = {}) {
    write("program",
          "#!/bin/sh\nif [ $1 = eval ]; then echo x >> $2/attempts; echo 'error: no answer' >&2; exit 1; fi\nfor word; "
          "do case $word in --run=*) run=${word#--run=};; esac; done\n"
          "mkdir -p $run && echo x >> $run/attempts\n" +
              fails +
              "\necho '{\"step\":10,\"tokens\":1280,\"time\":1,\"wall\":1,\"kind\":\"val\",\"val/loss\":2.5}' > "
              "$run/metrics.jsonl\n");
    std::filesystem::permissions(path("program"), std::filesystem::perms::owner_all);
    const Grid one = grid(kRuns + std::string("keep_optimizer: true axis { name: \"a\" arm { name: \"x\" } }"));
    const Arms all = resolve_arms(one, {});
    const std::vector<Cell> cells = cells_of(one, all);
    const auto results = run_cells(one, all, cells,
                                   {.program = path("program"),
                                    .folder = path(name),
                                    .evals = evals,
                                    .notes_hparams = false,
                                    .is_stopping = [] { return false; },
                                    .say = [](std::string_view) {}});
    const std::string attempts = io::read_file(run_folder(path(name), cells[0]) + "/attempts");
    return std::pair(results[0].value(), static_cast<int64_t>(attempts.size()) / 2);
  };
  const auto [once, of_once] =
      run("once", "[ $(wc -l < $run/attempts) -ge 2 ] || { echo 'error: broke' >&2; exit 1; }");
  EXPECT_EQ(once.state, CellResult::State::complete) << once.problem;
  EXPECT_EQ(once.metrics.at("val/loss"), 2.5);
  EXPECT_EQ(of_once, 2);
  const auto [always, of_always] = run("always", "echo 'error: broke' >&2; exit 1");
  EXPECT_EQ(always.state, CellResult::State::failed);
  EXPECT_EQ(always.problem, "exit code 1: broke");
  int of_fix = 0;
  for (const char* text : {"error: no file x\\n       check the path\\n",
                           "error: no file x\\n  where: here.cpp:3\\n  fix: check the path\\n"}) {
    const auto [fixed, of_fixed] = run(str("fixed", of_fix++), str("printf '", text, "' >&2; exit 2"));
    EXPECT_EQ(fixed.problem, "exit code 2: no file x (fix: check the path)");
  }
  EXPECT_EQ(of_always, 2);
  const auto [refused, of_refused] = run("refused", "exit 2");
  EXPECT_EQ(refused.state, CellResult::State::failed);
  EXPECT_EQ(of_refused, 1) << "it would be refused again";
  const auto [diverged, of_diverged] = run("diverged", "exit 5");
  EXPECT_EQ(diverged.state, CellResult::State::diverged);
  EXPECT_EQ(of_diverged, 1) << "it would diverge again";
  const auto [unanswered, of_unanswered] = run("unanswered", "", {.lengths = {16}});
  EXPECT_EQ(unanswered.state, CellResult::State::failed);
  EXPECT_EQ(unanswered.problem, "evaluation: exit code 1: no answer");
  EXPECT_EQ(of_unanswered, 2) << "trained once, asked once";
}

// Of "0:01:07".
double seconds_behind(const std::string& text, const std::string& start) {
  const size_t at = text.find(start);
  int hours = 0, minutes = 0, seconds = 0;
  if (at == std::string::npos ||
      std::sscanf(text.c_str() + at + start.size(), "%d:%2d:%2d", &hours, &minutes, &seconds) != 3)
    return -1;
  return 3600 * hours + 60 * minutes + seconds;
}

// What the command line gave is part of the study; a comment of the grid is none.
TEST_F(GridArms, OverridesOfTheCommandLineAreNoComments) {
  const std::string text = kRuns + std::string(kArms) + "\n# --set train.tokens=640";
  Grid one = grid(text);
  io::make_folders(path("plain"));
  claim_folder(path("plain"), one, {});
  EXPECT_EQ(stored_grid(path("plain")).set, std::vector<std::string>{"train.tokens=1280"});
  add_override(one, "model.layers=2"), add_override(one, "eval.every=0");
  io::make_folders(path("study"));
  claim_folder(path("study"), one, {});
  EXPECT_EQ(stored_grid(path("study")).set,
            (std::vector<std::string>{"train.tokens=1280", "model.layers=2", "eval.every=0"}));
  EXPECT_EQ(overrides_in(one.text), (std::vector<std::string>{"model.layers=2", "eval.every=0"}));
  EXPECT_EQ(error_of([&] { read_grid(path("study/grid.txtpb")); },
                     {"study/grid.txtpb: has overrides that weft ablate has written", "--set"}),
            "");
  EXPECT_EQ(error_of([&] { add_override(one, "name=a\nb"); }, {"has a line break"}), "");
}

// Protobuf would print that they are none.
TEST_F(GridArms, BytesThatAreNoUtf8MakeNoNoiseInAStudy) {
  const std::string set = "set: \"log.sample_prompt=l\xe9\" ",
                    arm =
                        "axis { name: \"a\" arm { name: \"x\" } arm { name: \"y\" set: \"log.sample_prompt=\xe9\" } } ";
  io::make_folders(path("study"));
  ::testing::internal::CaptureStderr();
  for (const std::string& text : {kRuns + set + arm, kRuns + set + arm + "seeds: 4"})
    claim_folder(path("study"), grid(text), {});
  EXPECT_EQ(error_of([&] { claim_folder(path("study"), grid(kRuns + arm), {}); }, {"holds the study of another"}), "");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

// A report of runs that begin with another config would be of none of those that are finished.
TEST_F(GridArms, AChangedBaseDoesNotReplaceAStudy) {
  const std::string text = kRuns + std::string(kArms), base = io::read_file(path("tiny.txtpb")), study = path("study");
  const auto claim = [&](const std::string& grid_text) {
    const Grid one = grid(grid_text);
    claim_folder(study, one, cells_of(one, resolve_arms(one, {})));
  };
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string other = base;
    other.replace(other.find(from), from.size(), to);
    write("tiny.txtpb", other);
  };
  const auto store = [&](const std::string& folder, const std::string& name, const std::string& state) {
    io::make_folders(study + folder + "/results");
    write("study" + folder + "/results/" + name + ".json",
          R"({"state": ")" + state + R"(", "problem": "", "metrics": {"val/loss": 3}})");
  };
  io::make_folders(study);
  claim(text);
  const Grid one = grid(text);
  const std::vector<Cell> cells = cells_of(one, resolve_arms(one, {}));
  with("dim: 16", "dim: 32");
  claim(text);  // nothing is finished
  write("tiny.txtpb", base);
  claim(text);

  store("", cells[0].folder, "complete"), store("", cells[1].folder, "failed");
  for (const Cell& cell : cells) {
    io::make_folders(study + "/cells/" + cell.folder);
    write("study/cells/" + cell.folder + "/config.txtpb", config::to_text(cell.experiment));
  }
  const std::string kept = io::read_file(study + "/base.txtpb");
  for (const auto& [from, to] : {std::pair("dim: 16", "dim: 32"), std::pair("path: \"text.txt\"", "path: \"b.txt\""),
                                 std::pair("log { every: 5", "log { every: 6")}) {
    with(from, to);
    for (const std::string& grid_text : {text, text + "seeds: 4"})
      EXPECT_EQ(
          error_of([&] { claim(grid_text); }, {study + " holds 1 finished run of another base config than", "--out"}),
          "")
          << to;
    EXPECT_EQ(io::read_file(study + "/base.txtpb"), kept);
    EXPECT_EQ(io::read_file(study + "/grid.txtpb"), text);
  }
  with("dim: 16", "dim: 32");
  store("", cells[1].folder, "diverged"), store("/tuning", "gate=none,tune=1e-3,seed=8-00000000", "complete");
  EXPECT_EQ(error_of([&] { claim(text); }, {"holds 3 finished runs of another", "(model.dim was 16 and is 32)"}), "");
  std::filesystem::remove_all(study + "/tuning");

  with("train { tokens: 5120", "train { tokens: 2560");  // which the grid sets for all its runs
  claim(text);
  with("path: \"text.txt\"", str("path: \"", path(""), "/other/text.txt\""));  // moved: what is in it the runs see
  claim(text + "seeds: 4");
  write("tiny.txtpb", "# The same.\nname: \"other\" " + base);
  claim(text + "seeds: 4");
}

TEST_F(GridArms, PathsInOverridesAreRelativeToTheGrid) {
  write("other.txt", "another text\n");
  const std::string set = R"(set: "data.train={path:'other.txt'}" )",
                    axis = R"(axis { name: "text" arm { name: "a" set: "data.val={path:\"../val.txt\"}" } } )",
                    values = R"(axis { name: "more" path: "data.train[0].path" value: "b.txt" value: "c.txt" } )",
                    speed = R"(compare { metric: "speed/tokens_per_second" } )";
  const std::string above = std::filesystem::path(path("x")).parent_path().parent_path().string();
  const Arms all = arms(kRuns + set + axis + values + speed);
  ASSERT_EQ(all.all.size(), 2u);
  EXPECT_EQ(all.all[1].name, "text=a,more=c.txt");
  EXPECT_EQ(all.all[1].experiment.data().train(0).path(), path("c.txt"));
  EXPECT_EQ(all.all[1].experiment.data().val().path(), above + "/val.txt");
  Grid one = grid(kRuns + set + kArms);
  EXPECT_EQ(resolve_arms(one, {}).all[0].experiment.data().train(0).path(), path("other.txt"));
  io::make_folders(path("study"));
  add_override(one, "data.val={path:'val.txt'}");  // of the command line
  claim_folder(path("study"), one, {});
  const Arms kept = resolve_arms(stored_grid(path("study")), {});
  EXPECT_EQ(kept.all[0].experiment.data().train(0).path(), path("other.txt"));
  EXPECT_EQ(kept.all[0].experiment.data().val().path(), (std::filesystem::current_path() / "val.txt").string());
  EXPECT_EQ(cells_of(one, resolve_arms(one, {}))[0].folder, cells_of(one, kept)[0].folder);
}

TEST_F(GridArms, FaultsOfAGridNameIt) {
  EXPECT_EQ(error_of([&] { grid(kRuns + std::string(kArms) + "frobs: 1"); }, {"the grid has no field 'frobs'"}), "");
  EXPECT_EQ(error_of([&] { grid(kRuns + std::string(kArms) + "baseline: \"gate=z\""); },
                     {"grid.txtpb: baseline: axis gate: z: no such arm"}),
            "");
  for (const auto& [text, what] :
       {std::pair("gate=", "names no arm of axis gate"), std::pair("gate", "names no arm of axis gate"),
        std::pair("gate=none,gate=head", "names two arms of axis gate")})
    EXPECT_EQ(error_of([&] { grid(str(kRuns, kArms, "baseline: \"", text, "\" ")); },
                       {str("grid.txtpb: baseline: \"", text, "\" ", what), "AXIS=ARM once"}),
              "");
}

TEST_F(GridArms, AFaultOfTheGridIsNotThatOfItsTuning) {
  const std::string tune =
      R"(tune { path: "optim.group[*].adamw.lr" value: "1e-3" value: "2e-3" value: "4e-3" seeds: 8 } )";
  try {
    arms(kRuns + tune + "set: \"model.layer=2\" " + kArms);
    FAIL() << "model.layer is no field";
  } catch (const config::ConfigError& e) {
    EXPECT_NE(e.problem().find("grid.txtpb: "), std::string::npos) << e.problem();
    EXPECT_EQ(e.problem().find("tune"), std::string::npos) << e.problem();
  }
}

TEST_F(GridArms, LengthsOfEvaluationsHaveABound) {
  for (const char* length : {"0", "2147483648"})
    for (const char* key : {"length", "task_length"})
      EXPECT_EQ(error_of([&] { grid(kRuns + std::string(kArms) + "eval { " + key + ": " + length + " }"); },
                         {str("grid.txtpb: eval: length ", length), "Use 1 to 2147483647 tokens"}),
                "");
  EXPECT_EQ(grid(kRuns + std::string(kArms) + "eval { length: 2147483647 }").evals.lengths[0], 2147483647);
}

TEST_F(GridArms, ATableShowsTheRunsAtWorkAndTheTimeThatIsLeft) {
  const Grid one = grid(kRuns + std::string("seeds: 4 ") + kArms);
  Arms all = resolve_arms(one, {});
  count_and_match(one, all, {});
  const std::vector<Cell> cells = cells_of(one, all);
  const auto is_at = [&](size_t cell, int step) {
    const std::string folder = run_folder(path("study"), cells[cell]);
    std::filesystem::create_directories(folder);
    io::write_file_atomically(folder + "/metrics.jsonl", str("{\"step\":", step, ",\"train/loss\":2.5}\n"));
  };
  is_at(1, 5), is_at(2, 10);  // one that goes on in its middle, one that is only evaluated
  config::Experiment shorter = all.all[0].experiment;
  shorter.mutable_train()->set_tokens(640);
  EXPECT_EQ(cell_of(0, "a", 3, shorter, {}).steps, 5) << "a try has the steps of its own config";
  const auto begin = std::chrono::steady_clock::now();
  CellTable table(path("study"), all, cells, {0, 1, 2});
  EXPECT_EQ(table.lines(), std::vector<std::string>{"1 of 4 runs done"});
  table.begin(0);
  std::vector<std::string> lines = table.lines();
  ASSERT_EQ(lines.size(), 2u);
  for (const std::string& part : {cells[0].folder, std::string("0/10"), std::string("starting")})
    EXPECT_NE(lines[0].find(part), std::string::npos) << part << " in " << lines[0];
  std::this_thread::sleep_for(std::chrono::seconds(1));
  is_at(0, 5);
  lines = table.lines();
  const double most_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  for (const char* part : {"5/10", " 50%", "loss 2.5000"})
    EXPECT_NE(lines[0].find(part), std::string::npos) << part << " in " << lines[0];
  // Half of a run is done; half of it and half of another one are left.
  const double left_s = seconds_behind(lines[1], "about ");
  EXPECT_GE(left_s, 1.5);
  EXPECT_LE(left_s, 2.2 * most_s + 0.6);
  const std::string said = table.end(0, "val/loss 2.5"), start = str("2/4 ", cells[0].folder, " val/loss 2.5, ");
  const double whole_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  ASSERT_TRUE(said.starts_with(start)) << said;
  EXPECT_GE(seconds_behind(said, start), 1);
  EXPECT_LE(seconds_behind(said, start), whole_s + 0.5) << said;
  EXPECT_GE(seconds_behind(said, ", about "), 0) << said;
  EXPECT_LE(seconds_behind(said, ", about "), whole_s + 0.5) << "half of another one is left: " << said;
  table.begin(2);
  EXPECT_NE(table.lines()[0].find("10/10"), std::string::npos);
  table.end(2, "asked again"), table.begin(1), table.end(1, "done");
  EXPECT_EQ(table.lines(), std::vector<std::string>{"4 of 4 runs done, about 0:00:00 left"});
}

}  // namespace
}  // namespace weft::study
