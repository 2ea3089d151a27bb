#include "distributed/comm/mpi/guard.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "distributed/comm/mpi/process.h"
#include "weft/core/error.h"

namespace weft::dist {

namespace {

// Ranks cannot ask each other who speaks yet. The first one to end makes the launcher end the others, so that a rank leaves those below it
// some seconds.
constexpr double kPerRank_s = 2, kMost_s = 10;

// As the launcher says; 0 where it does not.
int own_rank() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"})
    if (const char* value = std::getenv(name)) return std::max(0, std::atoi(value));
  return 0;
}

}  // namespace

MpiGuard::MpiGuard(const char* what, double timeout_s)
    : what_(what), call_(what), thread_([this, timeout_s, rank = own_rank()] { run(timeout_s, rank); }) {}

MpiGuard::~MpiGuard() {
  {
    std::lock_guard lock(mutex_);
    is_over_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void MpiGuard::run(double timeout_s, int rank) {
  const std::chrono::duration<double> patience(timeout_s + std::min(kPerRank_s * rank, kMost_s));
  std::unique_lock lock(mutex_);
  if (changed_.wait_for(lock, patience, [&] { return is_over_; })) return;
  const std::string problem = str(what_, ": rank ", rank, " ", this_process(), " waited ", patience.count(), " s in ",
                                  call_.load(), " for the other ranks: not all of them came");
  try {
    fail(problem,
         "look at the processes of all ranks: one may be stopped (SIGSTOP, or a debugger), have ended, or be another "
         "program; a longer time-out helps if they are only slow");
  } catch (const Error& error) { std::fprintf(stderr, "error: %s\n", error.what()); }
  ::_exit(1);
}

}  // namespace weft::dist
