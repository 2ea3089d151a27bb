// What is done with runs: naming their checkpoints, the best one, reports, analyses, texts that do not serve.
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "tests/trainers/process.h"
#include "tests/trainers/run_fixture.h"

namespace weft {
namespace {

class RunUse : public test::RunFixture {};
namespace fs = std::filesystem;

// Every command that takes a run takes one of its checkpoints, in four forms.
TEST_F(RunUse, ACheckpointIsNamedByStepBestLatestOrItsFolder) {
  ASSERT_EQ(test::run_weft(train("a", {"checkpoint.keep_last=8"})).exit_code, 0);
  auto step_of = [&](const std::string& name) {
    auto result = test::run_weft({"eval", path(name), "--json"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    size_t at = result.out.find("\"step\": ");
    return at == std::string::npos ? -1 : std::stoi(result.out.substr(at + 8));
  };
  EXPECT_EQ(step_of("a"), 40);
  EXPECT_EQ(step_of("a/"), 40);
  EXPECT_EQ(step_of("a@latest"), 40);
  EXPECT_EQ(step_of("a@15"), 15);
  EXPECT_EQ(step_of("a/checkpoints/step-00000020"), 20);
  EXPECT_EQ(step_of("a/checkpoints/step-00000020/"), 20);
  EXPECT_EQ(step_of("a@best") % 10, 0);
  EXPECT_TRUE(io::file_exists(path("a/eval/step-00000015.json")));
  EXPECT_NE(test::run_weft({"eval", path("a@15")}).out, test::run_weft({"eval", path("a")}).out);
  auto sampled = test::run_weft({"sample", path("a@15"), "--prompt", "line", "--tokens", "1e1", "--json"});
  EXPECT_NE(sampled.out.find("\"step\": 15"), std::string::npos) << sampled.err;
  auto analysed = test::run_weft({"analyse", path("a@15"), "--rows", "1", "--json"});
  EXPECT_NE(analysed.out.find("\"step\": 15"), std::string::npos) << analysed.err;
  auto inspected = test::run_weft({"inspect", path("a@15"), "--json"});
  EXPECT_NE(inspected.out.find("\"kind\": \"checkpoint\""), std::string::npos) << inspected.err;
  EXPECT_NE(test::run_weft({"inspect", path("a")}).out.find("best"), std::string::npos);
  auto resumed = test::run_weft(train("b", {"--resume", path("a@35")}));
  EXPECT_NE(resumed.err.find("resumed at step 35"), std::string::npos) << resumed.err;
  fs::rename(folder_ / "b", folder_ / "b@1");  // a folder that is there is taken as it is
  EXPECT_EQ(step_of("b@1"), 40);
  EXPECT_EQ(step_of("b@1@35"), 35);
}

// An evaluation of other data, at other lengths or an analysis of other rows stands beside the run's own.
TEST_F(RunUse, ResultsWithArgumentsHaveNamesOfTheirOwn) {
  ASSERT_EQ(test::run_weft(train("a")).exit_code, 0);
  write("v.txt", "line 7 of a text that repeats itself\nline 9 of a text that repeats itself\n");
  auto run = [&](std::vector<std::string> words) {
    auto result = test::run_weft(words);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result.out;
  };
  const std::string other = "data.val.path=" + path("v.txt");
  run({"eval", path("a")});
  run({"analyse", path("a")});
  const std::string eval = io::read_file(path("a/eval/step-00000040.json"));
  const std::string analysis = io::read_file(path("a/eval/analysis-00000040.json"));
  std::vector<std::string> printed = {
      run({"eval", path("a"), other, "--json"}), run({"eval", path("a"), "--lengths", "16,64", other, "--json"}),
      run({"eval", path("a"), "--lengths", "16", "--json"}), run({"analyse", path("a"), other, "--json"}),
      run({"analyse", path("a"), "--rows", "1", "--json"})};
  EXPECT_EQ(io::read_file(path("a/eval/step-00000040.json")), eval);
  EXPECT_EQ(io::read_file(path("a/eval/analysis-00000040.json")), analysis);
  std::vector<std::string> kept;
  for (const std::string& name : io::list_folder(path("a/eval")))
    if (name.ends_with(".json") && !name.starts_with("data-")) kept.push_back(io::read_file(path("a/eval/" + name)));
  EXPECT_EQ(kept.size(), 7u);
  for (const std::string& text : printed)
    EXPECT_NE(std::find(kept.begin(), kept.end(), text), kept.end()) << "not kept as printed: " << text;
  EXPECT_NE(printed[1].find("\"--lengths 16,64\""), std::string::npos) << printed[1];
  run({"eval", path("a"), other});
  run({"eval", path("a"), "--lengths", "32"});  // the context: the run's own again
  EXPECT_EQ(io::read_file(path("a/eval/step-00000040.json")), eval);
}

// A run on a task: its validation, its accuracy by size and group, and its loss by position.
TEST_F(RunUse, ATaskIsTrainedAndScored) {
  const std::vector<std::string> words =
      train("t", {"data={task{mqar{vocab:64,pairs:4},test_rows:32}}", "log.samples_every=0", "eval.every=20"});
  auto trained = test::run_weft(words);
  ASSERT_EQ(trained.exit_code, 0) << trained.err;
  EXPECT_NE(trained.err.find("data: task mqar of 64 ids, 32 rows of validation"), std::string::npos) << trained.err;
  auto run = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"eval", path("t")});
    auto result = test::run_weft(arguments);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result.out;
  };
  const std::string positions = run({"--by-position"});
  for (const char* part :
       {"length 32: validation loss", "(128 targets)", "after          8-15 tokens: ", "after         16-3"})
    EXPECT_NE(positions.find(part), std::string::npos) << positions;
  const std::string scored = run({"--tasks", "mqar,copy", "--rows", "16"});
  for (const char* part : {"mqar of 32 tokens, 1 pairs: accuracy ", "mqar of 32 tokens, 8 pairs: accuracy ",
                           "(16 rows)", "  distance 8-15", "copy of 32 tokens, 16 items: accuracy "})
    EXPECT_NE(scored.find(part), std::string::npos) << scored;
  const std::string longer = run({"--tasks", "mqar", "--lengths", "32,64", "--rows", "8", "--json"});
  for (const char* part : {"\"length\": 64", "\"pairs\": 16", "\"whole_rows\": ", "\"accuracy_se\": "})
    EXPECT_NE(longer.find(part), std::string::npos) << longer;
  for (const std::vector<std::string>& more :
       {std::vector<std::string>{"--tasks", "mqar", "--lengths", "4611686018427387904"},
        std::vector<std::string>{"--lengths", "2147483648"}, std::vector<std::string>{"--ranks", "1000000000"}}) {
    std::vector<std::string> asked{"eval", path("t")};
    asked.insert(asked.end(), more.begin(), more.end());
    const auto refused = test::run_weft(asked);
    EXPECT_EQ(refused.exit_code, 2) << refused.err;
    for (const std::string& part : {more[more.size() - 2], more.back(), std::string("Use ")})
      EXPECT_NE(refused.err.find(part), std::string::npos) << part << "\n" << refused.err;
  }
  // One form of a task by its name, one with numbers of its own in place of a text or task, and rows that are too short.
  const std::string forms = run({"--tasks", "overwrite,delayed_copy,parity", "--lengths", "40", "--rows", "8"});
  for (const char* part : {"overwrite of 40 tokens, 4 pairs: accuracy ", "overwrite of 40 tokens, 8 pairs: accuracy ",
                           "delayed_copy of 40 tokens, 16 items: accuracy ", "parity of 40 tokens: accuracy "})
    EXPECT_NE(forms.find(part), std::string::npos) << part << "\n" << forms;
  const std::string other =
      run({"data={task{mqar{vocab:64,pairs:3,updates:2}}}", "--tasks", "overwrite", "--rows", "8"});
  EXPECT_NE(other.find("overwrite of 32 tokens, 3 pairs: accuracy "), std::string::npos) << other;
  for (const auto& [name, needed] : {std::pair("mqar", "16"), std::pair("overwrite", "40")}) {
    const auto refused = test::run_weft({"eval", path("t"), "--tasks", name, "--lengths", "7"});
    EXPECT_EQ(refused.exit_code, 2) << refused.err;
    for (const std::string& part :
         {std::string("--tasks ") + name + " in rows of 7 tokens: ", std::string("--lengths ") + needed})
      EXPECT_NE(refused.err.find(part), std::string::npos) << part << "\n" << refused.err;
  }
  auto wrong = test::run_weft({"eval", path("t"), "--tasks", "mqra"});
  EXPECT_EQ(wrong.exit_code, 2);
  EXPECT_NE(wrong.err.find("mqar"), std::string::npos) << wrong.err;
  auto again = test::run_weft(words);
  EXPECT_NE(again.err.find("nothing to do"), std::string::npos) << again.err;
}

TEST_F(RunUse, SaysWhichCheckpointsThereAre) {
  ASSERT_EQ(test::run_weft(train("a", {"eval.every=0"})).exit_code, 0);
  auto refused = [&](const std::vector<std::string>& words, const std::vector<std::string>& parts) {
    auto result = test::run_weft(words);
    EXPECT_EQ(result.exit_code, 2) << result.err;
    EXPECT_EQ(result.err.find("--run"), std::string::npos) << "advises training: " << result.err;
    for (const std::string& part : parts)
      EXPECT_NE(result.err.find(part), std::string::npos) << part << "\n" << result.err;
  };
  refused({"eval", path("a@7")}, {"no checkpoint of step 7", "steps 35, 40 (best 40)"});
  refused({"eval", path("a@bets")}, {"'bets' is no step. Did you mean 'best'?"});
  refused({"sample", path("x")}, {"x is not a run: there is no such folder.", "RUN@best"});
  fs::rename(folder_ / "a", folder_ / "shakes");
  refused({"sample", path("shaks")}, {"Did you mean '" + path("shakes") + "'?"});
  refused({"eval", path("tiny.txtpb")}, {"is not a run but a file", "A config is trained first"});
  refused({"eval", path("shakes/checkpoints")}, {"holds checkpoints, but is no run", "the one above"});
  fs::copy(folder_ / "shakes/checkpoints/step-00000040", folder_ / "alone", fs::copy_options::recursive);
  refused({"analyse", path("alone")}, {"lies outside of its run"});
  auto wrong = test::run_weft(train("c", {"--resume", "atuo"}));
  EXPECT_EQ(wrong.exit_code, 2) << wrong.err;
  EXPECT_NE(wrong.err.find("Did you mean 'auto'?"), std::string::npos) << wrong.err;
  write("shakes/checkpoints/step-00000035/model.safetensors", "damaged");
  auto damaged = test::run_weft({"eval", path("shakes@35")});
  EXPECT_EQ(damaged.exit_code, 1) << "one that is named is not replaced by another: " << damaged.out;
}

// The validation text has nothing of the training text, so that the loss on it is lowest at first.
TEST_F(RunUse, TheBestCheckpointIsSavedAndKept) {
  write("text.txt", std::string(6000, 'a'));
  write("v.txt", "0123456789 and so on 9876543210 in other words\n");
  const std::vector<std::string> how{"data.tokenizer={bytes{}}", "data.val.path=" + path("v.txt"),
                                     "checkpoint.keep_last=1"};
  auto with = [&](std::vector<std::string> more) {
    more.insert(more.end(), how.begin(), how.end());
    return more;
  };
  for (const char* every : {"checkpoint.every=0", "checkpoint.every=5"}) {
    SCOPED_TRACE(every);
    fs::remove_all(folder_ / "a");
    auto result = test::run_weft(train("a", with({every})));
    ASSERT_EQ(result.exit_code, 0) << result.err;
    auto step = [&] { return test::run_weft({"eval", path("a@best"), "--json"}).out; };
    EXPECT_NE(step().find("\"step\": 10,"), std::string::npos) << step();
    EXPECT_TRUE(io::file_exists(path("a/checkpoints/step-00000010/manifest")));
    fs::remove_all(folder_ / "a/checkpoints/step-00000040");
    result = test::run_weft(train("a", with({every})));
    ASSERT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(step().find("\"step\": 10,"), std::string::npos) << "also after a resume: " << step();
  }
  auto result = test::run_weft(train("b", with({"checkpoint.every=0", "checkpoint.keep_best=false"})));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_FALSE(io::file_exists(path("b/checkpoints/step-00000010")));
  result = test::run_weft({"eval", path("b@best")});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_NE(result.err.find("was after step 10, whose checkpoint is not kept"), std::string::npos) << result.err;
}

// What a reader of the report wants to know of the run, and the diagnostics that it took.
TEST_F(RunUse, TheReportShowsDiagnosticsAndSaysWhatWasTrained) {
  auto result = test::run_weft(train("a", {"log.diagnostics_every=5", "log.analysis_every=20", "seed=17"}));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  std::string html = io::read_file(path("a/report.html"));
  for (const char* part :
       {"<th>mixer</th><td>softmax { heads: 2 ", "dropout: 0.1", "<th>seed</th><td>17</td>", "<th>build</th><td>weft ",
        "commit", "<th>machine</th>", "muon: layers.*.weight, 2 dimensions", "adamw: all others",
        "<h2>Diagnostics</h2>", "Entropy of attention weights (mixer.entropy)", "layer 0, head 1",
        "Documents whose first token is a sink", "<h2>Analyses</h2>", "Importance of heads"})
    EXPECT_NE(html.find(part), std::string::npos) << part;
}

TEST_F(RunUse, AnalyseGroupsItsLinesAndDrawsThem) {
  ASSERT_EQ(test::run_weft(train("a")).exit_code, 0);
  auto result = test::run_weft({"analyse", path("a")});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  for (const char* part :
       {"Importance of heads (mixer.head_importance)", "layer \\ head", "Loss without the least important heads",
        "States behind the layers", "embedding", "the largest 8 of 32:  token"})
    EXPECT_NE(result.out.find(part), std::string::npos) << part << "\n" << result.out;
  EXPECT_NE(io::read_file(path("a/eval/analysis-00000040.svg")).find("<svg"), std::string::npos);
  const std::string programs = getenv("PATH");
  ASSERT_EQ(setenv("PATH", folder_.c_str(), 1), 0);  // without gnuplot
  result = test::run_weft({"analyse", path("a"), "--rows", "1"});
  setenv("PATH", programs.c_str(), 1);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.err.find("no picture: gnuplot: cannot be started"), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("install gnuplot"), std::string::npos) << result.err;
}

// Beside its numbers, where they make a curve.
TEST_F(RunUse, EvalDrawsLossesOverLengthsAndPositions) {
  ASSERT_EQ(test::run_weft(train("a")).exit_code, 0);
  const auto picture_of = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"eval", path("a"), "--json"});
    const auto result = test::run_weft(more);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    const auto json = nlohmann::json::parse(result.out);
    return json.contains("picture") ? io::read_file(json["picture"].get<std::string>()) : std::string();
  };
  EXPECT_EQ(picture_of({}), "") << "one number";
  EXPECT_EQ(picture_of({"--lengths", "16"}), "");
  const std::string lengths = picture_of({"--lengths", "16,32,64"}), positions = picture_of({"--by-position"}),
                    both = picture_of({"--lengths", "16,64", "--by-position"});
  for (const std::string* svg : {&lengths, &positions, &both}) EXPECT_NE(svg->find("<svg"), std::string::npos);
  EXPECT_NE(lengths.find("Loss by length of the rows"), std::string::npos);
  EXPECT_EQ(lengths.find("Loss by position"), std::string::npos);
  EXPECT_NE(positions.find("Loss by position"), std::string::npos);
  for (const char* part : {"Loss by length of the rows", "Loss by position", "length 16", "length 64"})
    EXPECT_NE(both.find(part), std::string::npos) << part;
  int num_pictures = 0;
  for (const std::string& name : io::list_folder(path("a/eval")))
    if (name.ends_with(".svg")) {
      ++num_pictures;
      EXPECT_TRUE(io::file_exists(path("a/eval/") + name.substr(0, name.size() - 4) + ".json")) << name;
    }
  EXPECT_EQ(num_pictures, 3);
}

TEST_F(RunUse, ATextThatIsTooShortIsNamed) {
  write("short.txt", "too short");
  auto refused = [&](const std::vector<std::string>& more, const std::vector<std::string>& parts) {
    auto result = test::run_weft(train("a", more));
    EXPECT_EQ(result.exit_code, 2) << result.err;
    for (const std::string& part : parts)
      EXPECT_NE(result.err.find(part), std::string::npos) << part << "\n" << result.err;
    fs::remove_all(folder_ / "a");
  };
  refused({"data.train.path=" + path("short.txt")},
          {"data.train[0].path is " + path("short.txt") + ", which gives 8 tokens beside the part for validation",
           "a row of model.context 32 needs 33", "at most model.context=7"});
  write("v.txt", "x");
  refused({"data.tokenizer={bytes{}}", "data.val.path=" + path("v.txt")},
          {"data.val.path gives 1 token", path("v.txt")});
}

// JSONL whose text is in another field than "text".
TEST_F(RunUse, TheFieldOfJsonlIsSaidInTheConfig) {
  std::string lines;
  for (int i = 0; i < 200; ++i)
    lines += "{\"body\": \"line " + std::to_string(i) + " of a text that repeats itself\"}\n";
  write("in.jsonl", lines);
  auto wrong = test::run_weft(train("a", {"data.train.path=" + path("in.jsonl")}));
  EXPECT_EQ(wrong.exit_code, 1);
  EXPECT_NE(wrong.err.find("in.jsonl:1: no field \"text\""), std::string::npos) << wrong.err;
  EXPECT_NE(wrong.err.find("texts are \"body\""), std::string::npos) << wrong.err;
  auto right =
      test::run_weft(train("a", {"data.train.path=" + path("in.jsonl"), "data.train.field=body", "train.tokens=1280"}));
  EXPECT_EQ(right.exit_code, 0) << right.err;
  right = test::run_weft({"data", "tokenize", path("in.jsonl"), "--field", "body", "--out", path("shards")});
  EXPECT_EQ(right.exit_code, 0) << right.err;
}

// Before a length is evaluated: a list that fails at its second one would lose the first one's result.
TEST_F(RunUse, LengthsThatAModelHasNothingForAreRefused) {
  auto refused = [&](const std::string& run, const std::string& model, const std::string& why) {
    const auto trained = test::run_weft(train(run, {model, "model.layers=2", "train.tokens=640"}));
    ASSERT_EQ(trained.exit_code, 0) << trained.err;
    const auto got = test::run_weft({"eval", path(run), "--lengths", "16,64"});
    EXPECT_EQ(got.exit_code, 2) << got.out;
    EXPECT_EQ(got.out, "");
    EXPECT_NE(got.err.find("--lengths 64: the model " + why + " for 32 tokens"), std::string::npos) << got.err;
  };
  refused("a", "model.position={learned{}}", "has learned positions");
  refused("b", "model.mixer=[{softmax{heads:2}},{deconstructed{kind:random_embedding heads:2}}]",
          "reads a fixed sequence (model.mixer[1])");
  refused("c", "model.mixer=[{simplified{kind:super heads:2}}]", "mixes values by a triangle (model.mixer[0])");
}

TEST(Tasks, RegressionPrintsErrorsByTheNumberOfPairs) {
  const std::vector<std::string> words{"task", "regression", "--steps", "1", "--seeds", "1", "--mixer", "gla"};
  const auto linear = test::run_weft(words);
  ASSERT_EQ(linear.exit_code, 0) << linear.err;
  for (const char* row : {"| squared error after so many pairs | 0 | 1 | 2 |", "\n| gla | ", "\n| a gradient step | ",
                          "\n| ridge | ", "| last of ridge |\n"})
    EXPECT_NE(linear.out.find(row), std::string::npos) << row << "\n" << linear.out;
  std::vector<std::string> more = words;
  more.push_back("--piecewise");
  const auto piecewise = test::run_weft(more);
  ASSERT_EQ(piecewise.exit_code, 0) << piecewise.err;
  EXPECT_NE(piecewise.out, linear.out);
  const auto refused = test::run_weft({"task", "trigger", "--piecewise", "--steps", "1"});
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_NE(refused.err.find("run weft task regression"), std::string::npos) << refused.err;
}

}  // namespace
}  // namespace weft
