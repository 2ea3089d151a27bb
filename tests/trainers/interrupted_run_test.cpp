// What a run leaves when it is killed, stopped, sent back or started again: the weights of a run that nothing interrupted, each record
// once, and nothing lost in silence.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <thread>

#include "tests/trainers/process.h"
#include "tests/trainers/run_fixture.h"
#include "tests/trainers/run_records.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using test::run_weft;

void nap(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

class InterruptedRun : public test::RunFixture {
 protected:
  // Starts a training and kills it when `is_time` says so; false if it ended before.
  bool kill_when(const std::vector<std::string>& words, const std::function<bool()>& is_time) {
    pid_t child = test::start_weft(words);
    int status = 0;
    while (!is_time()) {
      if (waitpid(child, &status, WNOHANG) == child) return false;
      std::this_thread::sleep_for(std::chrono::microseconds(500));
    }
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    return WIFSIGNALED(status);
  }
  bool has_lines(const std::string& run, size_t count) const {
    const std::string file = path(run) + "/metrics.jsonl";
    return io::file_exists(file) && io::read_metrics(file).size() >= count;
  }
  std::string latest(const std::string& run) const {
    const std::string file = path(run) + "/checkpoints/latest";
    return io::file_exists(file) ? io::read_file(file) : "";
  }
};

TEST_F(InterruptedRun, HasEachRecordOnceAfterKillsAnywhere) {
  ASSERT_EQ(run_weft(train("whole")).exit_code, 0);
  int kills = 0;
  for (int attempt = 0; attempt < 60 && kills < 8; ++attempt) {
    pid_t child = test::start_weft(train("killed", {"log.samples=2"}));
    nap(100 + 53 * attempt % 900);
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFEXITED(status)) break;
    ++kills;
  }
  auto result = run_weft(train("killed", {"log.samples=2"}));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  ASSERT_EQ(run_weft(train("whole2", {"log.samples=2"})).exit_code, 0);
  EXPECT_GE(kills, 2);
  EXPECT_TRUE(weights("whole") == weights("killed"));
  test::expect_same_records(path("whole2"), path("killed"));
}

TEST_F(InterruptedRun, KilledBeforeItsFirstCheckpointItRewindsToStep0) {
  const std::vector<std::string> more{"checkpoint.every=0", "log.every=1", "log.samples_every=3"};
  ASSERT_EQ(run_weft(train("whole", more)).exit_code, 0);
  ASSERT_TRUE(kill_when(train("killed", more), [&] { return has_lines("killed", 7); }));
  EXPECT_EQ(latest("killed"), "");
  auto result = run_weft(train("killed", more));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  test::expect_same_records(path("whole"), path("killed"));
  EXPECT_TRUE(io::file_exists(path("killed/set-aside/metrics.jsonl"))) << result.err;
}

// Lines are means over the steps since the line before, also where a checkpoint stands between two lines.
TEST_F(InterruptedRun, ResumesBetweenTwoLinesOfMetrics) {
  const std::vector<std::string> more{"log.every=9", "checkpoint.every=4"};
  ASSERT_EQ(run_weft(train("whole", more)).exit_code, 0);
  ASSERT_TRUE(kill_when(train("killed", more), [&] { return latest("killed") >= "step-00000012"; }));
  ASSERT_EQ(run_weft(train("killed", more)).exit_code, 0);
  test::expect_same_records(path("whole"), path("killed"));
}

TEST_F(InterruptedRun, GoingBackIsDecidedAtOnceAndSurvivesAKill) {
  const std::vector<std::string> more{"train.tokens=51200", "checkpoint.every=100", "checkpoint.keep_last=9",
                                      "eval.every=100", "log.samples_every=100"};
  auto with = [&](std::vector<std::string> words) {
    words.insert(words.begin(), more.begin(), more.end());
    return words;
  };
  ASSERT_EQ(run_weft(train("a", more)).exit_code, 0);
  fs::copy(folder_ / "a", folder_ / "whole", fs::copy_options::recursive);
  const std::string half = path("a/checkpoints/step-00000200");
  ASSERT_TRUE(kill_when(train("a", with({"--resume", half, "checkpoint.every=100000"})),
                        [&] { return latest("a") == "step-00000200\n"; }));
  EXPECT_TRUE(latest("a") == "step-00000200\n");
  auto result = run_weft(train("a", more));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.err.find("resumed at step 200 of 400"), std::string::npos) << result.err;
  for (const char* step : {"step-00000300", "step-00000400"})
    EXPECT_TRUE(io::file_exists(path("a/checkpoints/set-aside/") + step + "/manifest")) << "nothing is lost";
  for (const char* file : {"model.safetensors", "optimizer-0000-of-0001.safetensors"})
    EXPECT_TRUE(io::read_file(path("a/checkpoints/step-00000400/") + file) ==
                io::read_file(path("whole/checkpoints/step-00000400/") + file));
  test::expect_same_records(path("whole"), path("a"));
  EXPECT_NE(io::read_file(path("a/set-aside/metrics.jsonl")).find("\"step\":400"), std::string::npos);
}

TEST_F(InterruptedRun, ForeignCheckpointTakesThePlaceOfTheFoldersOwn) {
  ASSERT_EQ(run_weft(train("a")).exit_code, 0);
  ASSERT_EQ(run_weft(train("b", {"checkpoint.keep_last=20"})).exit_code, 0);
  fs::remove_all(folder_ / "a/checkpoints/step-00000040");  // its newest is 35 then
  auto result = run_weft(train("a", {"--resume", path("b/checkpoints/step-00000020")}));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.err.find("set-aside/step-00000035"), std::string::npos) << result.err;
  EXPECT_TRUE(weights("a") == weights("b"));
  test::expect_same_records(path("b"), path("a"));
}

TEST_F(InterruptedRun, FinishedItSaysSoAndChangesNothing) {
  auto first = run_weft(train("a", {"--json"}));
  ASSERT_EQ(first.exit_code, 0) << first.err;
  auto before = test::content_of(path("a"));
  for (int i = 0; i < 2; ++i) {
    auto again = run_weft(train("a", {"--json"}));
    EXPECT_EQ(again.exit_code, 0) << again.err;
    EXPECT_EQ(again.out, first.out) << "the true figures, speed and sample among them";
    EXPECT_NE(again.err.find("the run is done"), std::string::npos) << again.err;
  }
  EXPECT_TRUE(test::content_of(path("a")) == before);
}

TEST_F(InterruptedRun, AfterTheLastStepOnlyWhatIsMissingIsMadeUpFor) {
  ASSERT_EQ(run_weft(train("whole")).exit_code, 0);
  // As a kill between the last checkpoint and what follows it leaves it.
  fs::copy(folder_ / "whole", folder_ / "a", fs::copy_options::recursive);
  fs::remove(folder_ / "a/report.html");
  std::string metrics = io::read_file(path("a/metrics.jsonl"));
  io::cut_file(path("a/metrics.jsonl"), metrics.rfind('\n', metrics.size() - 2) + 1);  // the validation
  io::cut_file(path("a/samples.txt"), io::read_file(path("a/samples.txt")).size() - 3);
  auto result = run_weft(train("a"));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  test::expect_same_records(path("whole"), path("a"));
  EXPECT_TRUE(io::file_exists(path("a/report.html")));
}

TEST_F(InterruptedRun, LeftOversOfAKilledWriterGoAtTheNextStart) {
  ASSERT_EQ(run_weft(train("a")).exit_code, 0);
  io::make_folders(path("a/checkpoints/step-00000030.removed.partial"));
  io::write_file_atomically(path("a/checkpoints/latest.partial"), "step-");
  io::write_file_atomically(path("a/report.html.partial"), "<html>");
  ASSERT_EQ(run_weft(train("a")).exit_code, 0);
  for (const auto& [file, content] : test::content_of(path("a"))) EXPECT_FALSE(file.ends_with(".partial")) << file;
  EXPECT_FALSE(io::file_exists(path("a/checkpoints/step-00000030.removed.partial")));
}

// A gnuplot that hangs, for the program that a test starts.
class HangingPlotter {
 public:
  explicit HangingPlotter(const std::string& folder) : old_(getenv("PATH")) {
    io::make_folders(folder);
    io::write_file_atomically(folder + "/gnuplot", "#!/bin/sh\nPATH=/usr/bin:/bin\nsleep 600\n");
    fs::permissions(folder + "/gnuplot", fs::perms::owner_all);
    setenv("PATH", (folder + ":" + old_).c_str(), 1);
  }
  ~HangingPlotter() { setenv("PATH", old_.c_str(), 1); }

 private:
  std::string old_;
};

TEST_F(InterruptedRun, AHangingGnuplotHoldsNoStopSignalAndLosesNothing) {
  ASSERT_EQ(run_weft(train("whole")).exit_code, 0);
  {
    HangingPlotter plotter(path("bin"));
    pid_t child = test::start_weft(train("a"));
    for (int i = 0; i < 6000 &&
                    (!io::file_exists(path("a/metrics.jsonl")) ||
                     io::read_file(path("a/metrics.jsonl")).find("\"step\":40,\"tokens\":5120,") == std::string::npos ||
                     io::read_metrics(path("a/metrics.jsonl")).back().kind != "val");
         ++i)
      nap(10);
    nap(300);
    auto begin = std::chrono::steady_clock::now();
    kill(child, SIGTERM);
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(15));
    ASSERT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 3);
  }
  EXPECT_TRUE(weights("whole") == weights("a"));
  EXPECT_FALSE(io::file_exists(path("a/report.html")));
  ASSERT_EQ(run_weft(train("a")).exit_code, 0);
  EXPECT_TRUE(io::file_exists(path("a/report.html")));
  test::expect_same_records(path("whole"), path("a"));
}

// A training whose steps take long, with its stderr in a file.
class SlowRun : public InterruptedRun {
 protected:
  void start() {
    err_ = std::fopen(path("err").c_str(), "w+");
    child_ =
        test::start_weft(train("a", {"train.tokens_per_step=320000", "train.tokens=32000000", "log.tensorboard=false"}),
                         -1, fileno(err_));
    for (int i = 0; i < 6000 && said().find("steps: ") == std::string::npos; ++i) nap(10);
    nap(300);
  }
  std::string said() const { return io::read_file(path("err")); }
  int wait() {
    int status = 0;
    waitpid(child_, &status, 0);
    std::fclose(err_);
    return status;
  }
  std::FILE* err_ = nullptr;
  pid_t child_ = 0;
};

TEST_F(SlowRun, AnswersAStopSignalAtOnceWithWhatIsWaitedFor) {
  start();
  kill(child_, SIGTERM);
  kill(child_, SIGINT);  // launchers deliver twice
  for (int i = 0; i < 100 && said().find("SIGTERM") == std::string::npos; ++i) nap(10);
  EXPECT_NE(said().find("SIGTERM: finishing the step and saving a checkpoint; a second signal ends the run at once\n"),
            std::string::npos)
      << said();
  EXPECT_EQ(waitpid(child_, nullptr, WNOHANG), 0) << "the step was over before the test looked";
  int status = wait();
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 3);
  EXPECT_EQ(latest("a"), "step-00000001\n");
}

TEST_F(SlowRun, ASecondSignalEndsItAtOnce) {
  start();
  kill(child_, SIGHUP);
  nap(600);
  kill(child_, SIGINT);
  int status = wait();
  ASSERT_TRUE(WIFSIGNALED(status)) << said();
  EXPECT_EQ(WTERMSIG(status), SIGINT);
  EXPECT_NE(said().find("SIGHUP: finishing the step"), std::string::npos) << said();
  EXPECT_NE(said().find("SIGINT: ended at once"), std::string::npos) << said();
}

TEST_F(SlowRun, NoticesAtTheNextStepThatItsFolderIsGone) {
  start();
  fs::remove_all(folder_ / "a");
  int status = wait();
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 1);
  EXPECT_NE(said().find("was removed or moved"), std::string::npos) << said();
  EXPECT_FALSE(io::file_exists(path("a"))) << "made anew";
}

}  // namespace
}  // namespace weft
