// Faults of trainings over ranks: wrong starts are told once, by one rank; what happens later ends the run in bounded time, and its last
// checkpoint is whole.
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>

#include <chrono>
#include <functional>
#include <thread>

#include "tests/trainers/process.h"
#include "tests/trainers/run_fixture.h"
#include "weft/core/error.h"
#include "weft/core/stream.h"
#include "weft/io/checkpoint.h"

namespace weft {
namespace {

using Clock = std::chrono::steady_clock;

int count(const std::string& text, const std::string& part) {
  int times = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++times;
  return times;
}

class RankFaults : public test::RunFixture {
 protected:
  static void expect_usage_error(const test::ProcessResult& result, const std::vector<std::string>& parts) {
    expect_failure(result, parts);
    EXPECT_EQ(result.exit_code, 2) << result.out + result.err;
  }
  static void expect_failure(const test::ProcessResult& result, const std::vector<std::string>& parts) {
    const std::string text = result.out + result.err;
    EXPECT_NE(result.exit_code, 0) << text;
    EXPECT_EQ(count(text, "error: "), 1) << text;
    for (const std::string& part : parts) EXPECT_NE(text.find(part), std::string::npos) << part << " in:\n" << text;
  }
  test::ProcessResult with_environment(const std::string& variables, std::vector<std::string> words) const {
    words = test::weft_words(std::move(words));
    const std::string all = variables + " ";
    std::vector<std::string> env{"/usr/bin/env"};
    for (size_t begin = 0, end; begin < all.size(); begin = end + 1) {
      end = all.find(' ', begin);
      env.push_back(all.substr(begin, end - begin));
    }
    env.insert(env.end(), words.begin(), words.end());
    return test::run_program(env);
  }
  std::vector<std::string> two_ranks(const std::string& name, std::vector<std::string> more = {}) const {
    more.insert(more.begin(), {"parallel.context=2", "--ranks", "2"});
    return train(name, more);
  }
};

TEST_F(RankFaults, ACheckpointOfAnotherModelIsRefusedOnce) {
  ASSERT_EQ(test::run_weft(train("other", {"model.dim=32", "train.tokens=640"})).exit_code, 0);
  expect_failure(test::run_weft(two_ranks("a", {"--resume", path("other")})), {"embedding", "[", "16]", "32]"});
}

TEST_F(RankFaults, ThreadsThatOversubscribeAreAWarningWithNumbers) {
  const int64_t cores = sysconf(_SC_NPROCESSORS_ONLN);
  const std::string warning = str("2 ranks on this host with ", cores, " threads each");
  test::ProcessResult result = test::run_weft(two_ranks("a", {"train.tokens=128", str("train.threads=", cores)}));
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.err.find(str(warning, " (train.threads): ", 2 * cores, " threads on ")), std::string::npos)
      << result.err;
  result = with_environment(str("OMP_NUM_THREADS=", 2 * cores),
                            two_ranks("b", {"train={tokens:128 tokens_per_step:128 micro_batch:2}"}));
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.err.find(str(warning, ": ", 2 * cores, " threads on ")), std::string::npos) << result.err;
}

// Processes of torchrun that cannot be joined do not train alone.
TEST_F(RankFaults, ProcessesThatThisBuildCannotJoinAreRefused) {
  const char* torchrun = "RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=1";
  const test::ProcessResult result = with_environment(torchrun, train("a", {"parallel.context=2"}));
#ifdef WEFT_WITH_NCCL
  if (num_cuda_devices() == 0)
    expect_usage_error(result, {"rank 1 of torchrun", "trains on the CPU", "by NCCL", "mpirun"});
#else
  expect_usage_error(result, {"torchrun"});
#endif
  EXPECT_FALSE(io::file_exists(path("a") + "/metrics.jsonl"));
}

// Whatever ranks share, and before anything is read or begun.
TEST_F(RankFaults, AWrongLaunchIsAWrongCommandLine) {
  struct Row {
    const char* variables;
    std::vector<std::string> parts;
  };
  const std::vector<Row> rows = {
      {"RANK=x WORLD_SIZE=2", {"RANK is 'x', not a number"}},
      {"RANK=2 WORLD_SIZE=2", {"RANK is 2, WORLD_SIZE is 2"}},
      {"RANK=0 WORLD_SIZE=2", {"MASTER_ADDR is not set"}},
      {"OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 RANK=2 WORLD_SIZE=4",
       {"two launchers disagree", "3", "RANK is 2"}},
      {"PMI_RANK=1 PMI_SIZE=8 SLURM_STEP_ID=0 SLURM_PROCID=1 SLURM_NTASKS=4", {"PMI_SIZE is 8, SLURM_NTASKS is 4"}},
#ifndef WEFT_WITH_NCCL
      {"RANK=1 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1", {"torchrun", "NCCL"}},
      {"SLURM_STEP_ID=0 SLURM_PROCID=1 SLURM_NTASKS=2", {"srun", "NCCL"}},
#endif
#ifndef WEFT_MPIEXEC
      {"OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2", {"mpirun", "no MPI"}},
#endif
  };
  const std::vector<std::vector<std::string>> commands = {train("a"),
                                                          {"eval", path("none")},
                                                          {"analyse", path("none")},
                                                          {"sample", path("none")},
                                                          {"parity", path("tiny.txtpb")}};
  for (const Row& row : rows)
    for (const std::vector<std::string>& command : commands) {
      SCOPED_TRACE(command[0] + " of " + row.variables);
      expect_usage_error(with_environment(row.variables, command), row.parts);
    }
  EXPECT_FALSE(io::file_exists(path("a")));
}

// Of what ranks do not share, and of what is wrong with the words of a command, one process of a launcher speaks.
TEST_F(RankFaults, OneProcessOfALauncherDoesWhatRanksDoNotShare) {
  const std::vector<std::vector<std::string>> commands = {{"config", path("tiny.txtpb")},
                                                          {"plan", path("tiny.txtpb"), "model.vocab=50"},
                                                          {"check", "--mixer", "gqa"},
                                                          {"gradcheck", "--mixer", "gqa"},
                                                          {"bench", "gemm", "--quick"},
                                                          {"ablate", path("no.txtpb")},
                                                          {"doctor"},
                                                          {"--help"},
                                                          {"--version"},
                                                          {},
                                                          {"trian", path("tiny.txtpb")},
                                                          {"train", "--help"},
                                                          {"train", "--bogus"}};
  for (const auto& words : commands) {
    SCOPED_TRACE(words.empty() ? "" : words[0]);
    for (const char* variables : {"OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2", "PMI_RANK=3 PMI_SIZE=4",
                                  "SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_STEP_ID=0"}) {
      const test::ProcessResult result = with_environment(variables, words);
      EXPECT_EQ(result.out + result.err, "") << variables;
      EXPECT_EQ(result.exit_code, !words.empty() && words.back() == "--bogus" ? 2 : 0);
    }
  }
  const test::ProcessResult first =
      with_environment("OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2", {"config", path("tiny.txtpb")});
  EXPECT_EQ(first.exit_code, 0) << first.err;
  EXPECT_EQ(first.out, test::run_weft({"config", path("tiny.txtpb")}).out);
  EXPECT_NE(with_environment("OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2", {"trian"}).err.find("no command 'trian'"),
            std::string::npos);
}

#ifdef WEFT_MPIEXEC

class MpiRankFaults : public RankFaults {
 protected:
  std::vector<std::string> mpirun(int ranks, std::vector<std::string> words) const {
    std::vector<std::string> all{"/usr/bin/env", WEFT_MPI_ENVIRONMENT, WEFT_MPIEXEC, "-np", std::to_string(ranks)};
    all.insert(all.end(), words.begin(), words.end());
    return all;
  }
  // Two programs of one world: rank 0 and rank 1.
  test::ProcessResult run_pair(std::vector<std::string> first, const std::vector<std::string>& second) const {
    first.insert(first.end(), {":", "-np", "1"});
    first.insert(first.end(), second.begin(), second.end());
    return test::run_program(mpirun(1, first));
  }
  std::vector<std::string> two_processes(const std::string& name, std::vector<std::string> more = {}) const {
    more.insert(more.begin(), "parallel.context=2");
    return test::weft_words(train(name, more));
  }
  // The process of a rank, by its flight record: "rank 1 of 2 on host, process 123".
  int process_of(const std::string& run, int rank) const {
    const std::string file = path(run) + "/flight-" + std::to_string(rank) + ".txt";
    if (!io::file_exists(file)) return 0;
    const std::string text = io::read_file(file);
    const size_t at = text.find("process ");
    return at == std::string::npos ? 0 : std::atoi(text.c_str() + at + 8);
  }
  static std::string host() {
    char name[256] = {};
    gethostname(name, sizeof name - 1);
    return name;
  }
  test::ProcessResult run_with_signal(int rank, int signal, double& seconds) const {
    return run_with_fault(
        rank, [signal](pid_t process) { kill(process, signal); }, seconds);
  }
  bool has_checkpoint(const std::string& run) const {
    return io::file_exists(path(run) + "/checkpoints") && !io::list_checkpoints(path(run) + "/checkpoints").empty();
  }
  // Starts a training that does not end, does `fault` to the process of a rank after its first checkpoint, and waits for the end.
  test::ProcessResult run_with_fault(int rank, const std::function<void(pid_t)>& fault, double& seconds) const {
    return run_with_fault(
        two_processes("a", {"train.tokens=128000000", "parallel.timeout_s=3", "checkpoint.every=5"}),
        [&] { return has_checkpoint("a"); }, rank, fault, seconds);
  }
  test::ProcessResult run_with_fault(const std::vector<std::string>& command, const std::function<bool()>& is_ready,
                                     int rank, const std::function<void(pid_t)>& fault, double& seconds,
                                     const std::string& flights = "a") const {
    std::FILE* err = std::tmpfile();
    std::vector<std::string> words = mpirun(2, command);
    // On a busy machine the ranks that are left take longer to speak than the second that Open MPI gives them.
    words.insert(words.begin() + 1, "OMPI_MCA_odls_base_sigkill_timeout=5");
    const pid_t child = test::start_program(words, fileno(err), fileno(err));
    for (int tries = 0; tries < 1200 && !is_ready(); ++tries)
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    EXPECT_TRUE(is_ready());
    const int victim = process_of(flights, rank);
    EXPECT_GT(victim, 1);
    const auto begin = Clock::now();
    if (victim > 1) fault(victim);
    int status = 0;
    waitpid(child, &status, 0);
    seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    test::ProcessResult result{WIFEXITED(status) ? WEXITSTATUS(status) : -1, "", ""};
    std::rewind(err);
    for (int c; (c = std::fgetc(err)) != EOF;) result.err.push_back(static_cast<char>(c));
    std::fclose(err);
    return result;
  }
};

// Programs that a process starts while MPI runs in it may end it or harm it: git is asked before. The stub writes down when.
TEST_F(MpiRankFaults, NoProgramIsStartedOnceMpiRuns) {
  std::filesystem::create_directories(folder_ / "bin");
  write("bin/git", str("#!/bin/sh\n[ -e '", path("a"), "/flight-0.txt' ] && when=late || when=early\n",
                       "echo $when >> '", path("calls"), "'\n[ \"$1\" = status ] || echo 0123abc\n"));
  std::filesystem::permissions(folder_ / "bin" / "git", std::filesystem::perms::owner_all);
  // mpirun puts its own folder first in PATH.
  std::vector<std::string> words = two_processes("a", {"train.tokens=640"});
  words.insert(words.begin(), {"/usr/bin/env", str("PATH=", path("bin"), ":", std::getenv("PATH"))});
  const test::ProcessResult result = test::run_program(mpirun(2, words));
  ASSERT_EQ(result.exit_code, 0) << result.out << result.err;
  EXPECT_EQ(io::read_file(path("calls")), "early\nearly\n") << "rev-parse and status, by one rank";
  EXPECT_NE(io::read_file(path("a") + "/environment.txtpb").find("0123abc"), std::string::npos);
}

TEST_F(MpiRankFaults, AnotherConfigOnOneRankIsNamedByItsField) {
  expect_usage_error(run_pair(two_processes("a"), two_processes("a", {"optim.clip_norm=7"})),
                     {"rank 1 has another config than rank 0: optim.clip_norm is 7 on rank 1 and ", "same command"});
  EXPECT_FALSE(io::file_exists(path("a") + "/metrics.jsonl"));
}

TEST_F(MpiRankFaults, WhatIsWrongWithTheCommandIsToldByOneRank) {
  expect_usage_error(test::run_program(mpirun(3, two_processes("a", {"--ranks", "2"}))),
                     {"--ranks 2 makes ranks of the threads of one process", "Leave out --ranks"});
  expect_usage_error(test::run_program(mpirun(3, two_processes("a", {"model.dmi=3"}))), {"dmi"});
  expect_usage_error(test::run_program(mpirun(3, two_processes("a"))),
                     {"started 3 ranks: the config has parallel.data 1 x parallel.context 2"});
}

// Also one rank: the command said so, and the launcher started others.
TEST_F(MpiRankFaults, RanksOfTheCommandAreRefusedUnderALauncherByEveryCommand) {
  ASSERT_EQ(test::run_weft(train("whole", {"train.tokens=128"})).exit_code, 0);
  auto with = [](std::vector<std::string> words, const std::vector<std::string>& more) {
    words.insert(words.end(), more.begin(), more.end());
    return test::weft_words(std::move(words));
  };
  for (const std::string ranks : {"1", "2"}) {
    const std::vector<std::string> more{"parallel.context=2", "--ranks", ranks};
    for (const std::vector<std::string>& words :
         {train("a", {}), {"eval", path("whole")}, {"analyse", path("whole")}, {"sample", path("whole")}}) {
      SCOPED_TRACE(words[0] + " --ranks " + ranks);
      expect_usage_error(test::run_program(mpirun(2, with(words, more))),
                         {"--ranks " + ranks + " makes ranks of the threads of one process", "Leave out --ranks"});
    }
  }
  EXPECT_FALSE(io::file_exists(path("a")));
  expect_usage_error(test::run_program(mpirun(2, two_processes("a", {"--ranks", "0"}))),
                     {"--ranks 0: there are no such"});
  const test::ProcessResult alone =
      test::run_program(mpirun(1, test::weft_words(train("a", {"train.tokens=128", "--ranks", "1"}))));
  EXPECT_EQ(alone.exit_code, 0) << "one process is what --ranks 1 asks for: " << alone.err;
}

TEST_F(MpiRankFaults, ARankWithoutMemoryEndsTheRun) {
  std::vector<std::string> small{"/bin/sh", "-c", "ulimit -v 1200000; exec \"$@\"", "sh"};
  const std::vector<std::string> words = two_processes("a");
  small.insert(small.end(), words.begin(), words.end());
  const auto begin = Clock::now();
  expect_failure(run_pair(words, small), {"rank 1 of 2", "no addresses", "ulimit -v"});
  EXPECT_LT(std::chrono::duration<double>(Clock::now() - begin).count(), 60);
}

// mpirun sends SIGTERM to the ranks that are left: they say what they know all the same.
TEST_F(MpiRankFaults, AKilledRankEndsTheTrainingIsNamedAndItsCheckpointIsWhole) {
  for (int rank : {1, 0}) {
    SCOPED_TRACE(str("rank ", rank));
    std::filesystem::remove_all(folder_ / "a");
    double seconds = 0;
    const test::ProcessResult result = run_with_signal(rank, SIGKILL, seconds);
    expect_failure(result, {str("rank ", rank, " on ", host(), " (process "), ") is gone; rank ", "waited "});
    EXPECT_LT(seconds, 30);
    std::vector<std::string> messages;
    EXPECT_TRUE(io::load_latest_checkpoint(path("a") + "/checkpoints", messages));
    EXPECT_TRUE(messages.empty());
    for (int r : {0, 1}) EXPECT_GT(process_of("a", r), 0) << "no flight record of rank " << r;
  }
}

// A command that nothing asks to save: it too says who died before mpirun's SIGTERM ends it.
TEST_F(MpiRankFaults, AKilledRankOfAnEvaluationIsNamed) {
  ASSERT_EQ(test::run_weft(train("a", {"train.tokens=128"})).exit_code, 0);
  std::string text;
  for (int i = 0; i < 30000; ++i)
    text += "line " + std::to_string(i * 7919 % 1000) + " of a text that repeats itself\n";
  write("long.txt", text);
  for (int rank : {0, 1}) {
    SCOPED_TRACE(str("rank ", rank));
    for (int r : {0, 1}) std::filesystem::remove(path("a") + str("/eval/flight-", r, ".txt"));
    double seconds = 0;
    const std::vector<std::string> words =
        test::weft_words({"eval", path("a"), str("data.val={path:\"", path("long.txt"), "\"}"), "parallel.context=2",
                          "parallel.timeout_s=3"});
    const test::ProcessResult result = run_with_fault(
        words, [&] { return process_of("a/eval", 0) > 0 && process_of("a/eval", 1) > 0; }, rank,
        [](pid_t process) { kill(process, SIGKILL); }, seconds, "a/eval");
    expect_failure(result, {str("rank ", rank, " on ", host(), " (process "), ") is gone; rank "});
    EXPECT_LT(seconds, 30);
  }
}

// Rank 0 alone writes files. From some step on it cannot.
TEST_F(MpiRankFaults, AnErrorOfOneRankAloneEndsTheTrainingAndIsToldOnce) {
  double seconds = 0;
  auto fault = [](pid_t process) {
    const rlimit none{1, 1};
    EXPECT_EQ(prlimit(process, RLIMIT_FSIZE, &none, nullptr), 0);
  };
  const test::ProcessResult result = run_with_fault(0, fault, seconds);
  expect_failure(result, {"File too large", path("a")});
  EXPECT_EQ(result.err.find("is gone"), std::string::npos) << result.err;
  EXPECT_LT(seconds, 30);
  std::vector<std::string> messages;
  EXPECT_TRUE(io::load_latest_checkpoint(path("a") + "/checkpoints", messages));
}

TEST_F(MpiRankFaults, AStoppedRankEndsTheTrainingWithinTheTimeOut) {
  for (int rank : {0, 1}) {
    std::filesystem::remove_all(folder_ / "a");
    double seconds = 0;
    const test::ProcessResult result = run_with_signal(rank, SIGSTOP, seconds);
    expect_failure(result, {"rank " + std::to_string(rank) + " on ", "is stopped", "waited 3"});
    EXPECT_LT(seconds, 30);
    EXPECT_TRUE(has_checkpoint("a"));
  }
}

#endif

}  // namespace
}  // namespace weft
