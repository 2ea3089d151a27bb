#include "distributed/comm/mpi/requests.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "weft/core/error.h"

namespace weft::dist {

namespace {

// How a rank waits: most messages are here after a few looks. Then it gives its core to ranks that share it, and after a while sleeps between
// looks: a rank that only yields is put behind all other work of a busy machine.
constexpr int kLooks = 64;
constexpr double kPatient_s = 200e-6, kSleep_s = 50e-6;

void check(MpiLink& link, int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  link.fail_all(str(call, ": ", text), "see what the other ranks say, and the messages of mpirun");
}

}  // namespace

void MpiRequests::send(const void* from, int64_t bytes, int peer, int tag) {
  int code = MPI_SUCCESS;
  {
    auto lock = link_.lock();
    for (int64_t begin = 0; begin < bytes && code == MPI_SUCCESS; begin += link_.piece_bytes()) {
      const auto size = static_cast<int>(std::min<int64_t>(link_.piece_bytes(), bytes - begin));
      parts_.push_back({MPI_REQUEST_NULL, peer, false});
      code = MPI_Isend(static_cast<const char*>(from) + begin, size, MPI_BYTE, peer, tag, link_.messages(),
                       &parts_.back().request);
    }
  }
  check(link_, code, "MPI_Isend");
}

void MpiRequests::receive(void* to, int64_t bytes, int peer, int tag) {
  int code = MPI_SUCCESS;
  {
    auto lock = link_.lock();
    for (int64_t begin = 0; begin < bytes && code == MPI_SUCCESS; begin += link_.piece_bytes()) {
      const auto size = static_cast<int>(std::min<int64_t>(link_.piece_bytes(), bytes - begin));
      parts_.push_back({MPI_REQUEST_NULL, peer, true});
      code = MPI_Irecv(static_cast<char*>(to) + begin, size, MPI_BYTE, peer, tag, link_.messages(),
                       &parts_.back().request);
    }
  }
  check(link_, code, "MPI_Irecv");
}

bool MpiRequests::test() {
  int code = MPI_SUCCESS;
  {
    auto lock = link_.lock();
    size_t left = 0;
    for (Part& part : parts_) {
      int is_done = 0;
      if (code == MPI_SUCCESS) code = MPI_Test(&part.request, &is_done, MPI_STATUS_IGNORE);
      if (!is_done) parts_[left++] = part;
    }
    parts_.resize(left);
  }
  check(link_, code, "MPI_Test");
  return parts_.empty();
}

std::vector<int> MpiRequests::absent() const {
  std::vector<int> peers;
  for (bool is_receive : {true, false}) {  // who sends nothing is the first to ask for; then who takes nothing
    for (const Part& part : parts_)
      if (part.is_receive == is_receive) peers.push_back(part.peer);
    if (!peers.empty()) break;
  }
  std::sort(peers.begin(), peers.end());
  peers.erase(std::unique(peers.begin(), peers.end()), peers.end());
  return peers;
}

void MpiRequests::wait(const MpiWait& wait) {
  const auto began = std::chrono::steady_clock::now();
  for (int turn = 0; !test(); ++turn) {
    if (turn < kLooks) continue;
    const double waited_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    if (waited_s < kPatient_s) {
      sched_yield();
      continue;
    }
    link_.look_around(wait, waited_s, absent());
    std::this_thread::sleep_for(std::chrono::duration<double>(kSleep_s));
  }
  kept_.clear();
}

MpiRequests::~MpiRequests() {
  if (parts_.empty()) return;
  std::vector<MPI_Request> sends, receives;
  for (const Part& part : parts_)
    if (part.request != MPI_REQUEST_NULL) (part.is_receive ? receives : sends).push_back(part.request);
  link_.drop(sends, receives, kept_);
}

}  // namespace weft::dist
