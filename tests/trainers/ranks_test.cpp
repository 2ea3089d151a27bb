// Trainings over several ranks, which are threads, through the command: their losses are those of one rank, and they continue to the same bits.
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/trainers/process.h"
#include "tests/trainers/run_fixture.h"
#include "weft/core/error.h"
#include "weft/io/metrics.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

class Ranks : public test::RunFixture {
 protected:
  // Losses of the lines "train" and "val" of a run's records.
  std::vector<double> losses(const std::string& run) const {
    std::vector<double> out;
    for (const auto& record : io::apply_rewinds(io::read_metrics(path(run) + "/metrics.jsonl")))
      if (auto loss = record.value(record.kind + "/loss")) out.push_back(*loss);
    return out;
  }
  test::ProcessResult run(const std::string& name, int ranks, std::vector<std::string> more) const {
    more.push_back("--ranks");
    more.push_back(std::to_string(ranks));
    return test::run_weft(train(name, more));
  }
};

struct Mesh {
  int ranks;
  std::vector<std::string> overrides;
};

const std::vector<Mesh>& meshes() {
  static const std::vector<Mesh> all = {
      {2, {"parallel.data=2", "train.micro_batch=1"}},
      {2, {"parallel.context=2"}},
      {3, {"parallel.context=3", "parallel.layout=striped", "parallel.block=4"}},
      {4, {"parallel.data=2", "parallel.context=2", "train.micro_batch=1", "parallel.scheme=all_gather"}},
      {4, {"parallel.context=4", "parallel.layout=balanced", "parallel.block=2", "parallel.zero=1"}},
      {4, {"parallel.data=4", "train.micro_batch=1", "train.tokens_per_step=128", "parallel.zero=2"}},
  };
  return all;
}

// f32: sums in another order move the losses of 40 steps by far less than the steps do.
TEST_F(Ranks, HaveTheLossesOfOneRank) {
  ASSERT_EQ(run("one", 1, {}).exit_code, 0);
  const std::vector<double> expected = losses("one");
  ASSERT_GE(expected.size(), 8u);
  for (const Mesh& mesh : meshes()) {
    if (mesh.overrides[0] == "parallel.data=4") continue;  // its micro-batch is another, which dropout does not see
    SCOPED_TRACE(mesh.overrides[0] + " " + mesh.overrides.back());
    fs::remove_all(folder_ / "many");
    const test::ProcessResult result = run("many", mesh.ranks, mesh.overrides);
    ASSERT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.err.find(std::to_string(mesh.ranks) + " ranks ("), std::string::npos) << result.err;
    const std::vector<double> got = losses("many");
    ASSERT_EQ(got.size(), expected.size());
    for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 1e-3 * expected[i]) << i;
    EXPECT_LT(got[got.size() - 2], 0.9 * got[0]);
  }
}

TEST_F(Ranks, ContinueToTheSameBits) {
  for (const Mesh& mesh : meshes()) {
    SCOPED_TRACE(mesh.overrides[0] + " " + mesh.overrides.back());
    fs::remove_all(folder_ / "a");
    ASSERT_EQ(run("a", mesh.ranks, mesh.overrides).exit_code, 0);
    const std::string expected = weights("a");
    std::vector<std::string> shorter = mesh.overrides;
    fs::remove_all(folder_ / "b");
    shorter.push_back("train.max_seconds=0.001");
    ASSERT_EQ(run("b", mesh.ranks, shorter).exit_code, 3);  // stopped after its first step
    ASSERT_EQ(run("b", mesh.ranks, mesh.overrides).exit_code, 0);
    EXPECT_EQ(weights("b") == expected, true);
  }
}

// Saved by some ranks, continued by others.
TEST_F(Ranks, ContinueOnAnotherNumberOfRanks) {
  const std::vector<Mesh> all = meshes();
  std::vector<std::string> first = all[1].overrides;
  first.push_back("train.max_seconds=0.001");
  ASSERT_EQ(run("a", 2, first).exit_code, 3);
  const test::ProcessResult result = run("a", 4, all[4].overrides);
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.err.find("resumed at step 1"), std::string::npos) << result.err;
  ASSERT_EQ(run("one", 1, {}).exit_code, 0);
  const double got = losses("a").back(), expected = losses("one").back();
  EXPECT_NEAR(got, expected, 1e-3 * expected);
}

// m sequences on each of D data ranks are m D on one: the micro-batch goes with the ranks.
TEST_F(Ranks, ContinueOnOtherDataRanks) {
  const std::vector<std::string> one{"train.micro_batch=4"};
  ASSERT_EQ(run("whole", 1, one).exit_code, 0);
  ASSERT_EQ(run("a", 1, {"train.micro_batch=4", "train.max_seconds=0.001"}).exit_code, 3);
  auto expect_refused = [&](int ranks, const std::vector<std::string>& more, const std::vector<std::string>& parts) {
    const test::ProcessResult result = run("a", ranks, more);
    EXPECT_EQ(result.exit_code, 2) << result.err;
    for (const std::string& part : parts) EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
  };
  expect_refused(
      2, {"train.micro_batch=4", "parallel.data=2"},
      {"train.micro_batch is 4 sequences on each of 2 data ranks", "train.micro_batch = 1 or 2 with parallel.data=2"});
  expect_refused(3, {"train.micro_batch=4", "parallel.data=3"},
                 {"which 3 ranks cannot share", "parallel.data = 1, 2 or 4"});
  expect_refused(1, {"train.micro_batch=2"}, {"holds a run with another config", "train.micro_batch: 4 there, 2 now"});
  const test::ProcessResult two = run("a", 2, {"train.micro_batch=2", "parallel.data=2"});
  ASSERT_EQ(two.exit_code, 0) << two.err;
  EXPECT_NE(two.err.find("resumed at step 1"), std::string::npos) << two.err;
  EXPECT_EQ(two.err.find("sequences at a time"), std::string::npos) << two.err;
  const std::vector<double> got = losses("a"), expected = losses("whole");
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 1e-3 * expected[i]) << i;

  ASSERT_EQ(run("b", 1, {"train.micro_batch=4", "train.max_seconds=0.001"}).exit_code, 3);
  const test::ProcessResult fewer = run("b", 2, {"train.micro_batch=1", "parallel.data=2"});
  ASSERT_EQ(fewer.exit_code, 0) << fewer.err;
  for (const char* part : {"2 sequences at a time now (train.micro_batch 1 x parallel.data 2), and had 4",
                           "train.micro_batch=2 with parallel.data=2 keeps them"})
    EXPECT_NE(fewer.err.find(part), std::string::npos) << fewer.err;
}

// Nobody says train.tokens_per_step, whose default counts the data ranks: the step of a run that goes on stays.
TEST_F(Ranks, ContinueOnOtherDataRanksWithAStepThatIsLeftOut) {
  const std::string left_out = "train.tokens_per_step=";  // clears what the file says
  auto go = [&](const std::string& name, int data, const std::string& micro_batch, bool is_start) {
    std::vector<std::string> words{left_out, "train.micro_batch=" + micro_batch};
    if (data > 1) words.push_back(str("parallel.data=", data));
    if (is_start) words.push_back("train.max_seconds=0.001");
    return run(name, data, words);
  };
  auto begin = [&](const std::string& name, int data, const std::string& micro_batch) {
    fs::remove_all(folder_ / name);
    ASSERT_EQ(go(name, data, micro_batch, true).exit_code, 3);
  };
  auto expect_parts = [](const test::ProcessResult& result, int exit_code, const std::vector<std::string>& parts) {
    EXPECT_EQ(result.exit_code, exit_code) << result.err;
    for (const std::string& part : parts) EXPECT_NE(result.err.find(part), std::string::npos) << part << result.err;
  };
  ASSERT_EQ(go("whole", 1, "4", false).exit_code, 0);
  const std::vector<double> expected = losses("whole");
  auto expect_losses = [&](const std::string& name) {
    const std::vector<double> got = losses(name);
    ASSERT_EQ(got.size(), expected.size());
    for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 1e-3 * expected[i]) << i;
  };

  begin("a", 1, "4");
  const std::string step =
      str("a step has 4 sequences (train.tokens_per_step / model.context, as the run in ", path("a"), " began)");
  expect_parts(go("a", 2, "4", false), 2,
               {"train.micro_batch is 4 sequences on each of 2 data ranks", step,
                "Use train.micro_batch = 1 or 2 with parallel.data=2."});
  expect_parts(go("a", 3, "4", false), 2, {step, "which 3 ranks cannot share", "parallel.data = 1, 2 or 4"});
  expect_parts(go("a", 1, "2", false), 2, {"holds a run with another config", "train.micro_batch: 4 there, 2 now"});
  expect_parts(go("a", 2, "2", false), 0, {"resumed at step 1", "of 128 tokens"});
  expect_losses("a");

  begin("a", 1, "4");  // fewer at a time, as many in a step
  expect_parts(go("a", 2, "1", false), 0, {"resumed at step 1", "of 128 tokens", "2 sequences at a time now"});

  begin("a", 2, "2");
  expect_parts(
      go("a", 1, "3", false), 2,
      {"train.micro_batch is 3 sequences on each of 1 data rank (parallel.data)", "train.micro_batch = 1, 2 or 4"});
  expect_parts(go("a", 1, "2", false), 0,
               {"resumed at step 1", "of 128 tokens", "train.micro_batch=4 with parallel.data=1 keeps them"});
  begin("a", 2, "2");
  expect_parts(go("a", 1, "4", false), 0, {"resumed at step 1", "of 128 tokens"});
  expect_losses("a");

  // What is no matter of the ranks is told as before: another context is another run. A folder of no run has the default.
  begin("a", 1, "4");
  expect_parts(run("a", 2, {left_out, "train.micro_batch=4", "parallel.data=2", "model.context=64"}), 2,
               {"holds a run with another config", "model.context: 32 there, 64 now"});
  const test::ProcessResult fresh = go("fresh", 2, "4", true);
  expect_parts(fresh, 3, {"of 256 tokens"});
}

// A process whose threads are ranks is killed in the middle of its steps, and the run goes on to the bits of one that was not.
TEST_F(Ranks, KilledTheyContinueToTheSameBits) {
  for (const Mesh& mesh :
       {Mesh{2, {"parallel.context=2"}},
        Mesh{4, {"parallel.data=2", "parallel.context=2", "train.micro_batch=1", "parallel.zero=2"}}}) {
    SCOPED_TRACE(str(mesh.ranks, " ranks"));
    std::vector<std::string> words = mesh.overrides;
    words.push_back("train.tokens=12800");  // 100 steps
    for (const char* name : {"whole", "killed"}) fs::remove_all(folder_ / name);
    ASSERT_EQ(run("whole", mesh.ranks, words).exit_code, 0);
    std::vector<std::string> with_ranks = words;
    with_ranks.insert(with_ranks.end(), {"--ranks", std::to_string(mesh.ranks)});
    const pid_t child = test::start_weft(train("killed", with_ranks));
    const std::string latest = path("killed") + "/checkpoints/latest";
    auto is_time = [&] { return fs::exists(latest) && io::read_file(latest) >= "step-00000010"; };
    for (int tries = 0; tries < 60000 && !is_time(); ++tries) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the run was over before it was killed";
    const test::ProcessResult again = run("killed", mesh.ranks, words);
    ASSERT_EQ(again.exit_code, 0) << again.err;
    EXPECT_NE(again.err.find("resumed at step "), std::string::npos) << again.err;
    for (const char* file : {"model.safetensors", "optimizer-0000-of-0001.safetensors"}) {
      auto bytes = [&](const char* name) { return io::read_file(path(name) + "/checkpoints/step-00000100/" + file); };
      EXPECT_EQ(bytes("killed") == bytes("whole"), true) << file;
    }
    EXPECT_EQ(losses("killed"), losses("whole"));
  }
}

// A signal that comes during a validation breaks it off on all ranks, and the run goes on to the same bits.
TEST_F(Ranks, AStopDuringAValidationIsOneOfAll) {
  std::string text;
  for (int i = 0; i < 10000; ++i) text += "line " + std::to_string(i * 7919 % 1000) + " of a long text\n";
  write("text.txt", text);
  const std::vector<std::string> mesh{"parallel.context=2", "eval.every=40", "data.val={fraction:0.9}"};
  ASSERT_EQ(run("whole", 2, mesh).exit_code, 0);
  std::vector<std::string> words = mesh;
  words.insert(words.end(), {"--ranks", "2"});
  const pid_t child = test::start_weft(train("a", words));
  const std::string last = path("a") + "/checkpoints/step-00000040";
  for (int tries = 0; tries < 1200 && !fs::exists(last); ++tries)
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  kill(child, SIGTERM);
  int status = 0;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 3);
  const size_t before = losses("a").size();
  ASSERT_EQ(run("a", 2, mesh).exit_code, 0);
  EXPECT_EQ(losses("a"), losses("whole"));
  EXPECT_LT(before, losses("a").size());
  EXPECT_EQ(weights("a") == weights("whole"), true);
}

// What the others wait for while the first rank is busy is longer than their time-out.
TEST_F(Ranks, WaitWhileTheFirstRankSamples) {
  const test::ProcessResult result =
      run("a", 2, {"parallel.context=2", "parallel.timeout_s=1", "train.tokens=128", "log.sample_tokens=60000"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
}

// What one rank may not have, four that share each sequence train with; what they ask for beyond it is refused before the run begins.
TEST_F(Ranks, TrainWithinALimitOfMemory) {
  const std::vector<std::string> sizes = {"model.context=512", "train.micro_batch=1", "train.tokens_per_step=512",
                                          "train.tokens=4096"};
  auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), sizes.begin(), sizes.end());
    more.push_back("--json");
    return more;
  };
  const test::ProcessResult one = run("one", 1, with({}));
  ASSERT_EQ(one.exit_code, 0) << one.err;
  const auto predicted = nlohmann::json::parse(one.out)["predicted_peak_bytes"].get<double>();
  const std::string limit = str("train.memory_gib=", 0.6 * predicted / 1073741824);
  const test::ProcessResult refused = run("refused", 1, with({limit}));
  EXPECT_EQ(refused.exit_code, 2) << refused.err;
  for (const char* part : {"train.memory_gib is ", "Not even 1 fits", "parallel.context"})
    EXPECT_NE(refused.err.find(part), std::string::npos) << refused.err;
  const test::ProcessResult four = run("four", 4, with({limit, "parallel.context=4"}));
  ASSERT_EQ(four.exit_code, 0) << four.err;
  EXPECT_LT(nlohmann::json::parse(four.out)["peak_bytes"].get<double>(), 0.6 * predicted);
  const std::vector<double> expected = losses("one"), got = losses("four");
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 1e-3 * expected[i]) << i;
}

// Chosen when the run starts; its config has what was chosen.
TEST_F(Ranks, SayHowTheyShareASequence) {
  const test::ProcessResult result = run("a", 2, {"parallel.context=2", "train.max_seconds=0.001"});
  ASSERT_EQ(result.exit_code, 3) << result.err;
  EXPECT_NE(result.err.find("context: 2 ranks, scheme "), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("balance"), std::string::npos) << result.err;
  const std::string config = io::read_file(path("a") + "/config.txtpb");
  EXPECT_EQ(config.find("scheme: auto"), std::string::npos) << config;
  EXPECT_NE(config.find("scheme: "), std::string::npos) << config;
  const test::ProcessResult refused = run("b", 3, {"parallel.context=3", "parallel.scheme=ulysses"});
  EXPECT_EQ(refused.exit_code, 2) << refused.err;
  EXPECT_NE(refused.err.find("parallel.scheme cannot run in model."), std::string::npos) << refused.err;
  EXPECT_FALSE(fs::exists(path("b"))) << "nothing is begun";
}

#ifdef WEFT_MPIEXEC
// Processes of mpirun sum in the order of ranks, as threads do.
TEST_F(Ranks, ProcessesOfMpirunHaveTheBitsOfThreads) {
  const Mesh mesh{2, {"parallel.context=2", "train.tokens=1280", "eval.every=5"}};
  auto mpirun = [&](int ranks, std::vector<std::string> more) {
    std::vector<std::string> words{"/usr/bin/env", WEFT_MPI_ENVIRONMENT,  WEFT_MPIEXEC,
                                   "-np",          std::to_string(ranks), WEFT_BINARY};
    for (const std::string& word : train("processes", std::move(more))) words.push_back(word);
    return test::run_program(words);
  };
  const test::ProcessResult result = mpirun(2, mesh.overrides);
  ASSERT_EQ(result.exit_code, 0) << result.out << result.err;
  EXPECT_NE(result.err.find("2 ranks (1 data x 2 context)"), std::string::npos) << result.err;
  EXPECT_EQ(result.err.find("2 ranks (", result.err.find("2 ranks (") + 1), std::string::npos) << "one rank speaks";
  ASSERT_EQ(run("threads", 2, mesh.overrides).exit_code, 0);
  const std::string last = "/checkpoints/step-00000010/model.safetensors";
  EXPECT_EQ(io::read_file(path("processes") + last) == io::read_file(path("threads") + last), true);

  // Ranks share an evaluation, and the keys of a sample. One speaks.
  auto of_run = [&](const std::string& command, std::vector<std::string> more) {
    std::vector<std::string> words{"/usr/bin/env", WEFT_MPI_ENVIRONMENT, WEFT_MPIEXEC, "-np", "2", WEFT_BINARY,
                                   command,        path("processes")};
    words.insert(words.end(), more.begin(), more.end());
    return test::run_program(words);
  };
  const test::ProcessResult analysed = of_run("analyse", {"--json"});
  EXPECT_EQ(analysed.exit_code, 0) << analysed.err;
  EXPECT_EQ(
      nlohmann::json::parse(analysed.out)["values"],
      nlohmann::json::parse(test::run_weft({"analyse", path("threads"), "--json", "--ranks", "2"}).out)["values"]);
  const test::ProcessResult evaluated = of_run("eval", {}), sampled = of_run("sample", {"--tokens", "50"});
  EXPECT_EQ(evaluated.exit_code, 0) << evaluated.err;
  EXPECT_EQ(evaluated.out, test::run_weft({"eval", path("threads"), "--ranks", "2"}).out);
  EXPECT_EQ(sampled.exit_code, 0) << sampled.err;
  EXPECT_EQ(sampled.out, test::run_weft({"sample", path("threads"), "--tokens", "50"}).out);

  fs::remove_all(folder_ / "processes");
  const test::ProcessResult wrong = mpirun(3, mesh.overrides);
  EXPECT_NE(wrong.exit_code, 0);
  EXPECT_NE((wrong.out + wrong.err).find("started 3 ranks: the config has parallel.data 1 x parallel.context 2"),
            std::string::npos)
      << wrong.err;
}

// Rows over two ranks, the tokens of each over two others, and of gradients and moments a quarter on every one.
TEST_F(Ranks, ProcessesThatShareRowsTokensAndStateHaveTheBitsOfThreads) {
  const std::vector<std::string> mesh{"parallel.data=2",   "parallel.context=2",  "parallel.zero=2",
                                      "train.tokens=1280", "train.micro_batch=1", "eval.every=5"};
  std::vector<std::string> words{"/usr/bin/env", WEFT_MPI_ENVIRONMENT, WEFT_MPIEXEC, "-np", "4", WEFT_BINARY};
  for (const std::string& word : train("processes", mesh)) words.push_back(word);
  const test::ProcessResult result = test::run_program(words);
  ASSERT_EQ(result.exit_code, 0) << result.out << result.err;
  EXPECT_NE(result.err.find("4 ranks (2 data x 2 context)"), std::string::npos) << result.err;
  ASSERT_EQ(run("threads", 4, mesh).exit_code, 0);
  for (const char* file : {"model.safetensors", "optimizer-0000-of-0001.safetensors"}) {
    auto bytes = [&](const std::string& name) {
      return io::read_file(path(name) + "/checkpoints/step-00000010/" + file);
    };
    EXPECT_EQ(bytes("processes") == bytes("threads"), true) << file;
  }
  EXPECT_EQ(losses("processes"), losses("threads"));
}
#endif

// An error on a rank that does not lead ends the run, with its text.
TEST_F(Ranks, AFaultOfOneRankEndsAll) {
  write("tiny.txtpb", R"(
model { dim: 16 layers: 1 context: 32 mixer { softmax { heads: 2 } } ffn { swiglu { hidden: 32 } } }
data { tokenizer { characters {} } train { path: "text.txt" } val { fraction: 0.1 } }
optim { group { match: "*" adamw { lr: 1e30 } } schedule { constant {} } }
train { tokens: 5120 tokens_per_step: 128 micro_batch: 2 threads: 1 }
parallel { context: 2 }
)");
  const test::ProcessResult result = run("a", 2, {});
  EXPECT_EQ(result.exit_code, 5) << result.err;
  EXPECT_NE(result.err.find("gradient norm"), std::string::npos) << result.err;
}

}  // namespace
}  // namespace weft
