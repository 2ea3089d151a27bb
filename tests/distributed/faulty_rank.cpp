// A rank of mpirun whose work has a fault: faulty_rank FAULT FOLDER. Rank 1 is the one with the fault; all others do what they should, until
// they see it. The flight records go to FOLDER. mpi_faults_test.cpp says what the ranks must say.
#include <signal.h>

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>

#include "weft/comm/communicator.h"
#include "weft/core/error.h"
#include "weft/core/scope.h"

namespace weft::dist {
namespace {

void sleep_s(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

void work(Communicator& world, const std::string& fault) {
  Scope model("model"), layer("layers.3");
  const bool is_faulty = world.rank() == 1;
  auto half = world.split(world.rank() % 2, 0, "half");
  Tensor x = Tensor::full({100}, 1);
  for (int step = 0; step < 3; ++step) world.all_reduce(x);
  if (is_faulty) {
    if (fault == "killed") raise(SIGKILL);
    if (fault == "stopped") raise(SIGSTOP);
    if (fault == "slow") sleep_s(1);  // less than the time-out
    if (fault == "late") sleep_s(60);
    if (fault == "error") fail("the disk is full", "delete something");
    if (fault == "exception") throw std::runtime_error("bad luck");
    if (fault == "other collective") world.barrier();
    if (fault == "other size") x = Tensor::full({101}, 1);
    if (fault == "one exchange less") return;
  }
  if (fault == "other message" || fault == "error between") {
    Tensor coming = Tensor::empty({100}), sent = is_faulty && fault == "other message" ? Tensor::full({101}, 1) : x;
    auto transfer = world.start_exchange(std::vector<Send>{{sent, (world.rank() + 1) % world.size()}},
                                         std::vector<Receive>{{coming, (world.rank() + 2) % world.size()}});
    if (is_faulty && fault == "error between") fail("the kernel failed", "ask its author");
    transfer->wait();
  }
  if (fault == "one exchange less" ||
      fault == "ring") {  // a hop of a ring: rank 1 does not send, so that others wait for waiting ones
    const int next = (world.rank() + 1) % world.size(), previous = (world.rank() + world.size() - 1) % world.size();
    for (int hop = 0; hop < world.size(); ++hop) {
      if (is_faulty && fault == "ring") raise(SIGSTOP);
      Tensor coming = Tensor::empty({100});
      world.exchange(std::vector<Send>{{x, next}}, std::vector<Receive>{{coming, previous}});
      x = coming;
    }
  }
  world.all_reduce(x);
  half->barrier();
  if (is_faulty && fault == "stopped at the end") raise(SIGSTOP);
}

// As the launcher says, before MPI has started.
bool is_rank_1() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMI_RANK"})
    if (const char* value = std::getenv(name)) return std::string(value) == "1";
  return false;
}

int run(const std::string& fault, const std::string& folder) {
  std::unique_ptr<Communicator> world;
  if (fault == "stopped before the start" && is_rank_1()) raise(SIGSTOP);
  try {
    world = make_mpi_communicator({.timeout_s = 2});
    world->record_to(folder);
    work(*world, fault);
    if (world->rank() == 0) std::puts("the work is done");
    return 0;
  } catch (const std::exception& e) {
    const auto* error = dynamic_cast<const Error*>(&e);
    world->abort(error ? error->problem() : e.what());
    if (world->is_speaker()) std::fprintf(stderr, "error: %s\n", e.what());
    return 1;
  }
}

}  // namespace
}  // namespace weft::dist

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  signal(SIGTERM,
         SIG_IGN);  // mpirun sends it when a rank has died; what the others know is worth the second until SIGKILL
  return weft::dist::run(argv[1], argv[2]);
}
