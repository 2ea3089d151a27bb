// Failures of a run: found before the first step where they can be, told in words, and never at the cost of what is there.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "tests/trainers/process.h"
#include "tests/trainers/run_fixture.h"
#include "tests/trainers/run_records.h"
#include "weft/io/checkpoint.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using test::run_weft;

class RunFailure : public test::RunFixture {
 protected:
  static void expect(const test::ProcessResult& result, int code, const std::vector<std::string>& parts) {
    EXPECT_EQ(result.exit_code, code) << result.err;
    for (const std::string& part : parts)
      EXPECT_NE(result.err.find(part), std::string::npos) << part << " in: " << result.err;
  }
  bool has_trained(const std::string& run) const {
    return !io::list_checkpoints(path(run) + "/checkpoints").empty() ||
           (io::file_exists(path(run) + "/metrics.jsonl") && !io::read_file(path(run) + "/metrics.jsonl").empty());
  }
  // Runs weft in a child that first does `prepare`; returns the wait status, and stderr in `err`.
  int run_in_child(const std::vector<std::string>& words, void (*prepare)()) {
    std::FILE* err = std::fopen(path("err").c_str(), "w");
    pid_t child = fork();
    if (child == 0) {
      dup2(fileno(err), 2);
      prepare();
      std::vector<std::string> all = words;
      all.insert(all.begin(), WEFT_BINARY);
      std::vector<char*> arguments;
      for (std::string& word : all) arguments.push_back(word.data());
      arguments.push_back(nullptr);
      execv(arguments[0], arguments.data());
      _exit(127);
    }
    std::fclose(err);
    int status = 0;
    waitpid(child, &status, 0);
    return status;
  }
};

TEST_F(RunFailure, PromptsAreCheckedBeforeTheFirstStep) {
  expect(run_weft(train("a", {"log.sample_prompt=日本"})), 2, {"log.sample_prompt", "日"});
  EXPECT_FALSE(has_trained("a"));
  expect(run_weft(train("a", {"log.sample_prompt=" + std::string(33, 'l')})), 2,
         {"log.sample_prompt has 33 tokens; the context has room for 32"});
  EXPECT_FALSE(has_trained("a"));
  expect(run_weft(train("a", {"log.sample_prompt=line", "model.dim=32"})), 0, {"done: "});
}

TEST_F(RunFailure, FilesAreCheckedBeforeTextsAreTokenised) {
  expect(run_weft(train("a", {"data.val.path=" + path("absent.txt")})), 1, {"absent.txt"});
  EXPECT_FALSE(io::file_exists(path("a/data"))) << "the training text was tokenised first";
  expect(run_weft(train("a", {"--resume", path("nowhere")})), 2, {"nowhere"});
  EXPECT_FALSE(io::file_exists(path("a/data")));
  for (const char* name : {"report.html", "samples.txt"}) {
    io::make_folders(path("b/") + name);
    expect(run_weft(train("b")), 1, {name, "is a folder"});
    fs::remove_all(folder_ / "b");
  }
  write("c_file", "");
  fs::create_directories(folder_ / "c");
  fs::copy(folder_ / "c_file", folder_ / "c/trace");
  expect(run_weft(train("c", {"log.trace_step=30"})), 1, {"trace", "no folder"});
  EXPECT_FALSE(has_trained("c"));
}

TEST_F(RunFailure, AStartThatFailedBindsNeitherConfigNorTexts) {
  write("other.txt", "αβγ some other text that is much too short");
  expect(run_weft(train("a", {"data.train.path=" + path("other.txt"), "model.context=64"})), 2,
         {"other.txt", "needs 65"});
  expect(run_weft(train("a", {"--resume", path("nowhere")})), 2, {"nowhere"});
  expect(run_weft(train("a")), 0, {"done: "});
  ASSERT_EQ(run_weft(train("clean")).exit_code, 0);
  EXPECT_TRUE(weights("a") == weights("clean")) << "the alphabet is that of the first text";
  EXPECT_TRUE(io::file_exists(path("a/set-aside/data"))) << "nothing is thrown away";
}

TEST_F(RunFailure, TheLimitOfFileSizesIsAnErrorInWords) {
  int status = run_in_child(train("a"), [] {
    rlimit limit{20000, 20000};
    setrlimit(RLIMIT_FSIZE, &limit);
  });
  ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
  EXPECT_EQ(WEXITSTATUS(status), 1);
  std::string err = io::read_file(path("err"));
  EXPECT_NE(err.find("File too large"), std::string::npos) << err;
  EXPECT_EQ(run_weft(train("a")).exit_code, 0) << "and what it left is in nobody's way";
}

// Sizes near the limit are told apart: not "needs 3 GiB, and the machine has 3".
TEST_F(RunFailure, AModelThatIsALittleTooLargeIsToldSoInFractions) {
  int status = run_in_child(train("a", {"model.dim=4096", "model.layers=12"}), [] {
    rlimit limit{3'000'000'000, 3'000'000'000};
    setrlimit(RLIMIT_AS, &limit);
  });
  ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
  EXPECT_EQ(WEXITSTATUS(status), 2);
  std::string err = io::read_file(path("err"));
  EXPECT_NE(err.find("its matrices alone need 3.0"), std::string::npos) << err;
  EXPECT_NE(err.find("GiB, and cpu has 2.7"), std::string::npos) << err;
}

TEST_F(RunFailure, ClosedStandardStreamsAreNoPlaceForFiles) {
  ASSERT_EQ(run_weft(train("whole")).exit_code, 0);
  int status = run_in_child(train("a"), [] {
    for (int stream : {0, 1, 2}) close(stream);
  });
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_TRUE(weights("whole") == weights("a"));
  test::expect_same_records(path("whole"), path("a"));
  EXPECT_EQ(io::read_file(path("a/lock")), "");
  auto shards = [&](const std::string& run) {
    std::vector<std::string> bytes;
    for (const auto& [file, content] : test::content_of(path(run) + "/data"))
      if (file.ends_with(".bin") || file.ends_with(".idx") || file.ends_with(".txt")) bytes.push_back(content);
    return bytes;
  };
  EXPECT_EQ(shards("a"), shards("whole"));
}

TEST_F(RunFailure, ResultsOfARunThatCannotBeWrittenArePrinted) {
  ASSERT_EQ(run_weft(train("a")).exit_code, 0);
  write("a/eval", "a file where a folder belongs");
  auto evaluated = run_weft({"eval", path("a")});
  expect(evaluated, 0, {"warning: the result is not kept with the run"});
  EXPECT_NE(evaluated.out.find("validation loss"), std::string::npos) << evaluated.out;
  auto analysed = run_weft({"analyse", path("a"), "--rows", "1", "--json"});
  expect(analysed, 0, {"warning: the result is not kept with the run"});
  EXPECT_NE(analysed.out.find("\"values\""), std::string::npos) << analysed.out;
}

TEST_F(RunFailure, TheGuardGivesUpAndTheLastFiniteCheckpointStays) {
  ASSERT_EQ(run_weft(train("good", {"checkpoint.keep_last=20"})).exit_code, 0);
  const std::vector<std::string> bad{"optim.group[1].adamw.lr=1e300", "checkpoint.every=1", "checkpoint.keep_last=1",
                                     "eval.every=0", "log.samples_every=0"};
  auto with = [&](std::vector<std::string> words) {
    words.insert(words.begin(), bad.begin(), bad.end());
    return words;
  };
  auto result = run_weft(train("a", with({"--resume", path("good/checkpoints/step-00000005")})));
  expect(result, 5,
         {"has skipped 10 steps in a row", "optim.skip.max_in_a_row", "are NaN or infinite", "that of step 5"});
  EXPECT_EQ(result.err.find("done: "), std::string::npos) << result.err;
  EXPECT_EQ(io::list_checkpoints(path("a/checkpoints")), (std::vector<int64_t>{5, 16}));

  // A resume gives it no further steps, unless more are allowed.
  expect(run_weft(train("a", bad)), 5, {"step 16: the outlier guard has skipped 10 steps in a row"});
  EXPECT_EQ(io::list_checkpoints(path("a/checkpoints")), (std::vector<int64_t>{5, 16}));
  expect(run_weft(train("a", with({"optim.skip.max_in_a_row=12"}))), 5,
         {"step 18: the outlier guard has skipped 12 steps in a row"});

  // Without a guard the first loss that is not finite ends the run.
  expect(run_weft(train("b", {"optim.group[1].adamw.lr=1e300", "optim.skip="})), 5, {"gradient norm", "optim.skip"});

  auto evaluated = run_weft({"eval", path("a"), "--json"});
  expect(evaluated, 0, {"are NaN or infinite", "the newest finite checkpoint is that of step 5"});
  EXPECT_NE(evaluated.out.find("\"warning\""), std::string::npos) << evaluated.out;
  auto analysed = run_weft({"analyse", path("a"), "--rows", "1"});
  expect(analysed, analysed.exit_code, {"are NaN or infinite", "the newest finite checkpoint is that of step 5"});
}

}  // namespace
}  // namespace weft
