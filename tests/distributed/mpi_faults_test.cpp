// Programs under mpirun in which one of three ranks has a fault: they end in time, one rank says what happened, and flight records are there.
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/support/process.h"
#include "weft/core/error.h"

namespace weft::test {
namespace {

struct Outcome {
  int exit_code = 0;
  double seconds = 0;
  std::string messages;
  std::vector<std::string> flights;  // of each rank; "" if there is none
};

std::string host() {
  char name[256] = {};
  gethostname(name, sizeof name - 1);
  return name;
}

Outcome run_fault(const std::string& fault) {
  std::string folder = std::filesystem::temp_directory_path() / "weft-faults-XXXXXX";
  EXPECT_NE(mkdtemp(folder.data()), nullptr);
  const auto begin = std::chrono::steady_clock::now();
  // On a busy machine the ranks that are left take longer to speak than the second that Open MPI gives them.
  const std::string patience = str("OMPI_MCA_odls_base_sigkill_timeout=", fault == "killed" ? 3 : 1);
  const ProcessResult result = run_program(
      {"/usr/bin/env", patience, WEFT_MPI_ENVIRONMENT, WEFT_MPIEXEC, "-np", "3", WEFT_FAULTY_RANK, fault, folder});
  Outcome outcome{result.exit_code,
                  std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(),
                  result.out + result.err,
                  {}};
  for (int r = 0; r < 3; ++r) {
    std::ifstream file(folder + "/flight-" + std::to_string(r) + ".txt");
    std::stringstream text;
    text << file.rdbuf();
    outcome.flights.push_back(text.str());
  }
  std::filesystem::remove_all(folder);
  return outcome;
}

int count(const std::string& text, const std::string& part) {
  int times = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++times;
  return times;
}

// The run fails within the time-out of 2 s and what ending takes; one rank tells, with all of `parts`.
Outcome expect_failure(const std::string& fault, const std::vector<std::string>& parts) {
  const Outcome outcome = run_fault(fault);
  EXPECT_NE(outcome.exit_code, 0);
  EXPECT_LT(outcome.seconds, 30);
  EXPECT_EQ(count(outcome.messages, "error: "), 1) << outcome.messages;
  for (const std::string& part : parts)
    EXPECT_NE(outcome.messages.find(part), std::string::npos) << "'" << part << "' is not in:\n" << outcome.messages;
  for (const std::string& flight : outcome.flights)
    EXPECT_NE(flight.find("all_reduce sum of 100 f32 (number 3) at model.layers.3"), std::string::npos) << flight;
  return outcome;
}

TEST(MpiFaults, WithoutAFaultTheWorkIsDone) {
  const Outcome outcome = run_fault("none");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.messages;
  EXPECT_EQ(count(outcome.messages, "the work is done"), 1) << outcome.messages;
  for (int r = 0; r < 3; ++r) {
    const std::string& flight = outcome.flights[static_cast<size_t>(r)];
    EXPECT_EQ(count(flight, " done "), r == 1 ? 5 : 6)
        << flight;  // split, all_reduce 4 times, and the barrier of ranks 0 and 2
    EXPECT_NE(flight.find("rank " + std::to_string(r) + " of 3 on " + host()), std::string::npos) << flight;
  }
}

TEST(MpiFaults, ASlowRankIsWaitedFor) {
  const Outcome outcome = run_fault("slow");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.messages;
}

TEST(MpiFaults, AKilledRankIsNamedAtOnceWithItsHostAndWhereItWasWaitedFor) {
  const Outcome outcome = expect_failure("killed", {"rank 1 on " + host() + " (process ", ") is gone",
                                                    "all_reduce sum of 100 f32 (number 5) at model.layers.3"});
  // Its own record ends with the last thing that it did.
  EXPECT_EQ(count(outcome.flights[1], " done "), 4) << outcome.flights[1];
  EXPECT_EQ(count(outcome.flights[0], " failed "), 1) << outcome.flights[0];
}

TEST(MpiFaults, AStoppedRankIsNamedAfterTheTimeOut) {
  expect_failure("stopped", {"waited 2", "s in all_reduce sum of 100 f32 (number 5) at model.layers.3",
                             "for rank 1 on " + host(), "is stopped (SIGSTOP, or a debugger)"});
}

// MPI itself waits for all ranks when it starts, and has no time-out.
TEST(MpiFaults, AStartToWhichARankDoesNotComeEndsAfterTheTimeOut) {
  const Outcome outcome = run_fault("stopped before the start");
  EXPECT_NE(outcome.exit_code, 0);
  EXPECT_LT(outcome.seconds, 90);
  EXPECT_EQ(count(outcome.messages, "error: "), 1) << outcome.messages;
  for (const std::string& part : {str("the start of MPI: rank 0 on ", host()), str("waited 20 s in MPI_"),
                                  str("not all of them came"), str("fix: look at the processes of all ranks")})
    EXPECT_NE(outcome.messages.find(part), std::string::npos) << "'" << part << "' is not in:\n" << outcome.messages;
}

// Ranks that have done their work wait for the others without an end, but not for one that is stopped.
TEST(MpiFaults, ARankThatIsStoppedAtTheEndIsNamedAfterTheTimeOut) {
  expect_failure("stopped at the end",
                 {"the end of the run: rank ", "for rank 1 on " + host(), "is stopped (SIGSTOP, or a debugger)"});
}

TEST(MpiFaults, ARankThatDoesNotComeIsNamedAfterTheTimeOut) {
  expect_failure("late", {"(number 5) at model.layers.3", "for rank 1 on " + host(),
                          "does not answer: it is busy, stopped or gone"});
}

TEST(MpiFaults, AnErrorOfOneRankEndsAllAndItAloneTells) {
  expect_failure("error", {"error: the disk is full", "fix: delete something", "rank 1 of 3"});
  expect_failure("exception", {"error: bad luck"});
  expect_failure("error between", {"error: the kernel failed"});  // while its messages are on their way
}

TEST(MpiFaults, RanksThatCallDifferentThingsAreNamedWithWhatEachCalls) {
  expect_failure("other collective",
                 {"ranks disagree: rank 0 calls all_reduce sum of 100 f32 (number 5) at model.layers.3",
                  "rank 1 calls barrier (number 5) at model.layers.3"});
  expect_failure("other size",
                 {"ranks disagree", "all_reduce sum of 100 f32", "rank 1 calls all_reduce sum of 101 f32"});
}

TEST(MpiFaults, AMessageOfAnotherSizeIsAnErrorThatNamesBothSizes) {
  expect_failure("other message", {"rank 1 sent [101] f32 cpu", "rank 2 receives [100] f32 cpu"});
}

// Rank 2 waits for rank 1, and rank 0 for rank 2: all of them name the rank that is behind.
TEST(MpiFaults, InARingTheRankThatIsBehindIsNamedByThoseThatWaitForOthers) {
  expect_failure("ring", {"exchange at model.layers.3 to ", "rank 1 on " + host(), "is stopped"});
  expect_failure("one exchange less", {"exchange at model.layers.3 to ", "rank 1: the end of its work"});
}

}  // namespace
}  // namespace weft::test
