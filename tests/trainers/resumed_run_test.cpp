// Runs that go on to the same bits: after kills, signals, damaged and named checkpoints.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "tests/trainers/process.h"
#include "tests/trainers/run_fixture.h"
#include "weft/io/files.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

class ResumedRun : public test::RunFixture {};

TEST_F(ResumedRun, KilledAnywhereItResumesToTheSameBits) {
  ASSERT_EQ(test::run_weft(train("whole")).exit_code, 0);
  int kills = 0;
  for (int attempt = 0; attempt < 60; ++attempt) {
    pid_t child = test::start_weft(train("killed"));
    std::this_thread::sleep_for(std::chrono::milliseconds(60 + 37 * attempt % 400));
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFEXITED(status)) {
      ASSERT_EQ(WEXITSTATUS(status), 0);
      break;
    }
    if (++kills >= 6) break;
  }
  auto result = test::run_weft(train("killed"));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_GE(kills, 2);
  EXPECT_TRUE(weights("whole") == weights("killed"));
  EXPECT_TRUE(moments("whole") == moments("killed"));
}

TEST_F(ResumedRun, StopsOnASignalWithACheckpointAndExitCode3) {
  ASSERT_EQ(test::run_weft(train("whole")).exit_code, 0);
  auto stopped = test::run_weft(train("timed", {"train.max_seconds=0.0001"}));
  EXPECT_EQ(stopped.exit_code, 3) << stopped.err;
  EXPECT_NE(stopped.err.find("the same command continues"), std::string::npos) << stopped.err;
  auto result = test::run_weft(train("timed"));
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_TRUE(weights("whole") == weights("timed"));

  pid_t child = test::start_weft(train("signalled", {"train.tokens=51200000"}));
  for (int i = 0; i < 500 && (!io::file_exists(path("signalled/metrics.jsonl")) ||
                              fs::file_size(path("signalled/metrics.jsonl")) == 0);
       ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  kill(child, SIGTERM);
  int status = 0;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 3);
  EXPECT_TRUE(io::file_exists(path("signalled/checkpoints/latest")));
}

TEST_F(ResumedRun, FallsBackToTheLastGoodCheckpointAndSaysSo) {
  ASSERT_EQ(test::run_weft(train("whole")).exit_code, 0);
  ASSERT_EQ(test::run_weft(train("damaged", {"checkpoint.keep_last=8"})).exit_code, 0);
  std::string file = path("damaged/checkpoints/step-00000040/model.safetensors");
  fs::resize_file(file, fs::file_size(file) - 1);
  auto result = test::run_weft(train("damaged", {"checkpoint.keep_last=8"}));
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.err.find("step-00000040"), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("resumed at step 35"), std::string::npos) << result.err;
  EXPECT_TRUE(weights("whole") == weights("damaged"));
}

TEST_F(ResumedRun, AFailedFirstStartBlocksNothing) {
  auto first = test::run_weft(train("a", {"data.train.path=" + path("absent.txt")}));
  EXPECT_EQ(first.exit_code, 1) << first.err;
  EXPECT_NE(io::read_file(path("a/log.txt")).find("absent.txt"), std::string::npos);
  auto second = test::run_weft(train("a"));
  EXPECT_EQ(second.exit_code, 0) << second.err;
}

TEST_F(ResumedRun, ResumesFromANamedCheckpointAndRefusesAForeignOne) {
  ASSERT_EQ(test::run_weft(train("a")).exit_code, 0);
  std::string half = path("a/checkpoints/step-00000035");
  auto resumed = test::run_weft(train("b", {"--resume", half}));
  EXPECT_EQ(resumed.exit_code, 0) << resumed.err;
  EXPECT_NE(resumed.err.find("resumed at step 35"), std::string::npos) << resumed.err;
  EXPECT_TRUE(weights("a") == weights("b"));
  auto done = test::run_weft(train("c", {"--resume", path("a/checkpoints/step-00000040")}));
  EXPECT_EQ(done.exit_code, 0) << done.err;
  EXPECT_TRUE(weights("a") == weights("c")) << "a run ends with a checkpoint of its own";

  auto refused = [&](const std::string& run, const std::vector<std::string>& more, const std::string& text,
                     int code = 1) {
    auto result = test::run_weft(train(run, more));
    EXPECT_EQ(result.exit_code, code) << result.err;
    EXPECT_NE(result.err.find(text), std::string::npos) << result.err;
  };
  refused("d", {"--resume", path("a/checkpoints/step-00000777")}, "step-00000777: there is no such checkpoint", 2);
  refused("e", {"--resume", half, "seed=2"}, "has seed 1, the config has 2");
  refused("f", {"--resume", half, "train.tokens_per_step=256"}, "has read 140 sequences in 35 steps");
  refused("g", {"--resume", half, "model.dim=32"}, "embedding.weight");
}

}  // namespace
}  // namespace weft
